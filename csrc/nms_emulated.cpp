// The kernel of nms.cu, run by one CPU thread for its tests.
#include "nms_blocks.h"

namespace case_wtal {

template <typename T>
void nms_settle_emulated(const T* segments, const NmsGroups& groups, T threshold, T offset, int32_t* by,
                         Emulation with) {
  const SettleGroups<T> body{segments, groups.begins, groups.count, threshold, offset, by};
  emulate(body, with.blocks, with.threads, static_cast<ThreadOrder>(with.order), with.seed);
}

template void nms_settle_emulated(const float*, const NmsGroups&, float, float, int32_t*, Emulation);
template void nms_settle_emulated(const double*, const NmsGroups&, double, double, int32_t*, Emulation);

}  // namespace case_wtal
