#include "sinkhorn.h"

#include <atomic>

#include "fresh_pages.h"
#include "sinkhorn_solve.h"

namespace case_wtal {
namespace {

// Column sums of the plan below this have lost digits to terms that underflow.
template <typename T>
constexpr double kTrusted = 1e-24;
template <>
constexpr double kTrusted<double> = 1e-250;

// One problem. Where a plan is wanted, its memory holds the matrix from pass to pass.
template <typename T>
class Solver {
 public:
  Solver(const SinkhornProblem<T>& problem, const View<T>& view, T* q, T* u, int threads)
      : problem_(problem), view_(view), q_(q), u_(u), threads_(threads), k_(view.k), log_c_(log_columns(view)),
        total_(row_total(view)), v_(k_), column_(k_), factor_(k_), empty_(k_), known_(k_), lost_(k_),
        ones_(std::max(k_, grid_of(view).tile), T(1)),
        tiles_{&view_, grid_of(view), Domain::log, q, false, nullptr, ones_.data()},
        shift_(tiles_.grid.tiles()), sums_(tiles_.grid.chunks * k_), peaks_(sums_.size()) {
    tiles_.shift = shift_.data();
  }

  // Returns false if a column's mass was too small for sums of the plan.
  bool solve(T* v_out, SinkhornHistory history) {
    bool regular = true;
    start();
    for (int64_t k = 0; k < k_; ++k) {
      empty_[k] = column_[k] == -kInfinity<double>;
      known_[k] = empty_[k] || !view_.row_marginal;
      v_[k] = empty_[k] ? 0 : held(log_c_[k] - column_[k]);
    }
    int ran = 0;
    for (;; ++ran) {
      if (history.v) {
        std::copy(v_.begin(), v_.end(), history.v + ran * k_);
        std::copy(column_.begin(), column_.end(), history.columns + ran * k_);
      }
      if (ran + 1 == problem_.n_iters) break;
      row_step(true, nullptr, nullptr);
      regular &= log_sums();
      if (balanced()) break;
      for (int64_t k = 0; k < k_; ++k) {
        if (log_c_[k] > -kInfinity<double> || empty_[k]) v_[k] = empty_[k] ? 0 : held(log_c_[k] + v_[k] - column_[k]);
      }
    }
    if (q_ || u_) row_step(false, q_, u_);
    if (v_out) std::copy(v_.begin(), v_.end(), v_out);
    if (history.v) {
      *history.ran = ran + 1;
      *history.lowest = tiles_.domain == Domain::linear ? lowest_ : -kInfinity<double>;
    }
    return regular;
  }

 private:
  // A column potential as the next sums, and where it is a result the row potentials, take it: rounded to T.
  double held(double v) const { return u_ || tiles_.domain == Domain::log ? double(T(v)) : v; }

  // column_k = log sum_n exp(L_nk).
  void start() {
    const double range = problem_.linear_range;
    if (range > 0) {
      tiles_.domain = Domain::linear;
      std::vector<Extent<T>> extents(tiles_.grid.chunks);
      run(tiles_, LinearStart<T>{sums_.data(), peaks_.data(), extents.data()}, threads_);
      tiles_.stored = tiles_.matrix != nullptr;
      Extent<T> all;
      for (const Extent<T>& one : extents) {
        all = {std::min(all.low, one.low), std::max(all.high, one.high), std::min(all.prior_low, one.prior_low),
               std::max(all.prior_high, one.prior_high)};
      }
      const double prior_low = view_.prior ? std::log(double(all.prior_low)) : 0;
      const double prior_high = view_.prior ? std::log(double(all.prior_high)) : 0;
      lowest_ = double(all.low) - double(all.high) + prior_low;
      if (lowest_ >= -range && prior_high <= range) return add_columns();
      to_logs();
    }
    column_step(nullptr);
  }

  void to_logs() {
    if (tiles_.domain == Domain::linear) tiles_.stored = false;
    tiles_.domain = Domain::log;
  }

  void column_step(const T* weights) {
    run(tiles_, ColumnStep<T>{weights, sums_.data(), peaks_.data()}, threads_);
    tiles_.stored = tiles_.matrix != nullptr;
    add_columns();
  }

  // column_k = log of the chunks' sums, each times exp(its peak).
  void add_columns() {
    const int64_t chunks = tiles_.grid.chunks;
    for (int64_t k = 0; k < k_; ++k) {
      double top = -kInfinity<double>, total = 0;
      for (int64_t c = 0; c < chunks; ++c) top = std::max(top, peaks_[c * k_ + k]);
      for (int64_t c = 0; c < chunks; ++c) {
        // Without a peak sums are 0 or NaN.
        total += sums_[c * k_ + k] * (top > -kInfinity<double> ? std::exp(peaks_[c * k_ + k] - top) : 1.0);
      }
      column_[k] = total == 0 ? -kInfinity<double> : top + std::log(total);
    }
  }

  // The row step for v_; with `sums`, the column sums of the plan go to sums_.
  void row_step(bool sums, T* q, T* u) {
    const Span span(v_.data(), k_);
    if (tiles_.domain == Domain::linear && !span.linear(lowest_, problem_.linear_range)) to_logs();
    const bool linear = tiles_.domain == Domain::linear;
    factor_of(v_.data(), k_, tiles_.domain, span.top, factor_.data());
    const double weight = total_ == 0 ? 0 : 1 / total_;
    run(tiles_,
        RowStep<T>{linear ? nullptr : factor_.data(), linear ? factor_.data() : ones_.data(),
                   linear ? T(span.top) : T(0), weight, sums ? sums_.data() : nullptr, q, u},
        threads_);
    tiles_.stored = tiles_.matrix != nullptr;
  }

  // column_k = log sum_n P_nk r_n; where that is too small, from L + a + log r. Returns false if it then was not 0.
  bool log_sums() {
    add_chunks(sums_.data(), tiles_.grid, column_.data());
    bool found = true;
    for (int64_t k = 0; k < k_; ++k) {
      if (tiles_.domain == Domain::linear) column_[k] *= factor_[k];
      lost_[k] = !empty_[k] && log_c_[k] > -kInfinity<double> && column_[k] < kTrusted<T>;
      known_[k] |= log_c_[k] > -kInfinity<double> && !lost_[k];
      found &= known_[k] && !lost_[k];
    }
    if (found) {
      for (double& sum : column_) sum = std::log(sum) + std::log(total_);
      return true;
    }
    std::vector<T> weights(view_.n);
    row_step(false, nullptr, weights.data());
    for (int64_t n = 0; n < view_.n; ++n) {
      const T r = view_.row_marginal ? view_.row_marginal[n] : T(1);
      weights[n] = r == 0 ? -kInfinity<T> : weights[n] + std::log(weight_of(r));
    }
    to_logs();
    column_step(weights.data());
    bool regular = true;
    for (int64_t k = 0; k < k_; ++k) {
      known_[k] = true;
      empty_[k] = column_[k] == -kInfinity<double>;
      regular &= empty_[k] || !lost_[k];
      if (!empty_[k]) column_[k] += v_[k];
    }
    return regular;
  }

  // Whether all columns' shares of the mass are within tol of their marginal's.
  bool balanced() const {
    if (problem_.tol < 0) return false;
    double mass = 0, wanted = 0, furthest = 0;
    const double top = Span(column_.data(), k_).top, top_c = Span(log_c_.data(), k_).top;
    for (int64_t k = 0; k < k_; ++k) {
      mass += std::exp(column_[k] - top);
      wanted += std::exp(log_c_[k] - top_c);
    }
    if (mass == 0 || wanted == 0) return false;
    for (int64_t k = 0; k < k_; ++k) {
      const double gap = std::exp(column_[k] - top) / mass - std::exp(log_c_[k] - top_c) / wanted;
      furthest = std::max(furthest, std::abs(gap));
    }
    return furthest < problem_.tol;
  }

  const SinkhornProblem<T>& problem_;
  const View<T> view_;
  T *q_, *u_;
  const int threads_;
  const int64_t k_;
  const std::vector<double> log_c_;
  const double total_;
  std::vector<double> v_, column_;
  std::vector<T> factor_;
  // Columns without mass of positive weight; those for which that is known; those whose sum was too small.
  std::vector<char> empty_, known_, lost_;
  const std::vector<T> ones_;
  Tiles<T> tiles_;
  std::vector<T> shift_;
  std::vector<double> sums_, peaks_;
  double lowest_ = -kInfinity<double>;
};

}  // namespace

template <typename T>
bool sinkhorn_cpu(const SinkhornProblem<T>& p, T* q, T* u, T* v, const SinkhornHistory& history, int num_threads) {
  std::atomic<bool> regular{true};
  expect_to_fill(q, p.batch * p.n * p.k);
  each_problem(p.batch, p.n * p.k, num_threads, [&](int64_t b, int threads) {
    T* q_of_one = q ? q + b * p.n * p.k : nullptr;
    T* u_of_one = u ? u + b * p.n : nullptr;
    Solver<T> solver(p, view_of(p, b), q_of_one, u_of_one, threads);
    if (!solver.solve(v ? v + b * p.k : nullptr, history_of(history, b, p.n_iters, p.k))) regular = false;
  });
  return regular;
}

template bool sinkhorn_cpu(const SinkhornProblem<float>&, float*, float*, float*, const SinkhornHistory&, int);
template bool sinkhorn_cpu(const SinkhornProblem<double>&, double*, double*, double*, const SinkhornHistory&, int);

}  // namespace case_wtal
