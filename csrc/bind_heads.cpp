#include <tuple>

#include "bindings.h"
#include "heads.h"

namespace case_wtal {
namespace {

using Address = uintptr_t;
using Five = std::tuple<Address, Address, Address, Address, Address>;
// dtype, (groups, rows, hidden, classes, clusters), HeadWeights, scale, HeadOutputs.
using Problem = std::tuple<std::string, std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t>, Five, double, Five>;
using Cotangents = std::tuple<Address, Address, Address, Address>;
using Gradients = std::tuple<Address, Address, Address, Address, Address, Address>;

HeadSizes sizes_of(const Problem& problem) {
  const auto [groups, rows, hidden, classes, clusters] = std::get<1>(problem);
  check_size("groups", groups);
  check_size("rows", rows);
  check_size("hidden", hidden);
  check_size("classes", classes);
  check_size("clusters", clusters);
  return {groups, rows, hidden, classes, clusters};
}

template <typename T>
T* place(Address address) {
  return reinterpret_cast<T*>(address);
}

template <typename T>
HeadWeights<T> weights_of(const Problem& problem) {
  const auto [hidden_bias, cas, cas_bias, directions, attention_bias] = std::get<2>(problem);
  return {place<const T>(hidden_bias), place<const T>(cas), place<const T>(cas_bias), place<const T>(directions),
          place<const T>(attention_bias)};
}

template <typename T>
HeadOutputs<T> outputs_of(const Problem& problem, const HeadSizes& sizes) {
  const auto [hidden, cas, attention, logits, lengths] = std::get<4>(problem);
  return {pointer<T>("hidden", hidden, sizes.groups * sizes.rows * sizes.hidden), place<T>(cas), place<T>(attention),
          place<T>(logits), place<T>(lengths)};
}

void heads(const Problem& problem, int num_threads) {
  const HeadSizes sizes = sizes_of(problem);
  dispatch(std::get<0>(problem), [&](auto zero) {
    using T = decltype(zero);
    const HeadOutputs<T> outputs = outputs_of<T>(problem, sizes);
    py::gil_scoped_release release;
    heads_cpu(sizes, weights_of<T>(problem), T(std::get<3>(problem)), outputs, num_threads);
  });
}

void heads_backward(const Problem& problem, const Cotangents& given, const Gradients& results, int num_threads) {
  const HeadSizes sizes = sizes_of(problem);
  dispatch(std::get<0>(problem), [&](auto zero) {
    using T = decltype(zero);
    const auto [of_cas, of_embedding, of_attention, of_logits] = given;
    const auto [hidden, hidden_bias, cas, cas_bias, directions, attention_bias] = results;
    const HeadCotangents<T> cotangents{place<const T>(of_cas), place<const T>(of_embedding),
                                       place<const T>(of_attention), place<const T>(of_logits)};
    const HeadGradients<T> gradients{pointer<T>("the gradient of hidden", hidden, sizes.groups * sizes.rows),
                                     place<T>(hidden_bias), place<T>(cas), place<T>(cas_bias), place<T>(directions),
                                     place<T>(attention_bias)};
    const HeadOutputs<T> outputs = outputs_of<T>(problem, sizes);
    py::gil_scoped_release release;
    heads_backward_cpu(sizes, weights_of<T>(problem), T(std::get<3>(problem)), outputs, cotangents, gradients,
                       num_threads);
  });
}

}  // namespace

void bind_heads(py::module_& module) {
  module.def("heads_cpu", &heads, py::arg("problem"), py::arg("num_threads") = 0,
             "Bias and relu of the hidden layers, and the heads' outputs (csrc/heads.h).");
  module.def("heads_backward_cpu", &heads_backward, py::arg("problem"), py::arg("given"), py::arg("results"),
             py::arg("num_threads") = 0, "Their gradients; an address of 0 stands for a cotangent that is absent.");
}

}  // namespace case_wtal
