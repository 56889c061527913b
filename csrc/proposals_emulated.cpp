// The kernels of proposals.cu, run by one CPU thread for their tests.
#include "proposal_blocks.h"

namespace case_wtal {
namespace {

ThreadOrder order_of(int order) { return static_cast<ThreadOrder>(order); }

}  // namespace

template <typename T>
void proposals_count_emulated(const T* cas, const ProposalProblem& problem, int32_t* counts, Emulation with) {
  emulate(CountProposals<T>{cas, problem, counts}, with.blocks, with.threads, order_of(with.order), with.seed);
}

template <typename T>
void proposals_write_emulated(const T* cas, const ProposalProblem& problem, const ProposalOutput& output,
                              Emulation with) {
  const WriteProposals<T> body{cas, problem, output.counts, output.ends, output.capacity, output.to,
                               output.x, output.before};
  emulate(body, with.blocks, with.threads, order_of(with.order), with.seed);
}

template void proposals_count_emulated(const float*, const ProposalProblem&, int32_t*, Emulation);
template void proposals_count_emulated(const double*, const ProposalProblem&, int32_t*, Emulation);
template void proposals_write_emulated(const float*, const ProposalProblem&, const ProposalOutput&, Emulation);
template void proposals_write_emulated(const double*, const ProposalProblem&, const ProposalOutput&, Emulation);

}  // namespace case_wtal
