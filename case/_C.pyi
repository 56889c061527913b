"""The native module; source in csrc/. Addresses are as given by ``Tensor.data_ptr()``; 0 is absent, strides are in
elements, and what has none is contiguous."""

from typing import Literal, TypedDict

INTERFACE: str  # SHA-256 of this file when the module was compiled

class BuildInfo(TypedDict):
    version: str
    compiler: str
    openmp: bool
    openmp_max_threads: int
    cuda: bool
    cuda_version: str | None
    cuda_archs: list[str]

def build_info() -> BuildInfo: ...
def iou_cpu(
    a: int,
    b: int,
    out: int,
    batch: int,
    m: int,
    p: int,
    dtype: Literal["float32", "float64"],
    length_offset: float = 0.0,
    num_threads: int = 0,
) -> None:
    """Pairwise temporal IoU: a (batch, m, 2), b (batch, p, 2) -> out (batch, m, p), in host memory."""

def iou_backward_cpu(
    a: int,
    b: int,
    cotangent: int,
    results: tuple[int, int],
    batch: int,
    m: int,
    p: int,
    dtype: Literal["float32", "float64"],
    length_offset: float = 0.0,
    num_threads: int = 0,
) -> None:
    """Its gradients: cotangent (batch, m, p) -> (a, b), in the shapes of these."""

_Emulation = tuple[int, int, int, int]  # blocks, threads, order of the threads, seed
_Nms = tuple[float, str, float, float, int, float]  # iou_threshold, method, sigma, min_score, max_num, length_offset

def nms_cpu(
    segments: int,
    scores: int,
    groups: int,
    n: int,
    dtype: Literal["float32", "float64"],
    settings: _Nms,
    keep: int,
    kept_scores: int,
    num_threads: int = 0,
) -> int:
    """NMS within groups: segments (n, 2), scores (n,), groups (n,) int64 -> how many of the n places in keep (int64)
    and kept_scores are filled; see csrc/nms.h."""

def score_vote_cpu(
    keep: int,
    kept: int,
    segments: int,
    scores: int,
    groups: int,
    n: int,
    dtype: Literal["float32", "float64"],
    threshold: float,
    length_offset: float,
    out: int,
    num_threads: int = 0,
) -> None:
    """Score voting: out (kept, 2); see csrc/nms.h."""

# segments, scores, groups (rising), segment of each row (0: its number), n, dtype.
_NmsRows = tuple[int, int, int, int, int, str]
_NmsOutcome = tuple[int, int, int]  # sorted, head, by: int32 (n,)

def nms_settle_emulated(
    rows: _NmsRows,
    threshold: float,
    length_offset: float,
    spare: int,
    most: int,
    outcome: _NmsOutcome,
    emulation: _Emulation,
) -> None:
    """Order by score and who settles whom in hard NMS (csrc/nms.h), by the kernel of csrc/nms_blocks.h on the CPU."""

def nms_settle_cuda(
    rows: _NmsRows,
    threshold: float,
    length_offset: float,
    spare: int,
    most: int,
    outcome: _NmsOutcome,
    stream: int = 0,
) -> None:
    """The same on the current CUDA device, enqueued on ``stream``; absent if built without CUDA."""

# segments, key, slot, head, position, n, dtype, fine.
_NmsIndex = tuple[int, int, int, int, int, int, str, float]

def nms_rounds_emulated(
    index: _NmsIndex,
    threshold: float,
    length_offset: float,
    state: int,
    left: int,
    rounds: int,
    by: int,
    emulation: _Emulation,
) -> None:
    """Who settles whom in groups of any size (csrc/nms.h), by the kernels of csrc/nms_rounds.h on the CPU."""

# score, first_key, key, turn, threshold, min_score, gaussian, sigma, rival.
_NmsDecay = tuple[int, int, int, int, float, float, bool, float, int]

def nms_soft_emulated(
    index: _NmsIndex, decay: _NmsDecay, length_offset: float, left: int, first: int, rounds: int, emulation: _Emulation
) -> None:
    """Rounds of soft-NMS (csrc/nms.h), by the kernels of csrc/nms_soft_rounds.h on the CPU."""

def nms_soft_cuda(
    index: _NmsIndex, decay: _NmsDecay, length_offset: float, left: int, first: int, rounds: int, stream: int = 0
) -> None:
    """The same on the current CUDA device, enqueued on ``stream``; absent if built without CUDA."""

def nms_soft_groups_emulated(
    index: _NmsIndex, decay: _NmsDecay, length_offset: float, first: int, most: int, emulation: _Emulation
) -> None:
    """Soft-NMS of whole groups (csrc/nms.h), by the kernel of csrc/nms_soft_rounds.h on the CPU."""

def nms_soft_groups_cuda(
    index: _NmsIndex, decay: _NmsDecay, length_offset: float, first: int, most: int, stream: int = 0
) -> None:
    """The same on the current CUDA device, enqueued on ``stream``; absent if built without CUDA."""

# score, position, kept, threshold, out.
_NmsBallot = tuple[int, int, int, float, int]

def nms_vote_emulated(index: _NmsIndex, ballot: _NmsBallot, length_offset: float, emulation: _Emulation) -> None:
    """Score voting (csrc/nms.h), by the kernel of csrc/nms_vote_blocks.h on the CPU."""

def nms_vote_cuda(index: _NmsIndex, ballot: _NmsBallot, length_offset: float, stream: int = 0) -> None:
    """The same on the current CUDA device, enqueued on ``stream``; absent if built without CUDA."""

def nms_rounds_cuda(
    index: _NmsIndex,
    threshold: float,
    length_offset: float,
    state: int,
    left: int,
    rounds: int,
    by: int,
    stream: int = 0,
) -> None:
    """The same on the current CUDA device, enqueued on ``stream``; absent if built without CUDA."""

_Heads = tuple[
    Literal["float32", "float64"],
    tuple[int, int, int, int, int],  # groups, rows, hidden, classes, clusters
    tuple[int, int, int, int, int],  # HeadWeights in csrc/heads.h
    float,  # scale
    tuple[int, int, int, int, int],  # HeadOutputs; backward does not read cas
]

def heads_cpu(problem: _Heads, num_threads: int = 0) -> None:
    """Bias and relu of the hidden layers, in place, and the outputs of the heads: see csrc/heads.h."""

def heads_backward_cpu(
    problem: _Heads,
    given: tuple[int, int, int],
    results: tuple[int, int, int, int],
    num_threads: int = 0,
) -> None:
    """HeadCotangents -> HeadGradients."""

_Matrix = tuple[int, int, int]
_Problem = tuple[
    Literal["float32", "float64"],
    tuple[int, int, int],  # batch, n, k
    _Matrix,  # logits: address, strides of batch and rows
    _Matrix,  # prior
    tuple[int, int, int, int],  # mask: address, strides of batch, rows and columns
    tuple[int, int, float],  # relative ranks, centres, sigma
    tuple[int, int],  # row and column marginal
    tuple[float, int, float, float],  # scale, n_iters, tol (negative: none), linear_range
]
_History = tuple[int, int, int, int]  # v, columns, ran, lowest: see SinkhornHistory in csrc/sinkhorn.h

def sinkhorn_cpu(problem: _Problem, q: int, u: int, v: int, history: _History, num_threads: int = 0) -> bool:
    """Plans q (batch, n, k), or potentials u (batch, n) and v (batch, k). False: history does not do for a gradient."""

def sinkhorn_backward_cpu(
    problem: _Problem,
    history: _History,
    grads: tuple[int, int, int],
    results: tuple[int, int, int, int, int],
    num_threads: int = 0,
) -> None:
    """Cotangents (q, u, v) -> gradients (logits, prior, centers, row_marginal, column_marginal)."""

_Wide = tuple[int, int, int, int]  # groups, rows, columns, width
_Cosine = tuple[
    Literal["float32", "float64"],
    _Wide,
    _Matrix,  # x
    int,  # y
    float,  # scale
    bool,  # unit_y
    bool,  # softmax
]

def cosine_cpu(problem: _Cosine, outputs: tuple[int, int], num_threads: int = 0) -> None:
    """Logits or their softmax, and the lengths of x, 0: not kept; see csrc/cosine.h."""

def cosine_backward_cpu(
    problem: _Cosine, outputs: tuple[int, int], cotangent: int, results: tuple[int, int], num_threads: int = 0
) -> None:
    """Gradients (x, y), 0 for what is not wanted."""

_Prototypes = tuple[
    Literal["float32", "float64"],
    _Wide,
    _Matrix,  # embeddings
    _Matrix,  # weights
    Literal["mean", "l2", "sum"],
]

def prototypes_cpu(problem: _Prototypes, z: int, kept: tuple[int, int], num_threads: int = 0) -> None:
    """Weighted sums of rows, normalised; kept: sums and sizes, 0: not kept; see csrc/prototypes.h."""

def prototypes_backward_cpu(
    problem: _Prototypes, kept: tuple[int, int], cotangent: int, results: tuple[int, int], num_threads: int = 0
) -> None:
    """Gradients (embeddings, weights), 0 for what is not wanted."""

_Rows = tuple[
    Literal["float32", "float64"],
    tuple[int, int, int],  # batch, n, k
    _Matrix,  # logits or probabilities
    _Matrix,  # targets
]

def soft_cross_entropy_cpu(rows: _Rows, losses: int, num_threads: int = 0) -> None:
    """Soft cross entropies (batch, n); see csrc/losses.h."""

def soft_cross_entropy_backward_cpu(
    rows: _Rows, cotangent: _Matrix, results: tuple[int, int], num_threads: int = 0
) -> None:
    """Their gradients (logits, targets), 0 for what is not wanted; a cotangent has one column."""

def generalized_cross_entropy_cpu(rows: _Rows, q: float, losses: int, num_threads: int = 0) -> None:
    """Generalized cross entropies (batch, n); see csrc/losses.h."""

def generalized_cross_entropy_backward_cpu(
    rows: _Rows, q: float, cotangent: _Matrix, results: tuple[int, int], num_threads: int = 0
) -> None:
    """Their gradients (probabilities, targets), likewise."""

_Pool = tuple[int, int, int, int]  # batch, t, c, k

def topk_cpu(
    selector: int,
    strides: tuple[int, int, int],
    sizes: _Pool,
    indices: int,
    dtype: Literal["float32", "float64"],
    num_threads: int = 0,
) -> None:
    """int64 indices (batch, k, c) of the k largest of each column of a selector (batch, t, c); see csrc/pooling.h."""

_PoolForm = tuple[int, bool]  # copies, shared

def pool_cpu(
    values: int,
    rows: int,
    form: _PoolForm,
    sizes: _Pool,
    pooled: int,
    dtype: Literal["float32", "float64"],
    num_threads: int = 0,
) -> None:
    """Means (copies, batch, c) at rows (batch, k, c) of values (copies, batch, t, c) or, shared, (copies, t, c).

    IndexError where a row is not in 0..t - 1.
    """

def pool_backward_cpu(
    cotangent: int,
    rows: int,
    form: _PoolForm,
    sizes: _Pool,
    gradient: int,
    dtype: Literal["float32", "float64"],
    num_threads: int = 0,
) -> None:
    """Their gradient, in the shape of the values; likewise."""

def rank_positions_cpu(
    scores: int,
    valid: int,
    out: int,
    batch: int,
    n: int,
    dtype: Literal["float32", "float64"],
    argsort: bool = False,
    num_threads: int = 0,
) -> None:
    """Relative ranks in (0, 1] of scores (batch, n)."""

def rank_prior_cpu(
    positions: int,
    centers: int,
    sigma: float,
    out: int,
    batch: int,
    n: int,
    k: int,
    dtype: Literal["float32", "float64"],
    num_threads: int = 0,
) -> None:
    """Rank priors (batch, n, k) from relative ranks (batch, n) and centres (batch, k)."""

_Table = tuple[int, int, int, int]  # video, label (int64), segment (float64, pairs), count

def mean_ap_cpu(
    truth: _Table,
    found: _Table,
    score: int,
    forgive: int,
    tiou: tuple[int, int],
    classes: int,
    videos: int,
    ap: int,
    claim: int,
    best_only: bool = False,
    envelope: bool = True,
    num_threads: int = 0,
) -> None:
    """AP (thresholds, classes) and claims (count, thresholds) int64 of labelled segments: see csrc/map.h."""

def network_order(values: int, out: int, count: int) -> None:
    """The order in which equal IoUs are claimed, reversed: float64 values -> int64 indices."""

def read_detections(text: bytes) -> tuple[list[str], list[str], bytes, bytes, bytes, bytes] | None:
    """Names of videos and labels, then video, label (int64), segment and score (float64) of a detections file in UTF-8;
    None where its form is not the usual one."""

_Proposals = tuple[
    Literal["float32", "float64"],
    tuple[int, int, int, int],  # videos, rows, classes, thresholds
    int,  # activations
    tuple[int, int, int],  # their strides
    int,  # thresholds
    int,  # video scores
    int,  # mask
    int,  # seconds per row
    tuple[int, float, float, bool],  # upsample, outer_ratio, score_weight, keep_first_sample
]
_ProposalArrays = tuple[int, int, int, int, int]  # segments, scores, classes, video, threshold
_ProposalOutput = tuple[int, int, int, _ProposalArrays, int, int]  # see ProposalOutput in csrc/proposals.h

class ProposalList:
    """Proposals found, before there are arrays to hold them."""

    def __len__(self) -> int: ...
    def copy(self, to: _ProposalArrays, capacity: int, num_threads: int = 0) -> None:
        """Writes the first ``capacity`` of them."""

def proposals_cpu(problem: _Proposals, num_threads: int = 0) -> ProposalList:
    """Proposals of activations in host memory."""

def proposals_count_emulated(problem: _Proposals, counts: int, emulation: _Emulation) -> None:
    """int32 counts (videos, thresholds, classes) by the first kernel, run by one CPU thread."""

def proposals_write_emulated(problem: _Proposals, output: _ProposalOutput, emulation: _Emulation) -> None:
    """The proposals by the second kernel, run by one CPU thread."""

def proposals_count_cuda(problem: _Proposals, counts: int, blocks: int, stream: int = 0) -> None:
    """The first kernel on the current CUDA device, enqueued on ``stream``; absent if built without CUDA."""

def proposals_write_cuda(problem: _Proposals, output: _ProposalOutput, blocks: int, stream: int = 0) -> None:
    """The second kernel, likewise."""

def exp_cpu(x: int, out: int, count: int, dtype: Literal["float32", "float64"]) -> None:
    """The vectorised exp of the kernels, for its tests."""

def log_cpu(x: int, out: int, count: int, dtype: Literal["float32", "float64"]) -> None:
    """The vectorised log of the kernels, for its tests."""

def pow_cpu(x: int, q: float, out: int, count: int, dtype: Literal["float32", "float64"]) -> None:
    """Their vectorised x^q for one q, for its tests."""

def iou_cuda(
    a: int,
    b: int,
    out: int,
    batch: int,
    m: int,
    p: int,
    dtype: Literal["float32", "float64"],
    length_offset: float = 0.0,
    stream: int = 0,
) -> None:
    """The same on the current CUDA device, enqueued on ``stream``; absent if built without CUDA."""
