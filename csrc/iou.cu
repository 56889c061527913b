#include "cuda_check.h"
#include "iou.h"
#include "segment.h"

#include <algorithm>

namespace case_wtal {
namespace {

constexpr int kThreads = 256;
// Each thread keeps one segment of b in registers and walks this many rows: enough reuse to be bound by the writes.
constexpr int kRowsPerThread = 8;
constexpr int64_t kMaxGridYZ = 65535;

// Not aligned as a pair: a contiguous view of a tensor may start at any element.
template <typename T>
struct Segment {
  T start, end;
};

// Block (x, y): columns along x so that a warp writes consecutive addresses, rows along y. The grid covers columns
// along x, rows along y and batch entries along z; the last two stride, since those grid sizes are limited.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    iou_kernel(const Segment<T>* __restrict__ a, const Segment<T>* __restrict__ b, T* __restrict__ out, IouSizes sizes,
               T offset) {
  const int64_t column = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column >= sizes.p) return;
  const int64_t rows_per_block = int64_t(blockDim.y) * kRowsPerThread;
  for (int64_t entry = blockIdx.z; entry < sizes.batch; entry += gridDim.z) {
    const Segment<T> y = b[entry * sizes.p + column];
    const Segment<T>* a_of_entry = a + entry * sizes.m;
    T* out_of_entry = out + entry * sizes.m * sizes.p + column;
    for (int64_t first = blockIdx.y * rows_per_block; first < sizes.m; first += gridDim.y * rows_per_block) {
// Two at a time: more makes ptxas spill around the division (sm_100, sm_120) and costs occupancy.
#pragma unroll 2
      for (int r = 0; r < kRowsPerThread; ++r) {
        const int64_t row = first + r * int64_t(blockDim.y) + threadIdx.y;
        if (row >= sizes.m) break;
        const Segment<T> x = a_of_entry[row];
        out_of_entry[row * sizes.p] = segment_iou(x.start, x.end, x.end - x.start + offset, y.start, y.end, offset);
      }
    }
  }
}

int64_t ceil_div(int64_t n, int64_t d) { return (n + d - 1) / d; }

}  // namespace

template <typename T>
void iou_cuda(const T* a, const T* b, T* out, IouSizes sizes, T length_offset, uintptr_t stream) {
  if (sizes.batch == 0 || sizes.m == 0 || sizes.p == 0) return;
  int columns = 1;  // A power of two: few columns leave the rest of the block to rows.
  while (columns < kThreads && columns < sizes.p) columns *= 2;
  const dim3 block(columns, kThreads / columns);
  const dim3 grid(ceil_div(sizes.p, columns),
                  std::min(ceil_div(sizes.m, int64_t(block.y) * kRowsPerThread), kMaxGridYZ),
                  std::min(sizes.batch, kMaxGridYZ));
  iou_kernel<T><<<grid, block, 0, reinterpret_cast<cudaStream_t>(stream)>>>(
      reinterpret_cast<const Segment<T>*>(a), reinterpret_cast<const Segment<T>*>(b), out, sizes, length_offset);
  check_launch("iou_cuda");
}

template void iou_cuda(const float*, const float*, float*, IouSizes, float, uintptr_t);
template void iou_cuda(const double*, const double*, double*, IouSizes, double, uintptr_t);

}  // namespace case_wtal
