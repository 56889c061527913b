// The kernels of nms.cu, run by one CPU thread for their tests.
#include "nms_rounds.h"
#include "nms_soft_rounds.h"
#include "nms_vote_blocks.h"

namespace case_wtal {
namespace {

template <typename Body>
void run(const Body& body, Emulation with) {
  emulate(body, with.blocks, with.threads, static_cast<ThreadOrder>(with.order), with.seed);
}

}  // namespace

template <typename T>
void nms_settle_emulated(const NmsRows<T>& rows, T threshold, T offset, void* spare, int64_t most, const NmsOutcome& to,
                         Emulation with) {
  run(settle_groups(rows, threshold, offset, spare, most, to), with);
}

template <typename T>
void nms_rounds_emulated(const NmsIndex<T>& index, T threshold, T offset, unsigned char* state, int32_t* left,
                         int64_t rounds, int32_t* by, Emulation with) {
  const NmsRounds<T> asked = nms_rounds(index, threshold, offset, state);
  for (int64_t round = 0; round < rounds; ++round) run(SettleRound<T>{asked, left + round}, with);
  run(SettleLast<T>{asked, left + rounds}, with);
  run(NameSuppressors<T>{asked, by}, with);
}

template <typename T>
void nms_soft_emulated(const NmsIndex<T>& index, const NmsDecay<T>& decay, T offset, int32_t* left, int64_t first,
                       int64_t rounds, Emulation with) {
  for (int64_t i = 0; i < rounds; ++i) {
    const SoftRounds<T> round = soft_rounds(index, decay, offset, int32_t(first + i + 1));
    run(SoftPick<T>{round, left + i}, with);
    run(SoftDecay<T>{round, left + i}, with);
  }
}

template <typename T>
void nms_soft_groups_emulated(const NmsIndex<T>& index, const NmsDecay<T>& decay, T offset, int64_t first, int64_t most,
                              Emulation with) {
  run(SoftGroups<T>{soft_rounds(index, decay, offset, int32_t(first)), most}, with);
}

template <typename T>
void nms_vote_emulated(const NmsIndex<T>& index, const NmsBallot<T>& ballot, T offset, Emulation with) {
  run(vote_kept(index, ballot, offset), with);
}

#define CASE_INSTANCES(T)                                                                                          \
  template void nms_settle_emulated(const NmsRows<T>&, T, T, void*, int64_t, const NmsOutcome&, Emulation);        \
  template void nms_rounds_emulated(const NmsIndex<T>&, T, T, unsigned char*, int32_t*, int64_t, int32_t*,          \
                                    Emulation);                                                                  \
  template void nms_soft_emulated(const NmsIndex<T>&, const NmsDecay<T>&, T, int32_t*, int64_t, int64_t, Emulation); \
  template void nms_soft_groups_emulated(const NmsIndex<T>&, const NmsDecay<T>&, T, int64_t, int64_t, Emulation);  \
  template void nms_vote_emulated(const NmsIndex<T>&, const NmsBallot<T>&, T, Emulation)
CASE_INSTANCES(float);
CASE_INSTANCES(double);
#undef CASE_INSTANCES

}  // namespace case_wtal
