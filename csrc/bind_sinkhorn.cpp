#include <tuple>

#include "bindings.h"
#include "simd_arrays.h"
#include "sinkhorn.h"

namespace case_wtal {
namespace {

using Address = uintptr_t;
using Matrix = std::tuple<Address, int64_t, int64_t>;
using Mask = std::tuple<Address, int64_t, int64_t, int64_t>;
using Rank = std::tuple<Address, Address, double>;
using Settings = std::tuple<double, int, double, double>;
// dtype, (batch, n, k), logits, prior, mask, rank prior, (row, column marginal), (scale, n_iters, tol, linear_range).
using Problem = std::tuple<std::string, std::tuple<int64_t, int64_t, int64_t>, Matrix, Matrix, Mask, Rank,
                           std::tuple<Address, Address>, Settings>;
using History = std::tuple<Address, Address, Address, Address>;

template <typename T>
T* maybe(Address address) {
  return reinterpret_cast<T*>(address);
}

template <typename T>
SinkhornProblem<T> problem_of(const Problem& given) {
  const auto& [dtype, sizes, logits, prior, mask, rank, marginals, settings] = given;
  const auto [batch, n, k] = sizes;
  check_size("batch", batch);
  check_size("n", n);
  if (k < 1) throw py::value_error("k must be at least 1, got " + std::to_string(k));
  const auto [scale, n_iters, tol, linear_range] = settings;
  if (n_iters < 1) throw py::value_error("n_iters must be at least 1, got " + std::to_string(n_iters));
  const auto matrix = [](const T* data, const Matrix& m) {
    return typename SinkhornProblem<T>::Matrix{data, std::get<1>(m), std::get<2>(m)};
  };
  SinkhornProblem<T> problem{};
  problem.batch = batch;
  problem.n = n;
  problem.k = k;
  problem.logits = matrix(pointer<const T>("logits", std::get<0>(logits), batch * n), logits);
  problem.prior = matrix(maybe<const T>(std::get<0>(prior)), prior);
  const auto [mask_address, mask_batch, mask_row, mask_column] = mask;
  problem.mask = {maybe<const unsigned char>(mask_address), mask_batch, mask_row, mask_column};
  const auto [positions, centers, sigma] = rank;
  problem.positions = maybe<const T>(positions);
  problem.centers = pointer<const T>("centers", centers, positions ? k : 0);
  problem.sigma = sigma;
  problem.row_marginal = maybe<const T>(std::get<0>(marginals));
  problem.column_marginal = maybe<const T>(std::get<1>(marginals));
  problem.scale = scale;
  problem.n_iters = n_iters;
  problem.tol = tol;
  problem.linear_range = linear_range;
  return problem;
}

SinkhornHistory history_of(const History& history) {
  const auto [v, columns, ran, lowest] = history;
  return {maybe<double>(v), maybe<double>(columns), maybe<double>(ran), maybe<double>(lowest)};
}

bool sinkhorn(const Problem& given, Address q, Address u, Address v, const History& history, int num_threads) {
  return dispatch(std::get<0>(given), [&](auto zero) {
    using T = decltype(zero);
    const SinkhornProblem<T> problem = problem_of<T>(given);
    py::gil_scoped_release release;
    return sinkhorn_cpu<T>(problem, maybe<T>(q), maybe<T>(u), maybe<T>(v), history_of(history), num_threads);
  });
}

void sinkhorn_backward(const Problem& given, const History& history, const std::tuple<Address, Address, Address>& grads,
                       const std::tuple<Address, Address, Address, Address, Address>& results, int num_threads) {
  dispatch(std::get<0>(given), [&](auto zero) {
    using T = decltype(zero);
    const SinkhornProblem<T> problem = problem_of<T>(given);
    const auto [q, u, v] = grads;
    const auto [logits, prior, centers, row_marginal, column_marginal] = results;
    const SinkhornGradients<T> gradients{
        maybe<const T>(q), maybe<const T>(u), maybe<const T>(v),
        pointer<T>("the gradient of logits", logits, problem.batch * problem.n), maybe<T>(prior), maybe<T>(centers),
        maybe<T>(row_marginal), maybe<T>(column_marginal)};
    py::gil_scoped_release release;
    sinkhorn_backward_cpu<T>(problem, history_of(history), gradients, num_threads);
  });
}

void rank_positions(Address scores, Address valid, Address out, int64_t batch, int64_t n, const std::string& dtype,
                    bool argsort, int num_threads) {
  check_size("batch", batch);
  check_size("n", n);
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* from = pointer<const T>("scores", scores, batch * n);
    T* to = pointer<T>("out", out, batch * n);
    py::gil_scoped_release release;
    rank_positions_cpu(from, maybe<const unsigned char>(valid), to, batch, n, argsort, num_threads);
  });
}

void rank_prior(Address positions, Address centers, double sigma, Address out, int64_t batch, int64_t n, int64_t k,
                const std::string& dtype, int num_threads) {
  check_size("batch", batch);
  check_size("n", n);
  check_size("k", k);
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* rows = pointer<const T>("positions", positions, batch * n);
    const T* columns = pointer<const T>("centers", centers, batch * k);
    T* to = pointer<T>("out", out, batch * n * k);
    py::gil_scoped_release release;
    rank_prior_cpu(rows, columns, sigma, to, batch, n, k, num_threads);
  });
}

template <auto f32, auto f64>
void over_array(Address x, Address out, int64_t count, const std::string& dtype) {
  check_size("count", count);
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* from = pointer<const T>("x", x, count);
    T* to = pointer<T>("out", out, count);
    if constexpr (std::is_same_v<T, float>) {
      f32(from, to, count);
    } else {
      f64(from, to, count);
    }
  });
}

void pow_array(Address x, double q, Address out, int64_t count, const std::string& dtype) {
  check_size("count", count);
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* from = pointer<const T>("x", x, count);
    T* to = pointer<T>("out", out, count);
    if constexpr (std::is_same_v<T, float>) {
      pow_array_f32(from, q, to, count);
    } else {
      pow_array_f64(from, q, to, count);
    }
  });
}

}  // namespace

void bind_sinkhorn(py::module_& module) {
  module.def("sinkhorn_cpu", &sinkhorn, py::arg("problem"), py::arg("q"), py::arg("u"), py::arg("v"),
             py::arg("history"), py::arg("num_threads") = 0,
             "Sinkhorn plans (csrc/sinkhorn.h); an address of 0 stands for what is absent or not wanted. False: the "
             "history does not do for the gradient.");
  module.def("sinkhorn_backward_cpu", &sinkhorn_backward, py::arg("problem"), py::arg("history"), py::arg("grads"),
             py::arg("results"), py::arg("num_threads") = 0,
             "Its gradients: cotangents (q, u, v) -> (logits, prior, centers, row_marginal, column_marginal).");
  module.def("rank_positions_cpu", &rank_positions, py::arg("scores"), py::arg("valid"), py::arg("out"),
             py::arg("batch"), py::arg("n"), py::arg("dtype"), py::arg("argsort") = false, py::arg("num_threads") = 0,
             "Relative ranks in (0, 1] of scores (batch, n), by falling score, ties in order of appearance.");
  module.def("rank_prior_cpu", &rank_prior, py::arg("positions"), py::arg("centers"), py::arg("sigma"), py::arg("out"),
             py::arg("batch"), py::arg("n"), py::arg("k"), py::arg("dtype"), py::arg("num_threads") = 0,
             "Rank priors (batch, n, k) from relative ranks (batch, n) and centres (batch, k).");
  module.def("exp_cpu", &over_array<&exp_array_f32, &exp_array_f64>, py::arg("x"), py::arg("out"), py::arg("count"),
             py::arg("dtype"), "The vectorised exp of csrc/simd.h, for its tests.");
  module.def("log_cpu", &over_array<&log_array_f32, &log_array_f64>, py::arg("x"), py::arg("out"), py::arg("count"),
             py::arg("dtype"), "The vectorised log of csrc/simd.h, for its tests.");
  module.def("pow_cpu", &pow_array, py::arg("x"), py::arg("q"), py::arg("out"), py::arg("count"), py::arg("dtype"),
             "The vectorised pow of csrc/simd.h, for its tests.");
}

}  // namespace case_wtal
