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

// Which thread of its parallel region this is.
inline int thread_number() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// Threads for so many entries of work, `wanted` or OpenMP's default where there are `enough` of them.
inline int threads_worth(int64_t entries, int wanted, int64_t enough = kParallelEntries) {
  return entries < enough ? 1 : thread_count(wanted);
}

// What a thread throws must not leave its parallel region: it is kept, the last of several, and thrown behind the region.
class Failure {
 public:
  template <typename F>
  void keep_from(const F& f) {
    try {
      f();
    } catch (...) {
#ifdef _OPENMP
#pragma omp critical(case_wtal_failure)
#endif
      thrown_ = std::current_exception();
    }
  }

  void rethrow() const {
    if (thrown_) std::rethrow_exception(thrown_);
  }

 private:
  std::exception_ptr thrown_;
};

// f(i) for i in [0, count), on up to `threads` threads; an exception in any of them is thrown here.
template <typename F>
void parallel_for(int64_t count, int threads, const F& f) {
  if (threads <= 1 || count <= 1) {
    for (int64_t i = 0; i < count; ++i) f(i);
    return;
  }
  Failure failure;
#ifdef _OPENMP
#pragma omp parallel for schedule(static) num_threads(threads)
#endif
  for (int64_t i = 0; i < count; ++i) failure.keep_from([&] { f(i); });
  failure.rethrow();
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
  Failure failure;
#ifdef _OPENMP
  // Some dozens of hand-outs a thread: enough to even out, and few where tasks are tiny.
  const int chunk = int(std::max<int64_t>(1, std::min<int64_t>(count / (64 * wanted), 4096)));
#pragma omp parallel for schedule(dynamic, chunk) num_threads(int(wanted))
#endif
  for (int64_t i = 0; i < count; ++i) failure.keep_from([&] { f(states[size_t(thread_number())], i); });
  failure.rethrow();
}

}  // namespace case_wtal
