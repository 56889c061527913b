// What the bindings of all ops share. Each op's functions check what can be checked without knowing the tensors.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

namespace case_wtal {

namespace py = pybind11;

inline void check_size(const char* name, int64_t value) {
  if (value < 0) throw py::value_error(std::string(name) + " must not be negative, got " + std::to_string(value));
}

template <typename T>
T* pointer(const char* name, uintptr_t address, int64_t count) {
  if (count > 0 && address == 0) throw py::value_error(std::string(name) + " must be an address, got 0");
  return reinterpret_cast<T*>(address);
}

// run(zero of the type that dtype names).
template <typename Run>
auto dispatch(const std::string& dtype, Run run) {
  if (dtype == "float32") return run(float{});
  if (dtype == "float64") return run(double{});
  throw py::type_error("dtype must be 'float32' or 'float64', got '" + dtype + "'");
}

void bind_detections(py::module_& module);
void bind_map(py::module_& module);
void bind_nms(py::module_& module);
void bind_proposals(py::module_& module);
void bind_sinkhorn(py::module_& module);

}  // namespace case_wtal
