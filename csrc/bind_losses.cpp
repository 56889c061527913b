#include "bindings.h"
#include "losses.h"

namespace case_wtal {
namespace {

// dtype, (batch, n, k), logits or probabilities, targets.
using Rows = std::tuple<std::string, std::tuple<int64_t, int64_t, int64_t>, Matrix, Matrix>;
// Gradients of the two, 0 where not wanted.
using Results = std::tuple<Address, Address>;

// run(rows in the type of the dtype).
template <typename Run>
void with_rows(const Rows& given, const Run& run) {
  const auto& [dtype, sizes, x, t] = given;
  const auto [batch, n, k] = sizes;
  check_size("batch", batch);
  check_size("n", n);
  check_size("k", k);
  dispatch(dtype, [&, &x = x, &t = t, batch = batch, n = n, k = k](auto zero) {
    using T = decltype(zero);
    run(RowPairs<T>{batch, n, k, matrix<T>("x", x, batch * n * k), matrix<T>("targets", t, batch * n * k)});
  });
}

// run(rows, losses).
template <typename Run>
void forward(const Rows& given, Address losses, const Run& run) {
  with_rows(given, [&](auto rows) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(rows.x.data)>>;
    T* to = pointer<T>("losses", losses, rows.batch * rows.n);
    py::gil_scoped_release release;
    run(rows, to);
  });
}

// run(rows, gradients).
template <typename Run>
void backward(const Rows& given, const Matrix& cotangent, const Results& results, const Run& run) {
  with_rows(given, [&](auto rows) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(rows.x.data)>>;
    const auto [x, t] = results;
    const RowGradients<T> gradients{matrix<T>("cotangent", cotangent, rows.batch * rows.n), reinterpret_cast<T*>(x),
                                    reinterpret_cast<T*>(t)};
    py::gil_scoped_release release;
    run(rows, gradients);
  });
}

void soft(const Rows& rows, Address losses, int num_threads) {
  forward(rows, losses, [&](const auto& rows, auto* losses) { soft_cross_entropy_cpu(rows, losses, num_threads); });
}

void soft_backward(const Rows& rows, const Matrix& cotangent, const Results& results, int num_threads) {
  backward(rows, cotangent, results,
           [&](const auto& rows, const auto& to) { soft_cross_entropy_backward_cpu(rows, to, num_threads); });
}

void generalized(const Rows& rows, double q, Address losses, int num_threads) {
  forward(rows, losses,
          [&](const auto& rows, auto* losses) { generalized_cross_entropy_cpu(rows, q, losses, num_threads); });
}

void generalized_backward(const Rows& rows, double q, const Matrix& cotangent, const Results& results,
                          int num_threads) {
  backward(rows, cotangent, results,
           [&](const auto& rows, const auto& to) { generalized_cross_entropy_backward_cpu(rows, q, to, num_threads); });
}

}  // namespace

void bind_losses(py::module_& module) {
  module.def("soft_cross_entropy_cpu", &soft, py::arg("rows"), py::arg("losses"), py::arg("num_threads") = 0,
             "Soft cross entropies (batch, n) of rows (csrc/losses.h).");
  module.def("soft_cross_entropy_backward_cpu", &soft_backward, py::arg("rows"), py::arg("cotangent"),
             py::arg("results"), py::arg("num_threads") = 0,
             "Their gradients (logits, targets), contiguous; an address of 0 stands for what is not wanted.");
  module.def("generalized_cross_entropy_cpu", &generalized, py::arg("rows"), py::arg("q"), py::arg("losses"),
             py::arg("num_threads") = 0, "Generalized cross entropies (batch, n) of rows (csrc/losses.h).");
  module.def("generalized_cross_entropy_backward_cpu", &generalized_backward, py::arg("rows"), py::arg("q"),
             py::arg("cotangent"), py::arg("results"), py::arg("num_threads") = 0,
             "Their gradients (probabilities, targets), likewise.");
}

}  // namespace case_wtal
