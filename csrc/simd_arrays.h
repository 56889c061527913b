// exp, log and pow of simd.h over arrays, compiled as the kernels are: for their tests.
#pragma once

#include <cstdint>

namespace case_wtal {

void exp_array_f32(const float* x, float* out, int64_t count);
void exp_array_f64(const double* x, double* out, int64_t count);
void log_array_f32(const float* x, float* out, int64_t count);
void log_array_f64(const double* x, double* out, int64_t count);
void pow_array_f32(const float* x, double q, float* out, int64_t count);
void pow_array_f64(const double* x, double q, double* out, int64_t count);

}  // namespace case_wtal
