#include "bindings.h"
#include "cosine.h"

namespace case_wtal {
namespace {

// dtype, (groups, rows, columns, width), x, y, scale, unit_y, softmax.
using Problem =
    std::tuple<std::string, std::tuple<int64_t, int64_t, int64_t, int64_t>, Matrix, Address, double, bool, bool>;
using Two = std::tuple<Address, Address>;

// run(the problem in the type of the dtype, its outputs).
template <typename Run>
void with_problem(const Problem& given, const Two& outputs, const Run& run) {
  const auto& [dtype, sizes, x, y, scale, unit_y, softmax] = given;
  const auto [groups, rows, columns, width] = sizes;
  const auto [out, lengths] = outputs;
  check_size("groups", groups);
  check_size("rows", rows);
  check_size("columns", columns);
  check_size("width", width);
  dispatch(dtype, [&, groups = groups, rows = rows, columns = columns, width = width, &x = x, y = y, scale = scale,
                   unit_y = unit_y, softmax = softmax, out = out, lengths = lengths](auto zero) {
    using T = decltype(zero);
    const CosineProblem<T> problem{groups,   rows,  columns,
                                   width,    matrix<T>("x", x, groups * rows * width),
                                   pointer<const T>("y", y, groups * columns * width),
                                   T(scale), unit_y, softmax};
    run(problem, CosineOutputs<T>{pointer<T>("out", out, groups * rows * columns), reinterpret_cast<T*>(lengths)});
  });
}

void cosine(const Problem& given, const Two& outputs, int num_threads) {
  with_problem(given, outputs, [&](const auto& problem, const auto& outputs) {
    py::gil_scoped_release release;
    cosine_cpu(problem, outputs, num_threads);
  });
}

void cosine_backward(const Problem& given, const Two& outputs, Address cotangent, const Two& results, int num_threads) {
  with_problem(given, outputs, [&](const auto& problem, const auto& outputs) {
    using T = std::remove_pointer_t<decltype(outputs.out)>;
    const int64_t rows = problem.groups * problem.rows;
    pointer<T>("lengths", reinterpret_cast<Address>(outputs.lengths), rows);
    const CosineGradients<T> gradients{pointer<const T>("cotangent", cotangent, rows * problem.columns),
                                       reinterpret_cast<T*>(std::get<0>(results)),
                                       reinterpret_cast<T*>(std::get<1>(results))};
    py::gil_scoped_release release;
    cosine_backward_cpu(problem, outputs, gradients, num_threads);
  });
}

}  // namespace

void bind_cosine(py::module_& module) {
  module.def("cosine_cpu", &cosine, py::arg("problem"), py::arg("outputs"), py::arg("num_threads") = 0,
             "Scaled cosines or their softmax, and the lengths of x, 0: not wanted (csrc/cosine.h).");
  module.def("cosine_backward_cpu", &cosine_backward, py::arg("problem"), py::arg("outputs"), py::arg("cotangent"),
             py::arg("results"), py::arg("num_threads") = 0,
             "Their gradients (x, y), contiguous; an address of 0 stands for what is not wanted.");
}

}  // namespace case_wtal
