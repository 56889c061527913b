// How a kernel of block.h runs on the host, for its tests.
#pragma once

#include <cstdint>

namespace case_wtal {

// By one thread, in host memory. order: of the threads within a phase, 0 rising, 1 falling, 2 shuffled by `seed`.
struct Emulation {
  int64_t blocks;
  int threads, order;
  uint64_t seed;
};

}  // namespace case_wtal
