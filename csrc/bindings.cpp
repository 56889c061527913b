// The Python module case._C. Tensors arrive as addresses: the module knows no tensor library, and whoever calls it
// (case.ops, case.heads_native) has checked shapes, device, dtype and contiguity.
#include "bindings.h"

#ifdef _OPENMP
#include <omp.h>
#endif

#include "iou.h"

namespace {

namespace py = pybind11;

using case_wtal::check_size;
using case_wtal::dispatch;
using case_wtal::IouSizes;
using case_wtal::pointer;

// Checks what can be checked without knowing the tensors, then calls run(a, b, out, offset) in the type of dtype.
template <typename Run>
void dispatch_iou(uintptr_t a, uintptr_t b, uintptr_t out, IouSizes sizes, const std::string& dtype,
                  double length_offset, Run run) {
  check_size("batch", sizes.batch);
  check_size("m", sizes.m);
  check_size("p", sizes.p);
  const int64_t rows = sizes.batch * sizes.m;
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* a_pointer = pointer<const T>("a", a, rows);
    const T* b_pointer = pointer<const T>("b", b, sizes.batch * sizes.p);
    T* out_pointer = pointer<T>("out", out, rows * sizes.p);
    py::gil_scoped_release release;
    run(a_pointer, b_pointer, out_pointer, static_cast<T>(length_offset));
  });
}

void iou_cpu(uintptr_t a, uintptr_t b, uintptr_t out, int64_t batch, int64_t m, int64_t p, const std::string& dtype,
             double length_offset, int num_threads) {
  const IouSizes sizes{batch, m, p};
  dispatch_iou(a, b, out, sizes, dtype, length_offset, [&](auto* a, auto* b, auto* out, auto offset) {
    case_wtal::iou_cpu(a, b, out, sizes, offset, num_threads);
  });
}

void iou_backward_cpu(uintptr_t a, uintptr_t b, uintptr_t cotangent, const std::tuple<uintptr_t, uintptr_t>& results,
                      int64_t batch, int64_t m, int64_t p, const std::string& dtype, double length_offset,
                      int num_threads) {
  const IouSizes sizes{batch, m, p};
  dispatch_iou(a, b, cotangent, sizes, dtype, length_offset, [&](auto* a, auto* b, auto* cotangent, auto offset) {
    using T = decltype(offset);
    const auto [da, db] = results;
    case_wtal::iou_backward_cpu<T>(a, b, cotangent, sizes, offset, reinterpret_cast<T*>(da), reinterpret_cast<T*>(db),
                                   num_threads);
  });
}

#ifdef CASE_WITH_CUDA
void iou_cuda(uintptr_t a, uintptr_t b, uintptr_t out, int64_t batch, int64_t m, int64_t p, const std::string& dtype,
              double length_offset, uintptr_t stream) {
  const IouSizes sizes{batch, m, p};
  dispatch_iou(a, b, out, sizes, dtype, length_offset, [&](auto* a, auto* b, auto* out, auto offset) {
    case_wtal::iou_cuda(a, b, out, sizes, offset, stream);
  });
}
#endif

std::string compiler() {
#if defined(__clang__)
  return std::string("Clang ") + __clang_version__;
#elif defined(__GNUC__)
  return std::string("GNU ") + __VERSION__;
#elif defined(_MSC_VER)
  return "MSVC " + std::to_string(_MSC_VER);
#else
  return "unknown";
#endif
}

py::dict build_info() {
  py::dict info;
  info["version"] = CASE_VERSION;
  info["compiler"] = compiler();
#ifdef _OPENMP
  info["openmp"] = true;
  info["openmp_max_threads"] = omp_get_max_threads();
#else
  info["openmp"] = false;
  info["openmp_max_threads"] = 1;
#endif
#ifdef CASE_WITH_CUDA
  info["cuda"] = true;
  info["cuda_version"] = CASE_CUDA_VERSION;
  info["cuda_archs"] = py::str(CASE_CUDA_ARCHS).attr("split")(",");
#else
  info["cuda"] = false;
  info["cuda_version"] = py::none();
  info["cuda_archs"] = py::list();
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "C++ and CUDA parts of case; tensors are passed as addresses. Use case.ops instead.";
  module.def("iou_cpu", &iou_cpu, py::arg("a"), py::arg("b"), py::arg("out"), py::arg("batch"), py::arg("m"),
             py::arg("p"), py::arg("dtype"), py::arg("length_offset") = 0.0, py::arg("num_threads") = 0,
             "Pairwise temporal IoU: contiguous a (batch, m, 2), b (batch, p, 2) -> out (batch, m, p) in host memory; "
             "num_threads 0: OpenMP's default.");
  module.def("iou_backward_cpu", &iou_backward_cpu, py::arg("a"), py::arg("b"), py::arg("cotangent"),
             py::arg("results"), py::arg("batch"), py::arg("m"), py::arg("p"), py::arg("dtype"),
             py::arg("length_offset") = 0.0, py::arg("num_threads") = 0,
             "Its gradients: cotangent (batch, m, p) -> (a, b), in the shapes of these.");
#ifdef CASE_WITH_CUDA
  module.def("iou_cuda", &iou_cuda, py::arg("a"), py::arg("b"), py::arg("out"), py::arg("batch"), py::arg("m"),
             py::arg("p"), py::arg("dtype"), py::arg("length_offset") = 0.0, py::arg("stream") = 0,
             "The same in memory of the current CUDA device, enqueued on stream (a cudaStream_t as an integer); "
             "does not wait.");
#endif
  case_wtal::bind_cosine(module);
  case_wtal::bind_detections(module);
  case_wtal::bind_heads(module);
  case_wtal::bind_losses(module);
  case_wtal::bind_map(module);
  case_wtal::bind_nms(module);
  case_wtal::bind_pooling(module);
  case_wtal::bind_proposals(module);
  case_wtal::bind_prototypes(module);
  case_wtal::bind_sinkhorn(module);
  module.def("build_info", &build_info, "How this module was compiled.");
  module.attr("INTERFACE") = CASE_INTERFACE;
}
