"""What ``temporal_iou``, ``nms`` and ``batched_nms`` refuse, and how they say it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from case import ops

SEGMENTS, SCORES, GROUPS = torch.zeros(4, 2), torch.zeros(4), torch.zeros(4, dtype=torch.int64)
INFINITE = torch.tensor([0.0, 1.0, math.inf, 2.0])
NAN_END = torch.tensor([[0.0, 1.0], [0.0, math.nan], [0.0, 1.0], [0.0, 1.0]])

WRONG: list[tuple[dict[str, Any], type[Exception], str, str]] = [
    ({"segments": [[0.0, 1.0]]}, TypeError, "segments", "list"),
    ({"segments": SEGMENTS.int()}, TypeError, "segments", "torch.int32"),
    ({"segments": SEGMENTS.half()}, TypeError, "segments", "torch.float16"),
    ({"segments": torch.zeros(4)}, ValueError, "segments", "(4,)"),
    ({"segments": torch.zeros(4, 3)}, ValueError, "segments", "(4, 3)"),
    ({"segments": NAN_END}, ValueError, "segments", "nan at index (1, 1)"),
    ({"segments": torch.tensor([[-3e38, 3e38]]).repeat(4, 1)}, ValueError, "segments", "-3e+38 to 3e+38"),
    ({"scores": torch.zeros(3)}, ValueError, "scores", "(3,)"),
    ({"scores": SCORES.bfloat16()}, TypeError, "scores", "torch.bfloat16"),
    ({"scores": SCORES.double()}, TypeError, "scores", "torch.float64"),
    ({"scores": INFINITE}, ValueError, "scores", "inf at index (2,)"),
    ({"scores": SCORES.to("meta")}, ValueError, "scores", "meta"),
    ({"iou_threshold": 1.5}, ValueError, "iou_threshold", "1.5"),
    ({"iou_threshold": math.nan}, ValueError, "iou_threshold", "nan"),
    ({"method": "soft"}, ValueError, "method", "'soft'"),
    ({"sigma": 0.0}, ValueError, "sigma", "0.0"),
    ({"min_score": math.nan}, ValueError, "min_score", "nan"),
    ({"max_num": 0}, ValueError, "max_num", "0"),
    ({"length_offset": math.inf}, ValueError, "length_offset", "inf"),
]
WRONG_GROUPS: list[tuple[dict[str, Any], type[Exception], str, str]] = [
    ({"groups": GROUPS.int()}, TypeError, "groups", "torch.int32"),
    ({"groups": [0, 0, 0, 0]}, TypeError, "groups", "list"),
    ({"groups": GROUPS[:3]}, ValueError, "groups", "(3,)"),
    ({"groups": GROUPS.to("meta")}, ValueError, "groups", "meta"),
    ({"vote": math.nan}, ValueError, "vote", "nan"),
]


@pytest.mark.parametrize("given, kind, argument, got", WRONG, ids=[f"{a}-{g}" for _, _, a, g in WRONG])
def test_nms_refuses(fails, given, kind, argument, got):
    arguments = {"segments": SEGMENTS, "scores": SCORES, "iou_threshold": 0.4, **given}
    with fails(kind, "nms", argument, got):
        ops.nms(**arguments)
    for op in (ops.batched_nms, ops.batched_nms_padded):
        with fails(kind, op.__name__, argument, got):
            op(**arguments, groups=GROUPS)


def test_padded_refuses_no_capacity(fails):
    for capacity in (0, 2.5):
        with fails(ValueError, "batched_nms_padded", "capacity", str(capacity)):
            ops.batched_nms_padded(SEGMENTS, SCORES, GROUPS, 0.4, capacity=capacity)


@pytest.mark.parametrize("given, kind, argument, got", WRONG_GROUPS, ids=[f"{a}-{g}" for _, _, a, g in WRONG_GROUPS])
def test_batched_nms_refuses(fails, given, kind, argument, got):
    with fails(kind, "batched_nms", argument, got):
        ops.batched_nms(**{"segments": SEGMENTS, "scores": SCORES, "groups": GROUPS, "iou_threshold": 0.4, **given})


WRONG_IOU: list[tuple[dict[str, Any], type[Exception], str, str]] = [
    ({"a": [0.0, 1.0]}, TypeError, "a", "list"),
    ({"a": SEGMENTS.int()}, TypeError, "a", "torch.int32"),
    ({"a": torch.zeros(4, 3)}, ValueError, "a", "(4, 3)"),
    ({"b": torch.zeros(2)}, ValueError, "b", "(2,)"),
    ({"b": torch.zeros(1, 4, 2)}, ValueError, "b", "(1, 4, 2)"),
    ({"b": SEGMENTS.double()}, TypeError, "b", "torch.float64"),
    ({"b": SEGMENTS.to("meta")}, ValueError, "b", "meta"),
    ({"length_offset": math.nan}, ValueError, "length_offset", "nan"),
]


@pytest.mark.parametrize("given, kind, argument, got", WRONG_IOU, ids=[f"{a}-{g}" for _, _, a, g in WRONG_IOU])
def test_temporal_iou_refuses(fails, given, kind, argument, got):
    with fails(kind, "temporal_iou", argument, got):
        ops.temporal_iou(**{"a": SEGMENTS, "b": SEGMENTS, **given})
