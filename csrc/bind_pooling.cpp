#include "bindings.h"
#include "pooling.h"

namespace case_wtal {
namespace {

using Address = uintptr_t;
using Sizes = std::tuple<int64_t, int64_t, int64_t, int64_t>;  // batch, t, c, k

PoolSizes sizes_of(const Sizes& given) {
  const auto [batch, t, c, k] = given;
  check_size("batch", batch);
  check_size("c", c);
  if (t >= int64_t(1) << 31) throw py::value_error("t must be below 2^31, got " + std::to_string(t));
  if (k < 1) throw py::value_error("k must be at least 1, got " + std::to_string(k));
  return {batch, t, c, k};
}

void topk(Address selector, const std::tuple<int64_t, int64_t, int64_t>& strides, const Sizes& given, Address indices,
          const std::string& dtype, int num_threads) {
  const PoolSizes sizes = sizes_of(given);
  if (sizes.k > sizes.t) {
    throw py::value_error("k must be at most t = " + std::to_string(sizes.t) + ", got " + std::to_string(sizes.k));
  }
  const int64_t columns = sizes.batch * sizes.c;
  int64_t* to = pointer<int64_t>("indices", indices, columns);
  const auto [batch, row, column] = strides;
  const int64_t all[3] = {batch, row, column};
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* from = pointer<const T>("selector", selector, columns);
    py::gil_scoped_release release;
    topk_cpu(from, all, sizes, to, num_threads);
  });
}

using Form = std::tuple<int64_t, bool>;  // copies, shared

// run(from, rows, form, sizes, to) in the type of dtype.
template <typename Run>
void over_values(Address from, Address rows, const Form& form, const Sizes& given, Address to, const std::string& dtype,
                 const Run& run) {
  const PoolSizes sizes = sizes_of(given);
  const auto [copies, shared] = form;
  check_size("copies", copies);
  const int64_t columns = copies * sizes.batch * sizes.c;
  const int64_t* at = pointer<const int64_t>("rows", rows, columns);
  const PoolValues values{copies, shared};
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* from_pointer = pointer<const T>("from", from, columns);
    T* to_pointer = pointer<T>("to", to, columns);
    py::gil_scoped_release release;
    run(from_pointer, at, values, sizes, to_pointer);
  });
}

void pool(Address values, Address rows, const Form& form, const Sizes& sizes, Address pooled, const std::string& dtype,
          int num_threads) {
  over_values(values, rows, form, sizes, pooled, dtype, [&](auto* from, auto* at, auto form, auto sizes, auto* to) {
    pool_cpu(from, at, form, sizes, to, num_threads);
  });
}

void pool_backward(Address cotangent, Address rows, const Form& form, const Sizes& sizes, Address gradient,
                   const std::string& dtype, int num_threads) {
  over_values(cotangent, rows, form, sizes, gradient, dtype,
              [&](auto* from, auto* at, auto form, auto sizes, auto* to) {
                pool_backward_cpu(from, at, form, sizes, to, num_threads);
              });
}

}  // namespace

void bind_pooling(py::module_& module) {
  module.def("topk_cpu", &topk, py::arg("selector"), py::arg("strides"), py::arg("sizes"), py::arg("indices"),
             py::arg("dtype"), py::arg("num_threads") = 0,
             "int64 indices (batch, k, c) of the k largest of each column of a selector (batch, t, c).");
  module.def("pool_cpu", &pool, py::arg("values"), py::arg("rows"), py::arg("form"), py::arg("sizes"),
             py::arg("pooled"), py::arg("dtype"), py::arg("num_threads") = 0,
             "Means (copies, batch, c) at rows (batch, k, c) of values (copies, batch, t, c); shared: (copies, t, c).");
  module.def("pool_backward_cpu", &pool_backward, py::arg("cotangent"), py::arg("rows"), py::arg("form"),
             py::arg("sizes"), py::arg("gradient"), py::arg("dtype"), py::arg("num_threads") = 0,
             "Their gradient, in the shape of the values.");
}

}  // namespace case_wtal
