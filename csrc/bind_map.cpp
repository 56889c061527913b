#include <string>
#include <tuple>

#include "bindings.h"
#include "map.h"

namespace case_wtal {
namespace {

using Address = uintptr_t;
using Table = std::tuple<Address, Address, Address, int64_t>;  // video, label, segment, count

Segments segments_of(const char* name, const Table& given) {
  const auto [video, label, segment, count] = given;
  check_size(name, count);
  const std::string prefix = name;
  return {pointer<const int64_t>((prefix + ".video").c_str(), video, count),
          pointer<const int64_t>((prefix + ".label").c_str(), label, count),
          pointer<const double>((prefix + ".segment").c_str(), segment, count), count};
}

void mean_ap(const Table& truth, const Table& found, Address score, Address forgive,
             const std::tuple<Address, int64_t>& tiou, int64_t classes, int64_t videos, Address ap, Address claim,
             bool best_only, bool envelope, int num_threads) {
  const auto [thresholds, count] = tiou;
  check_size("thresholds", count);
  check_size("classes", classes);
  check_size("videos", videos);
  MapProblem problem{};
  problem.truth = segments_of("truth", truth);
  problem.found = segments_of("found", found);
  problem.score = pointer<const double>("score", score, problem.found.count);
  problem.forgive = reinterpret_cast<const unsigned char*>(forgive);
  problem.tiou = pointer<const double>("tiou", thresholds, count);
  problem.thresholds = count;
  problem.classes = classes;
  problem.videos = videos;
  problem.best_only = best_only;
  problem.envelope = envelope;
  for (int64_t i = 0; i < problem.truth.count; ++i) {
    if (problem.truth.video[i] < 0 || problem.truth.video[i] >= videos) {
      throw py::value_error("truth.video must lie in [0, videos), got " + std::to_string(problem.truth.video[i]));
    }
  }
  double* to = pointer<double>("ap", ap, count * classes);
  py::gil_scoped_release release;
  map_cpu(problem, to, reinterpret_cast<int64_t*>(claim), num_threads);
}

void network_order_of(Address values, Address out, int64_t count) {
  check_size("count", count);
  network_order(pointer<const double>("values", values, count), pointer<int64_t>("out", out, count), count);
}

}  // namespace

void bind_map(py::module_& module) {
  module.def("mean_ap_cpu", &mean_ap, py::arg("truth"), py::arg("found"), py::arg("score"), py::arg("forgive"),
             py::arg("tiou"), py::arg("classes"), py::arg("videos"), py::arg("ap"), py::arg("claim"),
             py::arg("best_only") = false, py::arg("envelope") = true, py::arg("num_threads") = 0,
             "Average precision (csrc/map.h) of every class and threshold; an address of 0 for forgive or claim "
             "stands for what is absent or not wanted.");
  module.def("network_order", &network_order_of, py::arg("values"), py::arg("out"), py::arg("count"),
             "The order of float64 values without NaN that csrc/map.h describes, for its tests.");
}

}  // namespace case_wtal
