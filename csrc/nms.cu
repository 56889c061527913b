#include "cuda_check.h"
#include "nms_blocks.h"

namespace case_wtal {

// 256 threads: a tile's 64 x 64 bits are 16 a thread, and of 1,000 segments 8 go to each of 125 threads in a merge. Static
// shared memory: 40.1 KB (float), 42.1 KB (double), of which sorting takes 32, so five blocks a multiprocessor of 228 KB;
// with registers for four, none is spilt. Blocks look for the beginnings of groups themselves, so a launch need not know
// how many there are.
template <typename T>
void nms_settle_cuda(const NmsRows<T>& rows, T threshold, T offset, void* spare, const NmsOutcome& to,
                     uintptr_t stream) {
  if (rows.n == 0) return;
  const auto body = settle_groups(rows, threshold, offset, spare, to);
  constexpr int kBlocks = sizeof(T) == 4 ? 4 : 2;
  constexpr int64_t kRows = SettleGroups<T>::kHeads;
  block_kernel<SettleGroups<T>, kNmsThreads, kBlocks>
      <<<unsigned((rows.n + kRows - 1) / kRows), kNmsThreads, 0, reinterpret_cast<cudaStream_t>(stream)>>>(body);
  check_launch("nms_settle_cuda");
}

template void nms_settle_cuda(const NmsRows<float>&, float, float, void*, const NmsOutcome&, uintptr_t);
template void nms_settle_cuda(const NmsRows<double>&, double, double, void*, const NmsOutcome&, uintptr_t);

}  // namespace case_wtal
