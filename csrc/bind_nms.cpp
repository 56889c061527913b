#include <tuple>

#include "bindings.h"
#include "nms.h"

namespace case_wtal {
namespace {

using Address = uintptr_t;
// iou_threshold, method, sigma, min_score, max_num, length_offset.
using Settings = std::tuple<double, std::string, double, double, int64_t, double>;

NmsMethod method_of(const std::string& name) {
  if (name == "hard") return NmsMethod::kHard;
  if (name == "decay_once") return NmsMethod::kDecayOnce;
  if (name == "linear") return NmsMethod::kLinear;
  if (name == "gaussian") return NmsMethod::kGaussian;
  throw py::value_error("method must be hard, decay_once, linear or gaussian, got '" + name + "'");
}

NmsSettings settings_of(const Settings& given) {
  const auto& [threshold, method, sigma, min_score, max_num, offset] = given;
  check_size("max_num", max_num);
  return {threshold, method_of(method), sigma, min_score, max_num, offset};
}

int64_t nms(Address segments, Address scores, Address groups, int64_t n, const std::string& dtype,
            const Settings& given, Address keep, Address kept_scores, int num_threads) {
  check_size("n", n);
  const NmsSettings settings = settings_of(given);
  const auto* numbers = pointer<const int64_t>("groups", groups, n);
  auto* kept = pointer<int64_t>("keep", keep, n);
  return dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* rows = pointer<const T>("segments", segments, n);
    const T* weights = pointer<const T>("scores", scores, n);
    T* decayed = pointer<T>("kept_scores", kept_scores, n);
    py::gil_scoped_release release;
    return nms_cpu(rows, weights, numbers, n, settings, kept, decayed, num_threads);
  });
}

void score_vote(Address keep, int64_t kept, Address segments, Address scores, Address groups, int64_t n,
                const std::string& dtype, double threshold, double length_offset, Address out, int num_threads) {
  check_size("kept", kept);
  check_size("n", n);
  const auto* rows = pointer<const int64_t>("keep", keep, kept);
  const auto* numbers = pointer<const int64_t>("groups", groups, n);
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* all = pointer<const T>("segments", segments, n);
    const T* weights = pointer<const T>("scores", scores, n);
    T* moved = pointer<T>("out", out, kept);
    py::gil_scoped_release release;
    score_vote_cpu(rows, kept, all, weights, numbers, n, threshold, length_offset, moved, num_threads);
  });
}

template <typename Run>
void settle(Address segments, Address begins, Address count, int64_t n, const std::string& dtype, double threshold,
            double length_offset, Address by, const Run& run) {
  check_size("n", n);
  const NmsGroups groups{pointer<const int64_t>("begins", begins, 1), pointer<const int64_t>("count", count, 1)};
  int32_t* to = pointer<int32_t>("by", by, n);
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* rows = pointer<const T>("segments", segments, n);
    py::gil_scoped_release release;
    run(rows, groups, T(threshold), T(length_offset), to);
  });
}

void settle_emulated(Address segments, Address begins, Address count, int64_t n, const std::string& dtype,
                     double threshold, double length_offset, Address by, const EmulationArguments& emulation) {
  const Emulation with = emulation_of(emulation);
  settle(segments, begins, count, n, dtype, threshold, length_offset, by,
         [&](auto* rows, const NmsGroups& groups, auto least, auto offset, int32_t* to) {
           nms_settle_emulated(rows, groups, least, offset, to, with);
         });
}

#ifdef CASE_WITH_CUDA
void settle_cuda(Address segments, Address begins, Address count, int64_t n, const std::string& dtype, double threshold,
                 double length_offset, Address by, int64_t blocks, Address stream) {
  check_size("blocks", blocks);
  settle(segments, begins, count, n, dtype, threshold, length_offset, by,
         [&](auto* rows, const NmsGroups& groups, auto least, auto offset, int32_t* to) {
           nms_settle_cuda(rows, groups, least, offset, to, blocks, stream);
         });
}
#endif

}  // namespace

void bind_nms(py::module_& module) {
  module.def("nms_cpu", &nms, py::arg("segments"), py::arg("scores"), py::arg("groups"), py::arg("n"),
             py::arg("dtype"), py::arg("settings"), py::arg("keep"), py::arg("kept_scores"),
             py::arg("num_threads") = 0,
             "Non-maximum suppression within groups (csrc/nms.h) -> how many of the n places in keep and kept_scores "
             "are filled.");
  module.def("score_vote_cpu", &score_vote, py::arg("keep"), py::arg("kept"), py::arg("segments"), py::arg("scores"),
             py::arg("groups"), py::arg("n"), py::arg("dtype"), py::arg("threshold"), py::arg("length_offset"),
             py::arg("out"), py::arg("num_threads") = 0, "Score voting (csrc/nms.h) -> out (kept, 2).");
  module.def("nms_settle_emulated", &settle_emulated, py::arg("segments"), py::arg("begins"), py::arg("count"),
             py::arg("n"), py::arg("dtype"), py::arg("threshold"), py::arg("length_offset"), py::arg("by"),
             py::arg("emulation"), "The kernel of csrc/nms_blocks.h by one CPU thread: blocks, threads, order, seed.");
#ifdef CASE_WITH_CUDA
  module.def("nms_settle_cuda", &settle_cuda, py::arg("segments"), py::arg("begins"), py::arg("count"), py::arg("n"),
             py::arg("dtype"), py::arg("threshold"), py::arg("length_offset"), py::arg("by"), py::arg("blocks"),
             py::arg("stream") = 0, "The same, enqueued on stream of the current CUDA device; does not wait.");
#endif
}

}  // namespace case_wtal
