"""The native module; source in csrc/. Addresses are those of contiguous tensors, as given by ``Tensor.data_ptr()``."""

from typing import Literal, TypedDict

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
