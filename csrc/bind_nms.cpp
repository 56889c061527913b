#include <algorithm>
#include <tuple>

#include "bindings.h"
#include "nms.h"

namespace case_wtal {
namespace {

using Address = uintptr_t;

constexpr int64_t kMostSegments = INT32_MAX - 1024;  // places are int32, and loops take steps of a block's threads
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

// segments, scores, groups, segment of each row (0: its number), n, dtype.
using Rows = std::tuple<Address, Address, Address, Address, int64_t, std::string>;
// sorted, head, by.
using Outcome = std::tuple<Address, Address, Address>;

// run(rows, outcome) in the type of the rows.
template <typename Run>
void with_rows(const Rows& given, const Outcome& outcome, const Run& run) {
  const auto& [segments, scores, groups, segment, n, dtype] = given;
  check_size("n", n);
  if (n > kMostSegments) throw py::value_error("n must be below 2^31 - 1024, got " + std::to_string(n));
  const auto [sorted, head, by] = outcome;
  const NmsOutcome to{pointer<int32_t>("sorted", sorted, n), pointer<int32_t>("head", head, n),
                      pointer<int32_t>("by", by, n)};
  const auto* numbers = pointer<const int64_t>("groups", groups, n);
  const auto* which = pointer<const int64_t>("segment", segment, 0);
  const Address begin = segments, weights = scores;
  const int64_t count = n;
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    const NmsRows<T> rows{pointer<const T>("segments", begin, count), pointer<const T>("scores", weights, count),
                          numbers, which, count};
    py::gil_scoped_release release;
    run(rows, to, zero);
  });
}

void settle_emulated(const Rows& given, double threshold, double offset, Address spare, int64_t most,
                 const Outcome& outcome, const EmulationArguments& emulation) {
  const Emulation with = emulation_of(emulation);
  with_rows(given, outcome, [&](const auto& rows, const NmsOutcome& to, auto zero) {
    using T = decltype(zero);
    nms_settle_emulated(rows, T(threshold), T(offset), pointer<void>("spare", spare, 0), most, to, with);
  });
}

#ifdef CASE_WITH_CUDA
void settle_cuda(const Rows& given, double threshold, double offset, Address spare, int64_t most,
                 const Outcome& outcome,
                 Address stream) {
  with_rows(given, outcome, [&](const auto& rows, const NmsOutcome& to, auto zero) {
    using T = decltype(zero);
    nms_settle_cuda(rows, T(threshold), T(offset), pointer<void>("spare", spare, 0), most, to, stream);
  });
}
#endif

// segments, key, slot, head, position, n, dtype, fine.
using Index = std::tuple<Address, Address, Address, Address, Address, int64_t, std::string, double>;

// run(index, zero) in the type of its segments.
template <typename Run>
void with_index(const Index& given, const Run& run) {
  const auto& [segments, key, slot, head, position, n, dtype, fine] = given;
  check_size("n", n);
  if (n > kMostSegments) throw py::value_error("n must be below 2^31 - 1024, got " + std::to_string(n));
  const Address begin = segments, keys = key, slots = slot, heads = head, positions = position;
  const int64_t count = n;
  const double coarse = fine;
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    const NmsIndex<T> index{pointer<const T>("segments", begin, count),
                            pointer<const int64_t>("key", keys, count),
                            pointer<const int32_t>("slot", slots, count),
                            pointer<const int32_t>("head", heads, count),
                            pointer<const int32_t>("position", positions, count),
                            count,
                            coarse};
    py::gil_scoped_release release;
    run(index, zero);
  });
}

void rounds_emulated(const Index& given, double threshold, double offset, Address state, Address left, int64_t rounds,
                     Address by, const EmulationArguments& emulation) {
  const Emulation with = emulation_of(emulation);
  check_size("rounds", rounds);
  with_index(given, [&](const auto& index, auto zero) {
    using T = decltype(zero);
    nms_rounds_emulated(index, T(threshold), T(offset), pointer<unsigned char>("state", state, index.n),
                        pointer<int32_t>("left", left, 1), rounds, pointer<int32_t>("by", by, index.n), with);
  });
}

#ifdef CASE_WITH_CUDA
void rounds_cuda(const Index& given, double threshold, double offset, Address state, Address left, int64_t rounds,
                 Address by, Address stream) {
  check_size("rounds", rounds);
  with_index(given, [&](const auto& index, auto zero) {
    using T = decltype(zero);
    nms_rounds_cuda(index, T(threshold), T(offset), pointer<unsigned char>("state", state, index.n),
                    pointer<int32_t>("left", left, 1), rounds, pointer<int32_t>("by", by, index.n), stream);
  });
}
#endif

// score, first_key, key, turn, threshold, min_score, gaussian, sigma, rival.
using Decay = std::tuple<Address, Address, Address, Address, double, double, bool, double, Address>;

template <typename T>
NmsDecay<T> decay_of(const Decay& given, int64_t n) {
  const auto& [score, first_key, key, turn, threshold, least, gaussian, sigma, rival] = given;
  return {pointer<const T>("score", score, n),
          pointer<const double>("first_key", first_key, n),
          pointer<double>("key", key, n),
          pointer<int32_t>("turn", turn, n),
          T(threshold),
          T(least),
          gaussian,
          std::min(1 / sigma, kMaxInverseSigma),
          pointer<int32_t>("rival", rival, n)};
}

void soft_emulated(const Index& given, const Decay& decay, double offset, Address left, int64_t first, int64_t rounds,
                   const EmulationArguments& emulation) {
  const Emulation with = emulation_of(emulation);
  check_size("rounds", rounds);
  with_index(given, [&](const auto& index, auto zero) {
    using T = decltype(zero);
    nms_soft_emulated(index, decay_of<T>(decay, index.n), T(offset), pointer<int32_t>("left", left, 1), first, rounds,
                      with);
  });
}

#ifdef CASE_WITH_CUDA
void soft_cuda(const Index& given, const Decay& decay, double offset, Address left, int64_t first, int64_t rounds,
               Address stream) {
  check_size("rounds", rounds);
  with_index(given, [&](const auto& index, auto zero) {
    using T = decltype(zero);
    nms_soft_cuda(index, decay_of<T>(decay, index.n), T(offset), pointer<int32_t>("left", left, 1), first, rounds,
                  stream);
  });
}
#endif

void soft_groups_emulated(const Index& given, const Decay& decay, double offset, int64_t first, int64_t most,
                          const EmulationArguments& emulation) {
  const Emulation with = emulation_of(emulation);
  with_index(given, [&](const auto& index, auto zero) {
    using T = decltype(zero);
    nms_soft_groups_emulated(index, decay_of<T>(decay, index.n), T(offset), first, most, with);
  });
}

#ifdef CASE_WITH_CUDA
void soft_groups_cuda(const Index& given, const Decay& decay, double offset, int64_t first, int64_t most,
                      Address stream) {
  with_index(given, [&](const auto& index, auto zero) {
    using T = decltype(zero);
    nms_soft_groups_cuda(index, decay_of<T>(decay, index.n), T(offset), first, most, stream);
  });
}
#endif

// score, position, kept, threshold, out.
using Ballot = std::tuple<Address, Address, int64_t, double, Address>;

template <typename T>
NmsBallot<T> ballot_of(const Ballot& given, int64_t n) {
  const auto& [score, position, kept, threshold, out] = given;
  return {pointer<const T>("score", score, n), pointer<const int32_t>("position", position, kept), kept, T(threshold),
          pointer<T>("out", out, kept)};
}

void vote_emulated(const Index& given, const Ballot& ballot, double offset, const EmulationArguments& emulation) {
  const Emulation with = emulation_of(emulation);
  with_index(given, [&](const auto& index, auto zero) {
    using T = decltype(zero);
    nms_vote_emulated(index, ballot_of<T>(ballot, index.n), T(offset), with);
  });
}

#ifdef CASE_WITH_CUDA
void vote_cuda(const Index& given, const Ballot& ballot, double offset, Address stream) {
  with_index(given, [&](const auto& index, auto zero) {
    using T = decltype(zero);
    nms_vote_cuda(index, ballot_of<T>(ballot, index.n), T(offset), stream);
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
  module.def("nms_settle_emulated", &settle_emulated, py::arg("rows"), py::arg("threshold"), py::arg("length_offset"),
             py::arg("spare"), py::arg("most"), py::arg("outcome"), py::arg("emulation"),
             "The kernel of csrc/nms_blocks.h by one CPU thread: blocks, threads, order, seed.");
  module.def("nms_rounds_emulated", &rounds_emulated, py::arg("index"), py::arg("threshold"), py::arg("length_offset"),
             py::arg("state"), py::arg("left"), py::arg("rounds"), py::arg("by"), py::arg("emulation"),
             "The kernels of csrc/nms_rounds.h by one CPU thread, likewise.");
  module.def("nms_soft_emulated", &soft_emulated, py::arg("index"), py::arg("decay"), py::arg("length_offset"),
             py::arg("left"), py::arg("first"), py::arg("rounds"), py::arg("emulation"),
             "The kernels of csrc/nms_soft_rounds.h by one CPU thread, likewise.");
  module.def("nms_soft_groups_emulated", &soft_groups_emulated, py::arg("index"), py::arg("decay"),
             py::arg("length_offset"), py::arg("first"), py::arg("most"), py::arg("emulation"),
             "The kernel of csrc/nms_soft_rounds.h for whole groups by one CPU thread, likewise.");
  module.def("nms_vote_emulated", &vote_emulated, py::arg("index"), py::arg("ballot"), py::arg("length_offset"),
             py::arg("emulation"), "The kernel of csrc/nms_vote_blocks.h by one CPU thread, likewise.");
#ifdef CASE_WITH_CUDA
  module.def("nms_vote_cuda", &vote_cuda, py::arg("index"), py::arg("ballot"), py::arg("length_offset"),
             py::arg("stream") = 0, "The same, enqueued on stream of the current CUDA device; does not wait.");
  module.def("nms_soft_cuda", &soft_cuda, py::arg("index"), py::arg("decay"), py::arg("length_offset"), py::arg("left"),
             py::arg("first"), py::arg("rounds"), py::arg("stream") = 0,
             "The same, enqueued on stream of the current CUDA device; does not wait.");
  module.def("nms_soft_groups_cuda", &soft_groups_cuda, py::arg("index"), py::arg("decay"), py::arg("length_offset"),
             py::arg("first"), py::arg("most"), py::arg("stream") = 0,
             "The same, enqueued on stream of the current CUDA device; does not wait.");
  module.def("nms_rounds_cuda", &rounds_cuda, py::arg("index"), py::arg("threshold"), py::arg("length_offset"),
             py::arg("state"), py::arg("left"), py::arg("rounds"), py::arg("by"), py::arg("stream") = 0,
             "The same, enqueued on stream of the current CUDA device; does not wait.");
  module.def("nms_settle_cuda", &settle_cuda, py::arg("rows"), py::arg("threshold"), py::arg("length_offset"),
             py::arg("spare"), py::arg("most"), py::arg("outcome"), py::arg("stream") = 0,
             "The same, enqueued on stream of the current CUDA device; does not wait.");
#endif
}

}  // namespace case_wtal
