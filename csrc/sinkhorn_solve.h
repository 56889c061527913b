// What the forward and the backward solver share: one problem of a batch, and how a batch is spread over threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "sinkhorn.h"
#include "sinkhorn_pass.h"

namespace case_wtal {

template <typename T>
View<T> view_of(const SinkhornProblem<T>& p, int64_t b) {
  const auto at = [](auto* base, int64_t offset) { return base ? base + offset : nullptr; };
  View<T> view{};
  view.n = p.n;
  view.k = p.k;
  view.logits = at(p.logits.data, b * p.logits.batch_stride);
  view.logits_stride = p.logits.row_stride;
  view.prior = at(p.prior.data, b * p.prior.batch_stride);
  view.prior_stride = p.prior.row_stride;
  view.mask = at(p.mask.data, b * p.mask.batch_stride);
  view.mask_stride = p.mask.row_stride;
  view.mask_column_stride = p.mask.column_stride;
  view.positions = at(p.positions, b * p.n);
  view.centers = at(p.centers, b * p.k);
  view.inverse = T(1 / (2 * p.sigma * p.sigma));
  view.row_marginal = at(p.row_marginal, b * p.n);
  view.column_marginal = at(p.column_marginal, b * p.k);
  view.scale = T(p.scale);
  return view;
}

inline SinkhornHistory history_of(const SinkhornHistory& all, int64_t b, int64_t n_iters, int64_t k) {
  if (!all.v) return {};
  const int64_t at = b * n_iters * k;
  return {all.v + at, all.columns + at, all.ran + b, all.lowest + b};
}

// solve(problem index, threads for it): large problems one after the other with all threads on each, small ones side by
// side on one thread each.
template <typename F>
void each_problem(int64_t batch, int64_t entries, int num_threads, const F& solve) {
  constexpr int64_t large = 1 << 17;
  if (batch == 1 || entries >= large) {
    for (int64_t b = 0; b < batch; ++b) solve(b, thread_count(num_threads));
  } else {
    parallel_for(batch, threads_worth(batch * entries, num_threads), [&](int64_t b) { solve(b, 1); });
  }
}

// sum(r).
template <typename T>
double row_total(const View<T>& view) {
  if (!view.row_marginal) return double(view.n);
  double total = 0;
  for (int64_t n = 0; n < view.n; ++n) total += weight_of(view.row_marginal[n]);
  return total;
}

// log c_k; -infinity where c_k is 0.
template <typename T>
std::vector<double> log_columns(const View<T>& view) {
  std::vector<double> log_c(view.k, 0.0);
  if (!view.column_marginal) return log_c;
  for (int64_t k = 0; k < view.k; ++k) {
    const double c = view.column_marginal[k];
    log_c[k] = c == 0 ? -kInfinity<double> : std::log(weight_of(c));
  }
  return log_c;
}

// (chunks, k) -> k, in the order of the chunks.
inline void add_chunks(const double* sums, const Grid& grid, double* total) {
  std::fill_n(total, grid.k, 0.0);
  for (int64_t chunk = 0; chunk < grid.chunks; ++chunk) {
    for (int64_t k = 0; k < grid.k; ++k) total[k] += sums[chunk * grid.k + k];
  }
}

// The largest and smallest finite potential.
struct Span {
  double top = -kInfinity<double>, bottom = kInfinity<double>;
  explicit Span(const double* v, int64_t k) {
    for (int64_t j = 0; j < k; ++j) {
      if (!std::isfinite(v[j])) continue;
      top = std::max(top, v[j]);
      bottom = std::min(bottom, v[j]);
    }
    if (top < bottom) top = bottom = 0;
  }
  // Whether products of exp(v - top) and matrix entries of at least exp(lowest) are safe from underflow.
  bool linear(double lowest, double range) const { return lowest - (top - bottom) >= -range; }
};

// The factor of the plan of potentials v (RowStep): exp(v - top) in the linear domain; in the log domain v in T.
template <typename T>
void factor_of(const double* v, int64_t k, Domain domain, double top, T* out) {
  for (int64_t j = 0; j < k; ++j) out[j] = domain == Domain::linear ? T(std::exp(v[j] - top)) : T(v[j]);
}

}  // namespace case_wtal
