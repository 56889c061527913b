#include <string_view>
#include <vector>

#include "bindings.h"
#include "detections_json.h"

namespace case_wtal {
namespace {

template <typename T>
py::bytes bytes_of(const std::vector<T>& column) {
  return {reinterpret_cast<const char*>(column.data()), column.size() * sizeof(T)};
}

py::object read_detections_of(const py::bytes& text) {
  const std::string_view view = text;
  DetectionColumns columns;
  bool usual = false;
  {
    py::gil_scoped_release release;
    usual = read_detections(view, columns);
  }
  if (!usual) return py::none();
  py::list videos, labels;
  for (const std::string_view name : columns.videos) videos.append(py::str(name.data(), name.size()));
  for (const std::string_view name : columns.labels) labels.append(py::str(name.data(), name.size()));
  return py::make_tuple(videos, labels, bytes_of(columns.video), bytes_of(columns.label), bytes_of(columns.segment),
                        bytes_of(columns.score));
}

}  // namespace

void bind_detections(py::module_& module) {
  module.def("read_detections", &read_detections_of, py::arg("text"),
             "The columns of a detections file (csrc/detections_json.h), UTF-8: names of videos and labels, then video, "
             "label (int64), segment and score (float64) as bytes; None where its form is not the usual one.");
}

}  // namespace case_wtal
