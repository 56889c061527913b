#include "detections_json.h"

#include <charconv>
#include <system_error>
#include <unordered_map>
#include <unordered_set>

namespace case_wtal {
namespace {

// Numbers of more characters and values nested deeper than this are left to the slow way.
constexpr int64_t kNumberLength = 64;
constexpr int kDepth = 32;

// Each method takes what it names from the text, after blanks, and returns false where something else is there.
class Reader {
 public:
  Reader(std::string_view text, DetectionColumns& columns)
      : at_(text.data()), end_(text.data() + text.size()), columns_(columns) {}

  bool file() {
    bool found = false;
    const bool ok = object([&](std::string_view key) {
      if (key != "results") return value(0);
      found = true;
      return results();
    });
    blanks();
    return ok && found && at_ == end_;
  }

 private:
  bool results() {
    return object([&](std::string_view video) {
      columns_.videos.push_back(video);
      return array([&] { return detection(); });
    });
  }

  bool detection() {
    bool label = false, score = false, segment = false;
    std::string_view name;
    double confidence = 0, start = 0, end = 0;
    const bool ok = pairs([&](std::string_view key) {
      if (key == "label" && !label) return label = text(name);
      if (key == "score" && !score) return score = number(confidence);
      if (key == "segment" && !segment) {
        segment = symbol('[') && number(start) && symbol(',') && number(end) && symbol(']');
        return segment && end >= start;
      }
      return false;
    });
    if (!ok || !label || !score || !segment) return false;
    columns_.video.push_back(static_cast<int64_t>(columns_.videos.size()) - 1);
    columns_.label.push_back(label_of(name));
    columns_.score.push_back(confidence);
    columns_.segment.push_back(start);
    columns_.segment.push_back(end);
    return true;
  }

  int64_t label_of(std::string_view name) {
    const auto [place, is_new] = labels_.emplace(name, static_cast<int64_t>(columns_.labels.size()));
    if (is_new) columns_.labels.push_back(name);
    return place->second;
  }

  void blanks() {
    while (at_ != end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\r' || *at_ == '\t')) ++at_;
  }

  bool symbol(char wanted) {
    blanks();
    if (at_ == end_ || *at_ != wanted) return false;
    ++at_;
    return true;
  }

  // An object whose keys differ.
  template <typename Member>
  bool object(const Member& member) {
    std::unordered_set<std::string_view> keys;
    return pairs([&](std::string_view key) { return keys.insert(key).second && member(key); });
  }

  template <typename Member>
  bool pairs(const Member& member) {
    if (!symbol('{')) return false;
    if (symbol('}')) return true;
    do {
      std::string_view key;
      if (!text(key) || !symbol(':') || !member(key)) return false;
    } while (symbol(','));
    return symbol('}');
  }

  template <typename Item>
  bool array(const Item& item) {
    if (!symbol('[')) return false;
    if (symbol(']')) return true;
    do {
      if (!item()) return false;
    } while (symbol(','));
    return symbol(']');
  }

  // A text without escapes.
  bool text(std::string_view& result) {
    if (!symbol('"')) return false;
    const char* begin = at_;
    while (at_ != end_ && *at_ != '"') {
      if (*at_ == '\\' || static_cast<unsigned char>(*at_) < 0x20) return false;
      ++at_;
    }
    if (at_ == end_) return false;
    result = std::string_view(begin, at_ - begin);
    ++at_;
    return true;
  }

  // A number, or a text that is one, as some annotations have it.
  bool number(double& result) {
    blanks();
    const bool quoted = at_ != end_ && *at_ == '"';
    if (quoted) ++at_;
    if (!bare_number(result)) return false;
    if (!quoted) return true;
    if (at_ == end_ || *at_ != '"') return false;
    ++at_;
    return true;
  }

  bool bare_number(double& result) {
    const char* begin = at_;
    if (at_ != end_ && *at_ == '-') ++at_;
    if (at_ != end_ && *at_ == '0') {
      ++at_;
    } else if (!digits()) {
      return false;
    }
    if (at_ != end_ && *at_ == '.') {
      ++at_;
      if (!digits()) return false;
    }
    if (at_ != end_ && (*at_ == 'e' || *at_ == 'E')) {
      ++at_;
      if (at_ != end_ && (*at_ == '+' || *at_ == '-')) ++at_;
      if (!digits()) return false;
    }
    if (at_ - begin > kNumberLength) return false;
#ifdef __cpp_lib_to_chars
    const auto [stop, error] = std::from_chars(begin, at_, result);
    return error == std::errc() && stop == at_;
#else
    (void)result;  // strtod would follow the locale
    return false;
#endif
  }

  bool digits() {
    const char* begin = at_;
    while (at_ != end_ && *at_ >= '0' && *at_ <= '9') ++at_;
    return at_ != begin;
  }

  // Any value; what it holds is not kept.
  bool value(int depth) {
    blanks();
    if (at_ == end_ || depth > kDepth) return false;
    std::string_view ignored;
    double unused;
    switch (*at_) {
      case '"': return text(ignored);
      case '{': return object([&](std::string_view) { return value(depth + 1); });
      case '[': return array([&] { return value(depth + 1); });
      case 't': return word("true");
      case 'f': return word("false");
      case 'n': return word("null");
      default: return bare_number(unused);
    }
  }

  bool word(std::string_view wanted) {
    if (std::string_view(at_, end_ - at_).substr(0, wanted.size()) != wanted) return false;
    at_ += wanted.size();
    return true;
  }

  const char* at_;
  const char* end_;
  DetectionColumns& columns_;
  std::unordered_map<std::string_view, int64_t> labels_;
};

}  // namespace

bool read_detections(std::string_view text, DetectionColumns& columns) { return Reader(text, columns).file(); }

}  // namespace case_wtal
