#include "simd_arrays.h"

#include "simd.h"

namespace case_wtal {

CASE_SIMD_CLONES void exp_array_f32(const float* x, float* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = simd_exp(x[i]);
}
CASE_SIMD_CLONES void exp_array_f64(const double* x, double* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = simd_exp(x[i]);
}
CASE_SIMD_CLONES void log_array_f32(const float* x, float* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = simd_log(x[i]);
}
CASE_SIMD_CLONES void log_array_f64(const double* x, double* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = simd_log(x[i]);
}
CASE_SIMD_CLONES void pow_array_f32(const float* x, double q, float* out, int64_t count) {
  const Power<float> power(q);
  for (int64_t i = 0; i < count; ++i) out[i] = power(x[i]);
}
CASE_SIMD_CLONES void pow_array_f64(const double* x, double q, double* out, int64_t count) {
  const Power<double> power(q);
  for (int64_t i = 0; i < count; ++i) out[i] = power(x[i]);
}

}  // namespace case_wtal
