// The gradient of the iterations that ran, from their column potentials. With P^t the plan of v^t after the row step,
// S^t_k = sum_n P^t_nk r_n and g^t the cotangent of v^t, backwards through v^{t+1} = log c + v^t - log S^t:
//     h_k = g^{t+1}_k / S^t_k    H_n = sum_k h_k P^t_nk    g^t_k = sum_n r_n H_n P^t_nk
//     dL_nk = -r_n P^t_nk (h_k - H_n)    d log c_k = g^{t+1}_k    d r_n = -H_n
// and through v^1 = log c - log C, C_k = sum_n exp(L_nk): dL_nk = -g^1_k exp(L_nk) / C_k.
#include "fresh_pages.h"
#include "sinkhorn_backward_pass.h"
#include "sinkhorn_solve.h"

namespace case_wtal {
namespace {

template <typename T>
class Gradient {
 public:
  Gradient(const SinkhornProblem<T>& problem, const View<T>& view, const SinkhornHistory& history, T* matrix,
           int threads)
      : view_(view), history_(history), threads_(threads), k_(view.k), ran_(int(*history.ran)),
        sigma_(problem.sigma), total_(row_total(view)),
        ones_(std::max(k_, grid_of(view).tile), T(1)), v_(ran_ * k_), factor_(ran_ * k_), factor_h_(ran_ * k_),
        cotangent_(k_), column_cotangent_(k_),
        tiles_{&view_, grid_of(view), Domain::linear, matrix, false, nullptr, ones_.data()},
        shift_(tiles_.grid.tiles()), sums_(tiles_.grid.chunks * 2 * k_) {
    tiles_.shift = shift_.data();
    for (int t = 0; t < ran_; ++t) {
      const Span span(history.v + t * k_, k_);
      const bool linear = problem.linear_range > 0 && span.linear(*history.lowest, problem.linear_range);
      if (!linear) tiles_.domain = Domain::log;
    }
    const bool linear = tiles_.domain == Domain::linear;
    for (int t = 0; t < ran_; ++t) {
      T* factor = (linear ? factor_ : v_).data() + t * k_;
      const double* v = history.v + t * k_;
      factor_of(v, k_, tiles_.domain, Span(v, k_).top, factor);
      iterations_.push_back({linear ? nullptr : factor, linear ? factor : ones_.data(), factor_h_.data() + t * k_});
    }
  }

  // grad_v: (k) or null; the outputs of `step` are those of this problem.
  void solve(const Cotangent<T>& given, const T* grad_v, GradientStep<T> step, T* centers, T* column_marginal) {
    run_and_add(LastCotangent<T>{iterations_.back(), given, sums_.data()}, iterations_.back());
    for (int64_t k = 0; k < k_ && grad_v; ++k) cotangent_[k] += grad_v[k];
    const double weight = total_ == 0 ? 0 : 1 / total_;
    for (int t = ran_ - 2; t >= 0; --t) {
      const double* column = history_.columns + (t + 1) * k_;
      for (int64_t k = 0; k < k_; ++k) {
        const bool mass = column[k] != -kInfinity<double>;
        const double h = mass ? cotangent_[k] / (std::exp(column[k]) * weight) : 0;
        column_cotangent_[k] += mass ? cotangent_[k] : 0;
        factor_h_[t * k_ + k] = T(iterations_[t].factor[k] * h);
      }
      run_and_add(EarlierCotangent<T>{iterations_[t], weight, sums_.data()}, iterations_[t]);
    }
    std::vector<T> first_cotangent(k_), first_column(k_);
    for (int64_t k = 0; k < k_; ++k) {
      const bool mass = history_.columns[k] != -kInfinity<double>;
      first_cotangent[k] = mass ? T(cotangent_[k]) : T(0);
      first_column[k] = mass ? T(history_.columns[k]) : kInfinity<T>;
      column_cotangent_[k] += first_cotangent[k];
    }
    step.iterations = iterations_.data();
    step.ran = ran_;
    step.given = given;
    step.first_cotangent = first_cotangent.data();
    step.first_column = first_column.data();
    step.weight = weight;
    step.center_sums = centers ? sums_.data() : nullptr;
    run(tiles_, step, threads_);
    if (centers) add_centers(centers);
    for (int64_t k = 0; k < k_ && column_marginal; ++k) {
      const double c = view_.column_marginal[k];
      column_marginal[k] = c == 0 ? T(0) : T(column_cotangent_[k] / c);
    }
  }

 private:
  template <typename Step>
  void run_and_add(const Step& step, const Iteration<T>& iteration) {
    run(tiles_, step, threads_);
    tiles_.stored = true;
    add_chunks(sums_.data(), tiles_.grid, cotangent_.data());
    for (int64_t k = 0; k < k_; ++k) cotangent_[k] *= iteration.factor[k];
  }

  // L_nk has -(p_n - c_k)^2 / (2 sigma^2).
  void add_centers(T* centers) const {
    for (int64_t k = 0; k < k_; ++k) {
      double positions = 0, entries = 0;
      for (int64_t chunk = 0; chunk < tiles_.grid.chunks; ++chunk) {
        positions += sums_[chunk * 2 * k_ + k];
        entries += sums_[chunk * 2 * k_ + k_ + k];
      }
      centers[k] = T((positions - entries * view_.centers[k]) / (sigma_ * sigma_));
    }
  }

  const View<T> view_;
  const SinkhornHistory history_;
  const int threads_;
  const int64_t k_;
  const int ran_;
  const double sigma_, total_;
  const std::vector<T> ones_;
  std::vector<T> v_, factor_, factor_h_;
  std::vector<Iteration<T>> iterations_;
  std::vector<double> cotangent_, column_cotangent_;  // of the v at hand, and of log c
  Tiles<T> tiles_;
  std::vector<T> shift_;
  std::vector<double> sums_;
};

}  // namespace

template <typename T>
void sinkhorn_backward_cpu(const SinkhornProblem<T>& p, const SinkhornHistory& history, const SinkhornGradients<T>& g,
                           int num_threads) {
  const int64_t matrix = p.n * p.k;
  for (T* gradient : {g.logits, g.prior}) expect_to_fill(gradient, p.batch * matrix);
  const auto at = [](auto* base, int64_t offset) { return base ? base + offset : nullptr; };
  each_problem(p.batch, matrix, num_threads, [&](int64_t b, int threads) {
    GradientStep<T> step{};
    step.logits = g.logits + b * matrix;
    step.prior = at(g.prior, b * matrix);
    step.row_marginal = at(g.row_marginal, b * p.n);
    Gradient<T> gradient(p, view_of(p, b), history_of(history, b, p.n_iters, p.k), step.logits, threads);
    gradient.solve({at(g.grad_q, b * matrix), at(g.grad_u, b * p.n)}, at(g.grad_v, b * p.k), step,
                   at(g.centers, b * p.k), at(g.column_marginal, b * p.k));
  });
}

template void sinkhorn_backward_cpu(const SinkhornProblem<float>&, const SinkhornHistory&,
                                    const SinkhornGradients<float>&, int);
template void sinkhorn_backward_cpu(const SinkhornProblem<double>&, const SinkhornHistory&,
                                    const SinkhornGradients<double>&, int);

}  // namespace case_wtal
