// Intersection over union of two segments (start, end); see csrc/iou.h for the formula.
#pragma once

#include "block.h"
#include "simd.h"

namespace case_wtal {

// A NaN coordinate makes the length of its segment NaN, hence the union and the quotient: the comparisons of the
// intersection may drop it. Written as selects, without branches, so that loops over it vectorise. `length1` is
// e1 - s1 + offset. Symmetric in the two segments, to the last bit.
template <typename T>
CASE_HD CASE_INLINE T segment_iou(T s1, T e1, T length1, T s2, T e2, T offset) {
  const T overlap = (e1 < e2 ? e1 : e2) - (s1 > s2 ? s1 : s2) + offset;
  const T inter = overlap > 0 ? overlap : 0;
  const T total = length1 + (e2 - s2 + offset) - inter;
  const T quotient = inter / total;
  return total <= 0 ? T(0) : quotient;
}

}  // namespace case_wtal
