// Loops over OpenMP threads, or over one thread where OpenMP is absent.
#pragma once

#include <cstdint>
#include <exception>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace case_wtal {

// Below this many matrix entries one thread is done before the others have woken up.
constexpr int64_t kParallelEntries = 1 << 14;

inline int thread_count(int wanted) {
#ifdef _OPENMP
  return wanted > 0 ? wanted : omp_get_max_threads();
#else
  (void)wanted;
  return 1;
#endif
}

// f(i) for i in [0, count), on up to `threads` threads; an exception in any of them is thrown here.
template <typename F>
void parallel_for(int64_t count, int threads, const F& f) {
  if (threads <= 1 || count <= 1) {
    for (int64_t i = 0; i < count; ++i) f(i);
    return;
  }
  std::exception_ptr failure;
#ifdef _OPENMP
#pragma omp parallel for schedule(static) num_threads(threads)
#endif
  for (int64_t i = 0; i < count; ++i) {
    try {
      f(i);
    } catch (...) {
#ifdef _OPENMP
#pragma omp critical(case_wtal_failure)
#endif
      failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace case_wtal
