// Loops over OpenMP threads, or over one thread where OpenMP is absent.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <vector>

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

// The same for tasks of unequal size, each taken by whichever thread is free, that need memory to work in: f(state, i),
// with a state from `make()` for each thread.
template <typename Make, typename F>
void parallel_with(int64_t count, int threads, const Make& make, const F& f) {
  std::vector<decltype(make())> states;
  const int64_t wanted = std::min<int64_t>(threads, count);
  for (int64_t i = 0; i < std::max<int64_t>(wanted, 1); ++i) states.push_back(make());
  if (wanted <= 1) {
    for (int64_t i = 0; i < count; ++i) f(states[0], i);
    return;
  }
  std::exception_ptr failure;
#ifdef _OPENMP
  // Some dozens of hand-outs a thread: enough to even out, and few where tasks are tiny.
  const int chunk = int(std::max<int64_t>(1, std::min<int64_t>(count / (64 * wanted), 4096)));
#pragma omp parallel for schedule(dynamic, chunk) num_threads(int(wanted))
#endif
  for (int64_t i = 0; i < count; ++i) {
    try {
#ifdef _OPENMP
      f(states[size_t(omp_get_thread_num())], i);
#else
      f(states[0], i);
#endif
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
