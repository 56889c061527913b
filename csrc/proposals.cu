#include "cuda_check.h"
#include "proposal_blocks.h"

namespace case_wtal {
namespace {

// 256 threads: 750 rows are 3 intervals a thread, so each walk is a few dependent loads long, and a scan is two steps of
// one warp between three barriers. At most 64 registers for counting and 74 for writing on sm_90 (ptxas; 96 on sm_80):
// 4 and 3 blocks a multiprocessor, 396 on an H200 at once, about the 420 columns that THUMOS14's 210 videos keep. A bound
// that forces 64 registers on the second would save a quarter of a wave there and cost nothing where a block waits for
// one, but no GPU has said so yet. Static shared memory: 128 bytes and 2.5 KB.
template <typename Body>
void launch(const Body& body, int64_t blocks, uintptr_t stream, const char* op) {
  if (blocks == 0) return;
  block_kernel<Body, kProposalThreads>
      <<<unsigned(blocks), kProposalThreads, 0, reinterpret_cast<cudaStream_t>(stream)>>>(body);
  check_launch(op);
}

}  // namespace

template <typename T>
void proposals_count_cuda(const T* cas, const ProposalProblem& problem, int32_t* counts, int64_t blocks,
                          uintptr_t stream) {
  launch(CountProposals<T>{cas, problem, counts}, blocks, stream, "proposals_count_cuda");
}

template <typename T>
void proposals_write_cuda(const T* cas, const ProposalProblem& problem, const ProposalOutput& output, int64_t blocks,
                          uintptr_t stream) {
  const WriteProposals<T> body{cas, problem, output.counts, output.ends, output.capacity, output.to,
                               output.x, output.before};
  launch(body, blocks, stream, "proposals_write_cuda");
}

template void proposals_count_cuda(const float*, const ProposalProblem&, int32_t*, int64_t, uintptr_t);
template void proposals_count_cuda(const double*, const ProposalProblem&, int32_t*, int64_t, uintptr_t);
template void proposals_write_cuda(const float*, const ProposalProblem&, const ProposalOutput&, int64_t, uintptr_t);
template void proposals_write_cuda(const double*, const ProposalProblem&, const ProposalOutput&, int64_t, uintptr_t);

}  // namespace case_wtal
