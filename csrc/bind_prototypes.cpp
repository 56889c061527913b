#include "bindings.h"
#include "prototypes.h"

namespace case_wtal {
namespace {

// dtype, (groups, rows, columns, width), embeddings, weights, normalisation.
using Problem = std::tuple<std::string, std::tuple<int64_t, int64_t, int64_t, int64_t>, Matrix, Matrix, std::string>;
using Two = std::tuple<Address, Address>;  // sums and sizes in prototypes.h

PrototypeNorm norm_of(const std::string& name) {
  if (name == "sum") return PrototypeNorm::kSum;
  if (name == "mean") return PrototypeNorm::kMean;
  if (name == "l2") return PrototypeNorm::kL2;
  throw py::value_error("normalize must be 'mean', 'l2' or 'sum', got '" + name + "'");
}

// run(the problem in the type of the dtype).
template <typename Run>
void with_problem(const Problem& given, const Run& run) {
  const auto& [dtype, sizes, e, w, name] = given;
  const auto [groups, rows, columns, width] = sizes;
  check_size("groups", groups);
  check_size("rows", rows);
  check_size("columns", columns);
  check_size("width", width);
  const PrototypeNorm norm = norm_of(name);
  dispatch(dtype,
           [&, groups = groups, rows = rows, columns = columns, width = width, &e = e, &w = w](auto zero) {
             using T = decltype(zero);
             run(PrototypeProblem<T>{groups, rows, columns, width,
                                     matrix<T>("embeddings", e, groups * rows * width),
                                     matrix<T>("weights", w, groups * rows * columns), norm});
           });
}

void prototypes(const Problem& given, Address z, const Two& kept, int num_threads) {
  with_problem(given, [&](const auto& problem) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(problem.e.data)>>;
    const auto [sums, sizes] = kept;
    const PrototypeOutputs<T> outputs{pointer<T>("z", z, problem.groups * problem.columns * problem.width),
                                      reinterpret_cast<T*>(sums), reinterpret_cast<T*>(sizes)};
    py::gil_scoped_release release;
    prototypes_cpu(problem, outputs, num_threads);
  });
}

void prototypes_backward(const Problem& given, const Two& kept, Address cotangent, const Two& results,
                         int num_threads) {
  with_problem(given, [&](const auto& problem) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(problem.e.data)>>;
    const auto [sums, sizes] = kept;
    const auto [e, w] = results;
    const int64_t columns = problem.groups * problem.columns;
    const PrototypeOutputs<T> outputs{nullptr, pointer<T>("sums", sums, columns * problem.width),
                                      pointer<T>("sizes", sizes, columns)};
    const PrototypeGradients<T> gradients{pointer<const T>("cotangent", cotangent, columns * problem.width),
                                          reinterpret_cast<T*>(e), reinterpret_cast<T*>(w)};
    py::gil_scoped_release release;
    prototypes_backward_cpu(problem, outputs, gradients, num_threads);
  });
}

}  // namespace

void bind_prototypes(py::module_& module) {
  module.def("prototypes_cpu", &prototypes, py::arg("problem"), py::arg("z"), py::arg("kept"),
             py::arg("num_threads") = 0,
             "Weighted sums of rows, normalised, and what backward reads, 0: not wanted (csrc/prototypes.h).");
  module.def("prototypes_backward_cpu", &prototypes_backward, py::arg("problem"), py::arg("kept"),
             py::arg("cotangent"), py::arg("results"), py::arg("num_threads") = 0,
             "Their gradients (embeddings, weights), contiguous; an address of 0 stands for what is not wanted.");
}

}  // namespace case_wtal
