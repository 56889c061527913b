#include <tuple>

#include "bindings.h"
#include "proposals.h"

namespace case_wtal {
namespace {

using Address = uintptr_t;
using Sizes = std::tuple<int64_t, int64_t, int64_t, int64_t>;
using Strides = std::tuple<int64_t, int64_t, int64_t>;
using Settings = std::tuple<int64_t, double, double, bool>;
// dtype, (videos, rows, classes, thresholds), the activations and their strides, thresholds, video scores, mask, seconds
// per row, (factor, outer_ratio, score_weight, keep_first_sample).
using Problem = std::tuple<std::string, Sizes, Address, Strides, Address, Address, Address, Address, Settings>;
// segments, scores, classes, video, threshold.
using Arrays = std::tuple<Address, Address, Address, Address, Address>;

void check_at_least_one(const char* name, int64_t value) {
  if (value < 1) throw py::value_error(std::string(name) + " must be at least 1, got " + std::to_string(value));
}

ProposalProblem problem_of(const Problem& given) {
  const auto& [dtype, sizes, cas, strides, threshold, scores, mask, seconds, settings] = given;
  ProposalProblem p{};
  std::tie(p.videos, p.rows, p.classes, p.thresholds) = sizes;
  std::tie(p.stride_video, p.stride_row, p.stride_class) = strides;
  std::tie(p.factor, p.outer_ratio, p.score_weight, p.keep_first_sample) = settings;
  check_size("videos", p.videos);
  check_size("classes", p.classes);
  check_at_least_one("rows", p.rows);
  check_at_least_one("thresholds", p.thresholds);
  check_at_least_one("factor", p.factor);
  if (p.rows > INT32_MAX / p.factor) throw py::value_error("rows * factor must be below 2^31");
  const int64_t columns = p.videos * p.classes;
  p.threshold = pointer<const double>("threshold", threshold, p.thresholds);
  p.video_scores = pointer<const double>("video_scores", scores, columns);
  p.mask = pointer<const unsigned char>("mask", mask, columns);
  p.seconds_per_row = pointer<const double>("seconds_per_row", seconds, p.videos);
  return p;
}

// run(activations, problem) in the type of the activations.
template <typename Run>
auto with_problem(const Problem& given, Run run) {
  const ProposalProblem problem = problem_of(given);
  return dispatch(std::get<0>(given), [&](auto zero) {
    using T = decltype(zero);
    const T* cas = pointer<const T>("cas", std::get<2>(given), problem.videos * problem.classes);
    py::gil_scoped_release release;
    return run(cas, problem);
  });
}

ProposalArrays arrays_of(const Arrays& given, int64_t capacity) {
  check_size("capacity", capacity);
  const auto [segments, scores, classes, video, threshold] = given;
  return {pointer<double>("segments", segments, capacity), pointer<double>("scores", scores, capacity),
          pointer<int64_t>("classes", classes, capacity), pointer<int64_t>("video", video, capacity),
          pointer<int64_t>("threshold", threshold, capacity)};
}

ProposalList find(const Problem& given, int num_threads) {
  return with_problem(given, [&](auto* cas, const ProposalProblem& problem) {
    return proposals_cpu(cas, problem, num_threads);
  });
}

void copy(const ProposalList& list, const Arrays& to, int64_t capacity, int num_threads) {
  const ProposalArrays arrays = arrays_of(to, capacity);
  py::gil_scoped_release release;
  list.copy(arrays, capacity, num_threads);
}

// counts, ends, capacity, arrays, x, before (csrc/proposals.h).
using Output = std::tuple<Address, Address, int64_t, Arrays, Address, Address>;

ProposalOutput output_of(const Output& given, int64_t rows, int64_t blocks) {
  const auto [counts, ends, capacity, arrays, x, before] = given;
  return {pointer<const int32_t>("counts", counts, blocks), pointer<const int64_t>("ends", ends, blocks), capacity,
          arrays_of(arrays, capacity), pointer<double>("x", x, rows * blocks),
          pointer<uint64_t>("before", before, rows * blocks)};
}

void count_emulated(const Problem& given, Address counts, const EmulationArguments& emulation) {
  const Emulation with = emulation_of(emulation);
  int32_t* to = pointer<int32_t>("counts", counts, with.blocks);
  with_problem(given, [&](auto* cas, const ProposalProblem& problem) {
    proposals_count_emulated(cas, problem, to, with);
  });
}

void write_emulated(const Problem& given, const Output& output, const EmulationArguments& emulation) {
  const Emulation with = emulation_of(emulation);
  const ProposalOutput to = output_of(output, problem_of(given).rows, with.blocks);
  with_problem(given, [&](auto* cas, const ProposalProblem& problem) {
    proposals_write_emulated(cas, problem, to, with);
  });
}

#ifdef CASE_WITH_CUDA
void count_cuda(const Problem& given, Address counts, int64_t blocks, Address stream) {
  check_size("blocks", blocks);
  int32_t* to = pointer<int32_t>("counts", counts, blocks);
  with_problem(given, [&](auto* cas, const ProposalProblem& problem) {
    proposals_count_cuda(cas, problem, to, blocks, stream);
  });
}

void write_cuda(const Problem& given, const Output& output, int64_t blocks, Address stream) {
  check_size("blocks", blocks);
  const ProposalOutput to = output_of(output, problem_of(given).rows, blocks);
  with_problem(given, [&](auto* cas, const ProposalProblem& problem) {
    proposals_write_cuda(cas, problem, to, blocks, stream);
  });
}
#endif

}  // namespace

void bind_proposals(py::module_& module) {
  py::class_<ProposalList>(module, "ProposalList", "Proposals found, before there are arrays to hold them.")
      .def("__len__", &ProposalList::count)
      .def("copy", &copy, py::arg("to"), py::arg("capacity"), py::arg("num_threads") = 0,
           "Writes the first `capacity` to (segments, scores, classes, video, threshold).");
  module.def("proposals_cpu", &find, py::arg("problem"), py::arg("num_threads") = 0,
             "Proposals (csrc/proposals.h) of activations in host memory.");
  module.def("proposals_count_emulated", &count_emulated, py::arg("problem"), py::arg("counts"), py::arg("emulation"),
             "The first kernel of csrc/proposal_blocks.h by one CPU thread: blocks, threads, order, seed.");
  module.def("proposals_write_emulated", &write_emulated, py::arg("problem"), py::arg("output"), py::arg("emulation"),
             "The second one, likewise.");
#ifdef CASE_WITH_CUDA
  module.def("proposals_count_cuda", &count_cuda, py::arg("problem"), py::arg("counts"), py::arg("blocks"),
             py::arg("stream") = 0, "The first kernel, enqueued on stream of the current CUDA device; does not wait.");
  module.def("proposals_write_cuda", &write_cuda, py::arg("problem"), py::arg("output"), py::arg("blocks"),
             py::arg("stream") = 0, "The second one, likewise.");
#endif
}

}  // namespace case_wtal
