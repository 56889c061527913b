// Memory that is about to be written for the first time.
#pragma once

#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace case_wtal {

// glibc gives large blocks back when they are freed, so a large result lies in pages that are not there yet, and making
// them 4 KB at a time takes longer than the passes that fill them. Asks for pages of 2 MB, wherever whole ones fit. Null
// is no memory.
template <typename T>
inline void expect_to_fill(T* values, int64_t count) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = uintptr_t(1) << 21;
  if (values == nullptr) return;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(values), end = begin + uintptr_t(count) * sizeof(T);
  const uintptr_t first = (begin + page - 1) / page * page, last = end / page * page;
  // Below that there is nothing to gain. A kernel without such pages says no, which changes nothing.
  if (last > first + page) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)values;
  (void)count;
#endif
}

}  // namespace case_wtal
