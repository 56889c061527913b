#include "cuda_check.h"
#include "nms_blocks.h"

namespace case_wtal {

// 256 threads: a tile's 64 x 64 bits are 16 a thread, and 1,000 segments are 4 a thread. Blocks take groups in turns, so
// a launch need not know how many groups there are. Static shared memory: 1.7 KB (float), 2.2 KB (double).
template <typename T>
void nms_settle_cuda(const T* segments, const NmsGroups& groups, T threshold, T offset, int32_t* by, int64_t blocks,
                     uintptr_t stream) {
  if (blocks == 0) return;
  const SettleGroups<T> body{segments, groups.begins, groups.count, threshold, offset, by};
  block_kernel<SettleGroups<T>, kNmsThreads>
      <<<unsigned(blocks), kNmsThreads, 0, reinterpret_cast<cudaStream_t>(stream)>>>(body);
  check_launch("nms_settle_cuda");
}

template void nms_settle_cuda(const float*, const NmsGroups&, float, float, int32_t*, int64_t, uintptr_t);
template void nms_settle_cuda(const double*, const NmsGroups&, double, double, int32_t*, int64_t, uintptr_t);

}  // namespace case_wtal
