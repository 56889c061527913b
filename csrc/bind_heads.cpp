#include <tuple>

#include "bindings.h"
#include "heads.h"

namespace case_wtal {
namespace {

using Five = std::tuple<Address, Address, Address, Address, Address>;
// dtype, (groups, rows, hidden, classes, clusters), HeadWeights, scale, HeadOutputs.
using Problem = std::tuple<std::string, std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t>, Five, double, Five>;
using Cotangents = std::tuple<Address, Address, Address>;
using Gradients = std::tuple<Address, Address, Address, Address>;

HeadSizes sizes_of(const Problem& problem) {
  const auto [groups, rows, hidden, classes, clusters] = std::get<1>(problem);
  check_size("groups", groups);
  check_size("rows", rows);
  check_size("hidden", hidden);
  check_size("classes", classes);
  check_size("clusters", clusters);
  return {groups, rows, hidden, classes, clusters};
}

// How many numbers each array has; see heads.h.
struct Counts {
  explicit Counts(const HeadSizes& s)
      : hidden_bias(s.groups * 2 * s.hidden),
        cas_weights(s.groups * s.classes * s.hidden),
        cas_bias(s.groups * s.classes),
        directions(s.groups * (s.clusters + 1) * s.hidden),
        hidden(s.groups * s.rows * 2 * s.hidden),
        cas(s.groups * s.rows * s.classes),
        attention(s.groups * s.rows),
        logits(s.groups * s.rows * s.clusters),
        groups(s.groups) {}
  int64_t hidden_bias, cas_weights, cas_bias, directions, hidden, cas, attention, logits, groups;
};

template <typename T>
HeadWeights<T> weights_of(const Problem& problem, const Counts& n) {
  const auto [hidden_bias, cas, cas_bias, directions, attention_bias] = std::get<2>(problem);
  return {pointer<const T>("hidden_bias", hidden_bias, n.hidden_bias), pointer<const T>("cas", cas, n.cas_weights),
          pointer<const T>("cas_bias", cas_bias, n.cas_bias), pointer<const T>("directions", directions, n.directions),
          pointer<const T>("attention_bias", attention_bias, n.groups)};
}

// wants_cas: backward does not read the class logits.
template <typename T>
HeadOutputs<T> outputs_of(const Problem& problem, const Counts& n, bool wants_cas) {
  const auto [hidden, cas, attention, logits, lengths] = std::get<4>(problem);
  return {pointer<T>("hidden", hidden, n.hidden), pointer<T>("cas", cas, wants_cas ? n.cas : 0),
          pointer<T>("attention", attention, n.attention), pointer<T>("logits", logits, n.logits),
          pointer<T>("lengths", lengths, n.attention)};
}

void heads(const Problem& problem, int num_threads) {
  const HeadSizes sizes = sizes_of(problem);
  dispatch(std::get<0>(problem), [&](auto zero) {
    using T = decltype(zero);
    const Counts counts(sizes);
    const HeadOutputs<T> outputs = outputs_of<T>(problem, counts, true);
    const HeadWeights<T> weights = weights_of<T>(problem, counts);
    py::gil_scoped_release release;
    heads_cpu(sizes, weights, T(std::get<3>(problem)), outputs, num_threads);
  });
}

void heads_backward(const Problem& problem, const Cotangents& given, const Gradients& results, int num_threads) {
  const HeadSizes sizes = sizes_of(problem);
  dispatch(std::get<0>(problem), [&](auto zero) {
    using T = decltype(zero);
    const auto [of_embedding, of_attention, of_logits] = given;
    const auto [embedding, bias, directions, attention_bias] = results;
    const Counts n(sizes);
    const HeadCotangents<T> cotangents{
        pointer<const T>("of_embedding", of_embedding, 0), pointer<const T>("of_attention", of_attention, n.attention),
        pointer<const T>("of_logits", of_logits, 0)};
    const HeadGradients<T> gradients{pointer<T>("the gradient of embedding", embedding, n.hidden / 2),
                                     pointer<T>("the gradient of its bias", bias, n.hidden_bias / 2),
                                     pointer<T>("the gradient of directions", directions, n.directions),
                                     pointer<T>("the gradient of attention_bias", attention_bias, n.groups)};
    const HeadOutputs<T> outputs = outputs_of<T>(problem, n, false);
    const HeadWeights<T> weights = weights_of<T>(problem, n);
    py::gil_scoped_release release;
    heads_backward_cpu(sizes, weights, T(std::get<3>(problem)), outputs, cotangents, gradients, num_threads);
  });
}

}  // namespace

void bind_heads(py::module_& module) {
  module.def("heads_cpu", &heads, py::arg("problem"), py::arg("num_threads") = 0,
             "Bias and relu of the hidden layers, and the heads' outputs (csrc/heads.h).");
  module.def("heads_backward_cpu", &heads_backward, py::arg("problem"), py::arg("given"), py::arg("results"),
             py::arg("num_threads") = 0,
             "Gradients of those that read the embedding; an address of 0 stands for a cotangent that is absent.");
}

}  // namespace case_wtal
