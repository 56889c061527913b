// Pairwise temporal IoU of segments, batched: a (B, M, 2), b (B, P, 2) -> out (B, M, P), all contiguous.
//
// A segment is (start, end). With d = length_offset and I = max(0, min(e1, e2) - max(s1, s2) + d),
//     IoU = I / ((e1 - s1 + d) + (e2 - s2 + d) - I),  0 where that denominator is <= 0,  NaN where a coordinate is NaN.
#pragma once

#include <cstdint>

namespace case_wtal {

struct IouSizes {
  int64_t batch;  // B
  int64_t m;      // M, segments of a per batch entry
  int64_t p;      // P, segments of b per batch entry
};

// num_threads <= 0: OpenMP's default. T: float, double.
template <typename T>
void iou_cpu(const T* a, const T* b, T* out, IouSizes sizes, T length_offset, int num_threads);

// Gradients da (B, M, 2) and db (B, P, 2) for a cotangent (B, M, P); 0 of a pair whose denominator is <= 0. Equal ends
// share a gradient half and half.
template <typename T>
void iou_backward_cpu(const T* a, const T* b, const T* cotangent, IouSizes sizes, T length_offset, T* da, T* db,
                      int num_threads);

#ifdef CASE_WITH_CUDA
// Enqueues on `stream` (a cudaStream_t) of the current device and returns without waiting.
// Throws std::runtime_error if the launch is refused.
template <typename T>
void iou_cuda(const T* a, const T* b, T* out, IouSizes sizes, T length_offset, uintptr_t stream);
#endif

}  // namespace case_wtal
