// What the bindings of all ops share. Each op's functions check what can be checked without knowing the tensors.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <tuple>

#include "emulation.h"
#include "row_matrix.h"

namespace case_wtal {

namespace py = pybind11;

using Address = uintptr_t;
using Matrix = std::tuple<Address, int64_t, int64_t>;  // address, strides of batch and rows

inline void check_size(const char* name, int64_t value) {
  if (value < 0) throw py::value_error(std::string(name) + " must not be negative, got " + std::to_string(value));
}

template <typename T>
T* pointer(const char* name, uintptr_t address, int64_t count) {
  if (count > 0 && address == 0) throw py::value_error(std::string(name) + " must be an address, got 0");
  return reinterpret_cast<T*>(address);
}

template <typename T>
RowMatrix<T> matrix(const char* name, const Matrix& given, int64_t count) {
  const auto [address, batch_stride, row_stride] = given;
  return {pointer<const T>(name, address, count), batch_stride, row_stride};
}

// run(zero of the type that dtype names).
template <typename Run>
auto dispatch(const std::string& dtype, Run run) {
  if (dtype == "float32") return run(float{});
  if (dtype == "float64") return run(double{});
  throw py::type_error("dtype must be 'float32' or 'float64', got '" + dtype + "'");
}

// blocks, threads, order, seed.
using EmulationArguments = std::tuple<int64_t, int, int, uint64_t>;

inline Emulation emulation_of(const EmulationArguments& given) {
  const auto [blocks, threads, order, seed] = given;
  check_size("blocks", blocks);
  if (threads < 1 || threads > 256) throw py::value_error("threads must be 1 to 256, got " + std::to_string(threads));
  if (order < 0 || order > 2) throw py::value_error("order must be 0, 1 or 2, got " + std::to_string(order));
  return {blocks, threads, order, seed};
}

void bind_cosine(py::module_& module);
void bind_detections(py::module_& module);
void bind_heads(py::module_& module);
void bind_losses(py::module_& module);
void bind_map(py::module_& module);
void bind_nms(py::module_& module);
void bind_pooling(py::module_& module);
void bind_proposals(py::module_& module);
void bind_prototypes(py::module_& module);
void bind_sinkhorn(py::module_& module);

}  // namespace case_wtal
