// Kernel bodies that run on a GPU and, for their tests, on a CPU: a block of threads, phase by phase.
//
// A body is a template over Block and consists of phases, block.each([&](int t) {...}), each of which every thread of
// the block runs to its end before the next begins. On the device a phase ends in __syncthreads(); on the host the
// threads of a phase run one after another, in an order that the caller chooses, so that a result that hangs on the
// order (a race between threads of one phase) shows. What follows from that:
//   - nothing that belongs to one thread outlives a phase, except in shared or global memory;
//   - code between phases is the same for all threads: it reads arguments, what is shared, and results of scans, and
//     no phase may be skipped by some threads only;
//   - threads of one phase share nothing that one of them writes, except by atomic_add.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define CASE_HD __host__ __device__
#define CASE_BODY __device__  // bodies: under nvcc for the device, under the host's compiler for the emulation
#define CASE_UNROLL _Pragma("unroll")
#else
#define CASE_HD
#define CASE_BODY
#define CASE_UNROLL
#endif

#ifndef __CUDACC__
#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <vector>
#endif

namespace case_wtal {

constexpr int kWarp = 32;
constexpr int kMaxBlockThreads = 1024;

#ifdef __CUDACC__

// The block that the running thread is in, of a one-dimensional launch with a multiple of 32 threads.
class DeviceBlock {
 public:
  __device__ int64_t index() const { return blockIdx.x; }
  __device__ int64_t blocks() const { return gridDim.x; }
  __device__ int threads() const { return int(blockDim.x); }

  template <typename F>
  __device__ void each(const F& f) const {
    f(int(threadIdx.x));
    __syncthreads();
  }

  template <typename T>
  __device__ static void atomic_add(T* where, T value) {
    atomicAdd(where, value);
  }

  // values[t] becomes the sum of values[0 .. t), for the block's threads t; returns the sum of all. `values` is shared
  // memory. Sums of integers: the order of addition is not the host's.
  template <typename T>
  __device__ T exclusive_scan(T* values) const {
    __shared__ T of_warps[kMaxBlockThreads / kWarp];
    const int t = int(threadIdx.x), lane = t % kWarp, warp = t / kWarp, warps = int(blockDim.x) / kWarp;
    const T own = values[t];
    const T within = inclusive(own, lane);
    if (lane == kWarp - 1) of_warps[warp] = within;
    __syncthreads();
    if (warp == 0) {
      const T sum = inclusive(lane < warps ? of_warps[lane] : T(0), lane);
      if (lane < warps) of_warps[lane] = sum;
    }
    __syncthreads();
    values[t] = within - own + (warp > 0 ? of_warps[warp - 1] : T(0));
    const T total = of_warps[warps - 1];
    __syncthreads();
    return total;
  }

  // The largest of values[0 .. threads), which stay as they are; none of them NaN.
  template <typename T>
  __device__ T maximum(const T* values) const {
    __shared__ T of_warps[kMaxBlockThreads / kWarp];
    const int t = int(threadIdx.x), lane = t % kWarp, warps = int(blockDim.x) / kWarp;
    const T of_warp = largest(values[t]);
    if (lane == 0) of_warps[t / kWarp] = of_warp;
    __syncthreads();
    const T found = largest(of_warps[lane < warps ? lane : 0]);
    __syncthreads();
    return found;
  }

 private:
  template <typename T>
  __device__ static T inclusive(T value, int lane) {
    for (int by = 1; by < kWarp; by *= 2) {
      const T other = __shfl_up_sync(0xffffffffu, value, by);
      if (lane >= by) value += other;
    }
    return value;
  }

  template <typename T>
  __device__ static T largest(T value) {
    for (int by = kWarp / 2; by > 0; by /= 2) {
      const T other = __shfl_xor_sync(0xffffffffu, value, by);
      value = value < other ? other : value;
    }
    return value;
  }
};

// One block of a launch; Body brings `struct Shared`, plain data, and operator()(block, shared). kBlocks: how many of them
// a multiprocessor is to have registers for, where the compiler would rather spill some to have one more.
template <typename Body, int kThreads, int kBlocks = 1>
__global__ void __launch_bounds__(kThreads, kBlocks) block_kernel(Body body) {
  __shared__ typename Body::Shared shared;
  DeviceBlock block;
  body(block, shared);
}

#else

// The order in which the threads of a phase run on the host. Shuffled: another permutation in each phase.
enum class ThreadOrder { forward, reversed, shuffled };

class HostBlock {
 public:
  HostBlock(int64_t index, int64_t blocks, int threads, ThreadOrder order, uint64_t seed)
      : index_(index), blocks_(blocks), threads_(threads), order_(order), state_(seed + uint64_t(index)) {
    if (threads < 1 || threads > kMaxBlockThreads) throw std::invalid_argument("threads must be 1 to 1024");
    permutation_.resize(size_t(threads));
    for (int t = 0; t < threads; ++t) permutation_[size_t(t)] = order == ThreadOrder::reversed ? threads - 1 - t : t;
  }

  int64_t index() const { return index_; }
  int64_t blocks() const { return blocks_; }
  int threads() const { return threads_; }

  template <typename F>
  void each(const F& f) {
    if (order_ == ThreadOrder::shuffled) shuffle();
    for (const int t : permutation_) f(t);
  }

  template <typename T>
  static void atomic_add(T* where, T value) {
    *where += value;
  }

  template <typename T>
  T exclusive_scan(T* values) const {
    T sum = 0;
    for (int t = 0; t < threads_; ++t) {
      const T own = values[t];
      values[t] = sum;
      sum += own;
    }
    return sum;
  }

  template <typename T>
  T maximum(const T* values) const {
    return *std::max_element(values, values + threads_);
  }

 private:
  void shuffle() {
    for (size_t left = permutation_.size(); left > 1; --left) {
      state_ = state_ * 6364136223846793005u + 1442695040888963407u;  // Knuth's linear congruential generator
      std::swap(permutation_[left - 1], permutation_[size_t((state_ >> 33) % left)]);
    }
  }

  int64_t index_, blocks_;
  int threads_;
  ThreadOrder order_;
  uint64_t state_;
  std::vector<int> permutation_;
};

// What block_kernel does, on the host, block after block. Shared memory is full of what nobody wrote, as on the device.
template <typename Body>
void emulate(const Body& body, int64_t blocks, int threads, ThreadOrder order, uint64_t seed) {
  typename Body::Shared shared;
  for (int64_t index = 0; index < blocks; ++index) {
    std::memset(static_cast<void*>(&shared), 0xa5, sizeof(shared));
    HostBlock block(index, blocks, threads, order, seed);
    body(block, shared);
  }
}

#endif

}  // namespace case_wtal
