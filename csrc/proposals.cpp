#include "proposals.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "parallel.h"
#include "proposal_signal.h"

namespace case_wtal {
namespace {

using Run = ProposalList::Run;
using Video = ProposalList::Video;

// Thresholds by rising value. A value's level is the number of them it is above.
class Levels {
 public:
  explicit Levels(const ProposalProblem& problem) : given_(size_t(problem.thresholds)) {
    std::iota(given_.begin(), given_.end(), 0);
    const auto value = [&](int32_t k) {
      const double t = problem.threshold[k];
      return t == t ? t : std::numeric_limits<double>::infinity();  // sorting must survive unchecked NaN
    };
    std::stable_sort(given_.begin(), given_.end(), [&](int32_t a, int32_t b) { return value(a) < value(b); });
    for (const int32_t k : given_) sorted_.push_back(value(k));
  }

  int count() const { return int(sorted_.size()); }
  double operator[](int level) const { return sorted_[size_t(level)]; }
  int32_t given(int level) const { return given_[size_t(level)]; }

  int of(double value, int start) const {
    int level = start;
    while (level < count() && above(value, (*this)[level])) ++level;
    while (level > 0 && !above(value, (*this)[level - 1])) --level;
    return level;
  }

  // Values in [from(level), until(level)) certainly have this level; few others do.
  double from(int level) const {
    if (level == 0) return -std::numeric_limits<double>::infinity();
    return std::max((*this)[level - 1], std::numeric_limits<double>::min());
  }
  double until(int level) const {
    if (level == count()) return std::numeric_limits<double>::infinity();
    return std::max((*this)[level], std::numeric_limits<double>::denorm_min());
  }

 private:
  std::vector<int32_t> given_;
  std::vector<double> sorted_;
};

// Finds the runs of one class of a video after another; what it holds in between is only memory.
template <typename T>
class Localizer {
 public:
  Localizer(const T* cas, const ProposalProblem& problem, const Levels& levels)
      : cas_(cas), problem_(problem), levels_(levels), x_(size_t(problem.rows)), before_(size_t(problem.rows)),
        open_(size_t(levels.count())), closed_(size_t(levels.count())) {}

  void run(int64_t index, Video& video) {
    found_.clear();
    video.groups.assign(size_t(levels_.count() * problem_.classes), 0);
    video.seconds_per_sample = problem_.seconds_per_row[index] / double(problem_.factor);
    for (int64_t label = 0; label < problem_.classes; ++label) {
      if (problem_.mask[index * problem_.classes + label]) localize(index, label, video);
    }
    video.runs.assign(found_.begin(), found_.end());
  }

 private:
  void localize(int64_t index, int64_t label, Video& video) {
    const uint64_t largest = load(cas_ + index * problem_.stride_video + label * problem_.stride_class);
    const Signal<const double*> signal(x_.data(), problem_.rows, problem_.factor);
    const size_t begin = found_.size();
    walk(signal);
    if (!problem_.keep_first_sample) drop_first_samples_alone(begin);
    if (found_.size() == begin) return;

    const Quantizer quantize = Quantizer::of(largest, problem_.rows);
    uint64_t total = 0;
    for (int64_t n = 0; n < problem_.rows; ++n) {
      before_[size_t(n)] = total;
      total += quantize(x_[size_t(n)]);
    }
    const Contrast contrast(signal, before_.data(), quantize.unit);
    const double bonus = problem_.score_weight * problem_.video_scores[index * problem_.classes + label];
    for (size_t i = begin; i < found_.size(); ++i) {
      Run& run = found_[i];
      run.score = contrast(run.first, run.end, problem_.outer_ratio) + bonus;
      run.group = int32_t(levels_.given(run.group) * problem_.classes + label);
      ++video.groups[size_t(run.group)];
    }
  }

  // The class's rows into x_; the bits of the largest magnitude among them.
  uint64_t load(const T* from) {
    uint64_t largest = 0;
    for (int64_t n = 0; n < problem_.rows; ++n) {
      const double x = double(from[n * problem_.stride_row]);
      x_[size_t(n)] = x;
      largest = std::max(largest, magnitude_bits(x));
    }
    return largest;
  }

  // Appends the runs as they end, `group` still the level.
  void walk(const Signal<const double*>& signal) {
    std::fill(closed_.begin(), closed_.end(), 0);
    int level = levels_.of(signal.x[0], 0);
    std::fill(open_.begin(), open_.begin() + level, 0);
    const int64_t last = signal.intervals() - 1;
    for (int64_t n = 0; n < last;) {
      // Most rows have the level of the one before, and then no sample between them has another.
      const double from = levels_.from(level), until = levels_.until(level);
      while (n < last && signal.x[n + 1] >= from && signal.x[n + 1] < until) ++n;
      if (n < last) level = cross(signal, n, level, signal.x[n + 1]);
      ++n;
    }
    level = cross(signal, last, level, signal.end(last));
    while (level > 0) close(--level, signal.samples());
  }

  // From the level at the first sample of interval n to that of the value at its end.
  int cross(const Signal<const double*>& signal, int64_t n, int level, double end) {
    const int next = levels_.of(end, level);
    for (; level < next; ++level) open_[size_t(level)] = int32_t(signal.crossing(n, levels_[level], true));
    while (level > next) {
      --level;
      close(level, signal.crossing(n, levels_[level], false));
    }
    return level;
  }

  void close(int level, int64_t end) {
    found_.push_back({0.0, open_[size_t(level)], int32_t(end), level});
    ++closed_[size_t(level)];
  }

  // The released code asks `any(indices)`, false where index 0 stands alone.
  void drop_first_samples_alone(size_t begin) {
    const auto alone = [&](const Run& run) { return run.end == 1 && closed_[size_t(run.group)] == 1; };
    found_.erase(std::remove_if(found_.begin() + ptrdiff_t(begin), found_.end(), alone), found_.end());
  }

  const T* cas_;
  const ProposalProblem& problem_;
  const Levels& levels_;
  std::vector<double> x_;
  std::vector<uint64_t> before_;
  std::vector<int32_t> open_;    // first sample of the run that is open at each level
  std::vector<int32_t> closed_;  // number of runs that ended at each level
  std::vector<Run> found_;       // of the video so far
};

}  // namespace

template <typename T>
ProposalList proposals_cpu(const T* cas, const ProposalProblem& problem, int num_threads) {
  ProposalList list;
  list.classes_ = problem.classes;
  list.videos_.resize(size_t(problem.videos));
  const Levels levels(problem);
  const int threads = threads_worth(problem.videos * problem.rows * problem.classes, num_threads);
  parallel_with(problem.videos, threads, [&] { return Localizer<T>(cas, problem, levels); },
                [&](Localizer<T>& localizer, int64_t v) { localizer.run(v, list.videos_[size_t(v)]); });
  for (Video& video : list.videos_) {
    video.begin = list.count_;
    list.count_ += int64_t(video.runs.size());
  }
  return list;
}

template ProposalList proposals_cpu(const float*, const ProposalProblem&, int);
template ProposalList proposals_cpu(const double*, const ProposalProblem&, int);

void ProposalList::copy(ProposalArrays to, int64_t capacity, int num_threads) const {
  const int threads = threads_worth(count_, num_threads);
  using Places = std::vector<int64_t>;
  parallel_with(int64_t(videos_.size()), threads, [] { return Places(); }, [&](Places& places, int64_t index) {
    const Video& video = videos_[size_t(index)];
    places.resize(video.groups.size());
    int64_t place = video.begin;
    for (size_t group = 0; group < places.size(); ++group) {
      places[group] = place;
      place += video.groups[group];
    }
    for (const Run& run : video.runs) {
      const int64_t i = places[size_t(run.group)]++;
      if (i >= capacity) continue;
      to.segments[2 * i] = double(run.first) * video.seconds_per_sample;
      to.segments[2 * i + 1] = double(run.end) * video.seconds_per_sample;
      to.scores[i] = run.score;
      to.classes[i] = run.group % classes_;
      to.video[i] = index;
      to.threshold[i] = run.group / classes_;
    }
  });
}

}  // namespace case_wtal
