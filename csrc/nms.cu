#include <algorithm>

#include "cuda_check.h"
#include "nms_rounds.h"
#include "nms_soft_rounds.h"
#include "nms_vote_blocks.h"

namespace case_wtal {
namespace {

template <int kBlocks, typename Body>
void launch(const Body& body, int64_t blocks, uintptr_t stream, const char* op) {
  block_kernel<Body, kNmsThreads, kBlocks>
      <<<unsigned(blocks), kNmsThreads, 0, reinterpret_cast<cudaStream_t>(stream)>>>(body);
  check_launch(op);
}

int64_t ceil_div(int64_t n, int64_t d) { return (n + d - 1) / d; }

}  // namespace

// 256 threads: a tile's 64 x 64 bits are 16 a thread, and of 1,000 segments 8 go to each of 125 threads in a merge.
// Static shared memory: 40.1 KB (float), 42.1 KB (double), of which sorting takes 32, so five blocks a multiprocessor
// of 228 KB; with registers for four, none is spilt. Blocks look for the beginnings of groups themselves, so a launch
// need not know how many there are.
template <typename T>
void nms_settle_cuda(const NmsRows<T>& rows, T threshold, T offset, void* spare, int64_t most, const NmsOutcome& to,
                     uintptr_t stream) {
  if (rows.n == 0) return;
  launch<sizeof(T) == 4 ? 4 : 2>(settle_groups(rows, threshold, offset, spare, most, to),
                                 ceil_div(rows.n, GroupHeads::kRows), stream, "nms_settle_cuda");
}

// A thread a position. Rounds are launches, since each needs what others have found; those after the last that was
// needed return at once.
template <typename T>
void nms_rounds_cuda(const NmsIndex<T>& index, T threshold, T offset, unsigned char* state, int32_t* left,
                     int64_t rounds, int32_t* by, uintptr_t stream) {
  if (index.n == 0) return;
  const char* op = "nms_rounds_cuda";
  const NmsRounds<T> asked = nms_rounds(index, threshold, offset, state);
  const int64_t blocks = ceil_div(index.n, kNmsThreads);
  for (int64_t round = 0; round < rounds; ++round) {
    launch<1>(SettleRound<T>{asked, left + round}, blocks, stream, op);
  }
  launch<1>(SettleLast<T>{asked, left + rounds}, 1, stream, op);
  launch<1>(NameSuppressors<T>{asked, by}, blocks, stream, op);
}

template <typename T>
void nms_soft_cuda(const NmsIndex<T>& index, const NmsDecay<T>& decay, T offset, int32_t* left, int64_t first,
                   int64_t rounds, uintptr_t stream) {
  if (index.n == 0) return;
  // Many rounds find nothing left: they are over the sooner the fewer blocks say so.
  const int64_t blocks = std::min<int64_t>(ceil_div(index.n, kNmsThreads), 4096);
  for (int64_t i = 0; i < rounds; ++i) {
    const SoftRounds<T> round = soft_rounds(index, decay, offset, int32_t(first + i + 1));
    launch<1>(SoftPick<T>{round, left + i}, blocks, stream, "nms_soft_cuda");
    launch<1>(SoftDecay<T>{round, left + i}, blocks, stream, "nms_soft_cuda");
  }
}

// 256 threads, as above: a thread works on 4 segments of a group of 1,000. Registers for three blocks, which hide each
// other's barriers; with those for four some are spilt.
template <typename T>
void nms_soft_groups_cuda(const NmsIndex<T>& index, const NmsDecay<T>& decay, T offset, int64_t first, int64_t most,
                          uintptr_t stream) {
  if (index.n == 0) return;
  launch<3>(SoftGroups<T>{soft_rounds(index, decay, offset, int32_t(first)), most},
            ceil_div(index.n, GroupHeads::kRows), stream, "nms_soft_groups_cuda");
}

template <typename T>
void nms_vote_cuda(const NmsIndex<T>& index, const NmsBallot<T>& ballot, T offset, uintptr_t stream) {
  if (ballot.kept == 0) return;
  launch<1>(vote_kept(index, ballot, offset), ceil_div(ballot.kept, kNmsThreads), stream, "nms_vote_cuda");
}

#define CASE_INSTANCES(T)                                                                                        \
  template void nms_settle_cuda(const NmsRows<T>&, T, T, void*, int64_t, const NmsOutcome&, uintptr_t);          \
  template void nms_rounds_cuda(const NmsIndex<T>&, T, T, unsigned char*, int32_t*, int64_t, int32_t*,        \
                                uintptr_t);                                                                    \
  template void nms_soft_cuda(const NmsIndex<T>&, const NmsDecay<T>&, T, int32_t*, int64_t, int64_t, uintptr_t); \
  template void nms_soft_groups_cuda(const NmsIndex<T>&, const NmsDecay<T>&, T, int64_t, int64_t, uintptr_t);    \
  template void nms_vote_cuda(const NmsIndex<T>&, const NmsBallot<T>&, T, uintptr_t)
CASE_INSTANCES(float);
CASE_INSTANCES(double);
#undef CASE_INSTANCES

}  // namespace case_wtal
