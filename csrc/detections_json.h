// Reads the usual form of a detections file straight into columns: the generic way makes an object of every number.
//
//     {"results": {video: [{"label": text, "score": number, "segment": [number, number]}, ...], ...}, other: anything}
//
// Anything unusual (another key in a detection, an escape in a text, a key twice, a number beyond float64, an end before
// its start, text after the end, ...) is not judged here: read() returns false and the caller reads the file the
// slow way, which knows what is wrong with it, or that nothing is. What is accepted is valid JSON, given that the bytes
// are valid UTF-8, and has the same values as that way gives.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace case_wtal {

struct DetectionColumns {
  std::vector<std::string_view> videos;  // names, in the order of the file; they point into the text
  std::vector<std::string_view> labels;  // in the order of their first appearance
  std::vector<int64_t> video;            // (n)
  std::vector<int64_t> label;            // (n)
  std::vector<double> score;             // (n)
  std::vector<double> segment;           // (n, 2)
};

bool read_detections(std::string_view text, DetectionColumns& columns);

}  // namespace case_wtal
