#include <limits>
#include <vector>

#include "parallel.h"
#include "radix_sort.h"
#include "sinkhorn.h"

namespace case_wtal {
namespace {

template <typename T>
void positions_of_one(const T* scores, const unsigned char* valid, T* positions, int64_t n, bool argsort) {
  std::vector<Entry<typename Format<T>::Bits>> entries(n), spare;
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    const bool counts = !valid || valid[i];
    entries[i] = {descending_key(counts ? scores[i] : -std::numeric_limits<T>::infinity()), uint32_t(i)};
    count += counts;
  }
  stable_sort(entries, spare);
  const T total = T(count > 0 ? count : 1);
  for (int64_t place = 0; place < n; ++place) {
    const int64_t row = entries[place].row;
    if (argsort) {
      positions[place] = T(row + 1) / total;
    } else {
      positions[row] = T(place + 1) / total;
    }
  }
}

}  // namespace

template <typename T>
void rank_positions_cpu(const T* scores, const unsigned char* valid, T* positions, int64_t batch, int64_t n,
                        bool argsort, int num_threads) {
  if (n == 0) return;
  parallel_for(batch, threads_worth(batch * n, num_threads), [&](int64_t b) {
    positions_of_one(scores + b * n, valid ? valid + b * n : nullptr, positions + b * n, n, argsort);
  });
}

template void rank_positions_cpu(const float*, const unsigned char*, float*, int64_t, int64_t, bool, int);
template void rank_positions_cpu(const double*, const unsigned char*, double*, int64_t, int64_t, bool, int);

}  // namespace case_wtal
