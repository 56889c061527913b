// The kernels of nms.cu, run by one CPU thread for their tests.
#include "nms_blocks.h"

namespace case_wtal {

template <typename T>
void nms_settle_emulated(const NmsRows<T>& rows, T threshold, T offset, void* spare, const NmsOutcome& to,
                         Emulation with) {
  emulate(settle_groups(rows, threshold, offset, spare, to), with.blocks, with.threads,
          static_cast<ThreadOrder>(with.order), with.seed);
}

template void nms_settle_emulated(const NmsRows<float>&, float, float, void*, const NmsOutcome&, Emulation);
template void nms_settle_emulated(const NmsRows<double>&, double, double, void*, const NmsOutcome&, Emulation);

}  // namespace case_wtal
