"""Which values of settings there are: types as they come from TOML, JSON or NumPy, and ranges."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from case.errors import CaseError

if TYPE_CHECKING:
    from case.config import Settings, TrainConfig

# Beyond it a size is a slip of the finger, and would end in an allocator's message.
_LARGEST = 1 << 24


def coerce(name: str, value: Any, default: Any) -> Any:
    """``value`` in the type of the field's default; NumPy's numbers and lists will do."""
    if isinstance(default, str | Path) and not isinstance(value, str | Path):
        raise CaseError(f"{name} must be text, got {value!r}")
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise CaseError(f"{name} must be true or false, got {value!r}")
    elif isinstance(default, int):
        if isinstance(value, bool) or not isinstance(value, Real) or not float(value).is_integer():
            raise CaseError(f"{name} must be a whole number, got {value!r}")
        return int(float(value)) if not isinstance(value, int) else value
    elif isinstance(default, float):
        return _finite(name, value)
    elif isinstance(default, tuple) or name == "class_names":
        if value is None and default is None:
            return None
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise CaseError(f"{name} must be a list, got {value!r}")
        values = tuple(value)
        if default and isinstance(default[0], float):
            return tuple(_finite(name, item) for item in values)
        if not all(isinstance(item, str) and item for item in values):
            raise CaseError(f"{name} must be a list of names, got {value!r}")
        return values
    return value


def _finite(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise CaseError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise CaseError(f"{name} must be a finite number, got {value!r}")
    return float(value)


def validate(settings: Settings) -> None:
    """Raise ``CaseError`` naming the first field of the method outside its range."""
    s = settings
    positive = (
        "num_classes", "fps", "snippet_stride", "num_segments", "hidden", "num_clusters", "cosine_scale",
        "topk_divisor", "ot_scale", "ot_iters", "lr", "batch_size", "upsample", "nms_sigma", "prior_sigma",
    )  # fmt: skip
    for name in positive:
        if not getattr(s, name) > 0:
            raise CaseError(f"{name} must be greater than 0, got {getattr(s, name)!r}")
    for name in ("max_steps", "w_clu", "w_cls", "weight_decay", "nms_length_offset", "outer_ratio"):
        if not getattr(s, name) >= 0:
            raise CaseError(f"{name} must not be negative, got {getattr(s, name)!r}")
    for name in ("nms_threshold", "class_threshold"):  # of shares: IoU, and a class's score
        if not 0 <= getattr(s, name) <= 1:
            raise CaseError(f"{name} must lie in [0, 1], got {getattr(s, name)!r}")
    if not s.act_thresholds or not all(0 <= t <= 1 for t in s.act_thresholds):
        raise CaseError(f"act_thresholds must hold numbers in [0, 1], got {s.act_thresholds!r}")
    for name in ("num_segments", "hidden", "num_clusters", "num_classes", "batch_size", "upsample"):
        if getattr(s, name) > _LARGEST:
            raise CaseError(f"{name} must not exceed {_LARGEST}, got {getattr(s, name)}")
    if len(s.betas) != 2 or not all(0 <= beta < 1 for beta in s.betas):
        raise CaseError(f"betas must be two numbers in [0, 1), got {s.betas!r}")
    if not 0 < s.gce_q <= 1:
        raise CaseError(f"gce_q must lie in (0, 1], got {s.gce_q!r}")
    if not 0 <= s.label_momentum < 1:
        raise CaseError(f"label_momentum must lie in [0, 1), got {s.label_momentum!r}")
    if not s.modalities:
        raise CaseError("modalities must name at least one feature stream, got none")
    if len(set(s.modalities)) != len(s.modalities):
        raise CaseError(f"modalities must differ from one another, got {s.modalities!r}")
    for name in s.modalities:
        if "." in name or hasattr(dict, name):
            raise CaseError(f"modalities must not hold dots or words of Python's dictionaries, got {name!r}; rename it")
    if s.class_names is not None and len(s.class_names) != s.num_classes:
        raise CaseError(f"class_names must hold num_classes = {s.num_classes} names, got {len(s.class_names)}")
    for name in ("protocol", "prior_ranks", "nms_method", "label_init", "keep_checkpoint"):
        if getattr(s, name) not in _CHOICES[name]:
            raise CaseError(f"{name} must be one of {', '.join(_CHOICES[name])}, got {getattr(s, name)!r}")
    if not s.tiou or not all(0 < t <= 1 for t in s.tiou) or len(set(s.tiou)) < len(s.tiou):
        raise CaseError(f"tiou must hold thresholds in (0, 1], each once, got {s.tiou!r}")


def validate_run(config: TrainConfig) -> None:
    """Raise ``CaseError`` naming the first field of a run outside its range."""
    for name in ("engine", "precision", "storage", "residence"):
        if getattr(config, name) not in _CHOICES[name]:
            raise CaseError(f"{name} must be one of {', '.join(_CHOICES[name])}, got {getattr(config, name)!r}")
    for name in ("log_every", "save_every", "keep_last"):
        if getattr(config, name) < 1:
            raise CaseError(f"{name} must be at least 1, got {getattr(config, name)}")
    for name in ("max_steps", "seed"):
        if not 0 <= getattr(config, name) < 2**63:
            raise CaseError(f"{name} must lie in 0..2^63 - 1, got {getattr(config, name)}")
    for name in ("eval_every", "threads", "pictures"):
        if getattr(config, name) < 0:
            raise CaseError(f"{name} must not be negative, got {getattr(config, name)}")
    if config.threads > 4096:
        raise CaseError(f"threads must not exceed 4096, got {config.threads}")
    if not 0 <= config.val_fraction < 1:
        raise CaseError(f"val_fraction must lie in [0, 1), got {config.val_fraction!r}")
    if config.keep_checkpoint == "best-heldout" and not config.val_fraction:
        raise CaseError("keep_checkpoint best-heldout needs held-out videos; give --val-fraction 0.1, say")


_CHOICES = {
    "protocol": ("released", "corrected"),
    "prior_ranks": ("argsort", "true"),
    "nms_method": ("decay_once", "hard", "linear", "gaussian"),
    "label_init": ("clusters", "classes"),
    "keep_checkpoint": ("best-test", "best-heldout", "last"),
    "engine": ("fast", "plain"),
    "precision": ("fp32", "tf32", "bf16"),
    "storage": ("stored", "float32", "float16", "bfloat16"),
    "residence": ("auto", "device", "host", "disk"),
}
