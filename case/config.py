"""Settings: every number that decides a result, under one flat, frozen dataclass.

A run is described by a preset (``thumos14``, ``activitynet12``, ``activitynet13``, ``demo``: sizes of a data set)
and a protocol (``released`` or ``corrected``: which of the released code's departures from its own formulas are
reproduced). Both only choose defaults; every field can be set on its own. No torch here: the command line reads
this file to answer ``--help``.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from case.errors import CaseError
from case.settings_check import coerce, validate, validate_run

Protocol = Literal["released", "corrected"]
Preset = Literal["thumos14", "activitynet12", "activitynet13", "demo"]

THUMOS14_CLASSES = (
    "BaseballPitch", "BasketballDunk", "Billiards", "CleanAndJerk", "CliffDiving", "CricketBowling", "CricketShot",
    "Diving", "FrisbeeCatch", "GolfSwing", "HammerThrow", "HighJump", "JavelinThrow", "LongJump", "PoleVault",
    "Shotput", "SoccerPenalty", "TennisSwing", "ThrowDiscus", "VolleyballSpiking",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """The method's settings. Defaults: THUMOS14, released protocol (METHOD.md)."""

    protocol: Protocol = "released"
    """Defaults of the numbered settings below: as the released code computes, or as its formulas say."""

    # -- data ------------------------------------------------------------------------------------------------
    num_classes: int = 20
    """C, action classes. `case-wtal train` takes it from the data."""
    modalities: tuple[str, ...] = ("rgb", "flow")
    """Feature streams, in the order in which they are concatenated."""
    fps: float = 25.0
    """Frames per second of the video the features were made from."""
    snippet_stride: int = 16
    """Frames per feature row; row i covers [i * stride / fps, (i + 1) * stride / fps) seconds."""
    num_segments: int = 750
    """T, rows sampled per video, in training and in testing."""

    # -- network ---------------------------------------------------------------------------------------------
    hidden: int = 512
    """H, embedding width."""
    num_clusters: int = 16
    """K, snippet clusters."""
    cosine_scale: float = 10.0
    """Factor on cosine similarities in cluster and foreground/background logits."""

    # -- objective -------------------------------------------------------------------------------------------
    topk_divisor: int = 8
    """MIL pooling averages over k = T // topk_divisor snippets."""
    gce_q: float = 0.7
    """Exponent of the generalized cross entropy of the attention."""
    ot_scale: float = 2.0
    """Logits are multiplied by this before the optimal transport (20/10 in the released code)."""
    ot_iters: int = 3
    """Sinkhorn iterations."""
    w_clu: float = 1.0
    """Weight of the snippet clustering loss L_C."""
    w_cls: float = 0.3
    """Weight of the cluster classification loss L_R."""
    clustering: bool = True
    """Off: the attention-only baseline, without clustering losses and cluster foreground."""

    # -- optimisation ----------------------------------------------------------------------------------------
    lr: float = 1e-4
    """Adam learning rate."""
    weight_decay: float = 5e-4
    """L2 weight decay, inside Adam."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam moment coefficients."""
    batch_size: int = 16
    """B, videos per step."""
    max_steps: int = 3600
    """Training steps (300 epochs of 12 steps on THUMOS14)."""

    # -- inference and evaluation ----------------------------------------------------------------------------
    class_threshold: float = 0.25
    """Classes whose video score reaches this are localized; if none does, the best one is."""
    act_thresholds: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    """Thresholds on the fused CAS that make proposals."""
    upsample: int = 24
    """Factor by which the fused CAS is interpolated in time before thresholding."""
    nms_method: Literal["decay_once", "hard", "linear", "gaussian"] = "decay_once"
    """How overlapping proposals of one class are resolved."""
    nms_threshold: float = 0.4
    """IoU at which a proposal counts as a repeat."""
    nms_sigma: float = 0.35
    """Decay exp(-IoU^2 / sigma)."""
    tiou: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
    """IoU thresholds of the mAP."""

    # -- the released code's departures from its own formulas (METHOD.md, Deviations), each on its own ---------------
    prior_ranks: Literal["argsort", "true"] = "argsort"
    """1. p_n of the rank prior: the released code uses argsort(-A) itself; `true` is the rank of n."""
    prior_sigma: float = 10.0
    """2. Width of the rank prior; at 10 it does nothing."""
    outer_ratio: float = 0.15
    """3a. lambda of the outer-inner contrast: outer length over inner length."""
    score_weight: float = 0.2
    """3b. gamma: weight of the video score in the proposal score."""
    nms_length_offset: float = 1.0
    """4. Seconds added to lengths and intersections inside NMS."""
    keep_first_sample: bool = False
    """5. Keep a proposal where sample 0 alone is above a threshold for its class."""
    label_init: Literal["clusters", "classes"] = "clusters"
    """6a. Cluster labels start at 1/K in both columns (`clusters`), or at 1/2, rows summing to 1 (`classes`)."""
    label_momentum: float = 0.0
    """6b. Cluster labels for inference: share of the running mean kept each step; 0 keeps the last batch's."""
    keep_checkpoint: Literal["best-test", "best-heldout", "last"] = "best-test"
    """7. Which checkpoint is the run's result. best-test selects on the test set; best-heldout on --val-fraction of the
    training videos. All that there are are reported."""

    class_names: tuple[str, ...] | None = None
    """Class names in index order; None: THUMOS14's for 20 classes, else class_0, class_1, ..."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in index order, always num_classes of them."""
        if self.class_names is not None:
            return self.class_names
        if self.num_classes == len(THUMOS14_CLASSES):
            return THUMOS14_CLASSES
        return tuple(f"class_{i}" for i in range(self.num_classes))

    @property
    def seconds_per_snippet(self) -> float:
        return self.snippet_stride / self.fps


@dataclass(frozen=True)
class TrainConfig(Settings):
    """A training run: the method's settings and how the run itself goes. Saved with the run as ``config.toml``."""

    # -- run -------------------------------------------------------------------------------------------------
    preset: Preset = "thumos14"
    """Which data set's settings to start from."""
    data: Path | None = None
    """Data folder: features/, gt.json, split_train.txt, split_test.txt, dataset.json."""
    output: Path = Path("runs/case")
    """Folder for checkpoints, metrics, detections and pictures."""
    config: Path | None = None
    """TOML file with settings by field name; flags win over it."""
    resume: bool = False
    """Go on from the last checkpoint in --output, with its settings; flags win over them."""
    seed: int = 0
    """Decides initial weights, batches and samples."""
    val_fraction: float = 0.0
    """Share of the training videos that is held out, chosen by the seed: never trained on, scored at every evaluation
    against their annotated times; 0: none."""
    eval_every: int = 50
    """Steps between evaluations on the test split and the held-out videos; 0: only at the end."""
    log_every: int = 10
    """Steps between entries in metrics.jsonl and TensorBoard."""
    save_every: int = 200
    """Steps between checkpoints; one is also written at every evaluation."""
    keep_last: int = 1
    """Checkpoints of so many last saved steps stay as step-<n>.safetensors; 1: last.safetensors alone."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes CUDA where there is one."""
    engine: Literal["fast", "plain"] = "fast"
    """plain: straight-line torch on every sampled row, the oracle of `fast`."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """Of the wide matrix products; weights and everything narrow stay float32. tf32 is CUDA's."""
    storage: Literal["stored", "float32", "float16", "bfloat16"] = "stored"
    """Type in which features are kept; `stored`: as in their files."""
    residence: Literal["auto", "device", "host", "disk"] = "auto"
    """Where features are kept: on the device, in host memory, or in files that map into it; auto: where they fit."""
    threads: int = 0
    """CPU threads; 0: torch's default."""
    pictures: int = 4
    """Test videos to draw as timelines at the end, spread over the split."""
    allow_pickle: bool = False
    """Accept pickled feature files, which can run code of whoever made them."""

    @property
    def settings(self) -> Settings:
        """The method's settings alone."""
        return Settings(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Settings)})


_RUN_FIELDS = {f.name for f in dataclasses.fields(TrainConfig)} - {f.name for f in dataclasses.fields(Settings)}

STARTING = ("config", "resume")
"""Fields that are said when a run is started and are no part of what it is."""

PROTOCOLS: dict[str, dict[str, Any]] = {
    "released": {},
    "corrected": {
        "prior_ranks": "true",
        "prior_sigma": 0.3,
        "outer_ratio": 0.25,
        "score_weight": 0.2,
        "nms_length_offset": 0.0,
        "keep_first_sample": True,
        "label_init": "classes",
        "label_momentum": 0.9,
        "keep_checkpoint": "last",
    },
}

_ACTIVITYNET: dict[str, Any] = {
    # Not published by the authors; after a related public configuration of the same group of methods.
    "num_segments": 50,
    "batch_size": 8,
    "max_steps": 50_000,
    "class_threshold": 0.1,
    "nms_threshold": 0.7,
    "gce_q": 0.5,
    "tiou": tuple(round(0.5 + 0.05 * i, 2) for i in range(10)),
}

PRESETS: dict[str, dict[str, Any]] = {
    "thumos14": {},
    "activitynet12": {**_ACTIVITYNET, "num_classes": 100},
    "activitynet13": {**_ACTIVITYNET, "num_classes": 200},
    "demo": {"num_segments": 256, "lr": 1e-3, "max_steps": 200, "num_clusters": 16, "class_threshold": 0.15},
}


def make_settings(preset: str = "thumos14", protocol: str = "released", **overrides: Any) -> Settings:
    """Settings of a preset under a protocol, with single fields set by name.

    Lists become tuples and numbers take the field's type, so that values read from TOML or JSON fit.
    Raises ``CaseError`` naming an unknown preset, protocol or field, or a value outside its range.
    """
    coerce("preset", preset, ""), coerce("protocol", protocol, "")
    if preset not in PRESETS:
        raise CaseError(f"unknown preset '{preset}'; one of: {', '.join(PRESETS)}")
    if protocol not in PROTOCOLS:
        raise CaseError(f"unknown protocol '{protocol}'; one of: {', '.join(PROTOCOLS)}")
    defaults = Settings()
    values = {"protocol": protocol, **PRESETS[preset], **PROTOCOLS[protocol], **overrides}
    for name, value in values.items():
        if not hasattr(defaults, name) or name in ("labels", "seconds_per_snippet"):
            raise CaseError(f"unknown setting '{name}'; see `case-wtal train --help` for the names")
        values[name] = coerce(name, value, getattr(defaults, name))
    settings = Settings(**values)
    validate(settings)
    return settings


def settings_from(given: Settings | Mapping[str, Any] | Any | None) -> Settings:
    """Settings from a ``Settings``, a mapping of field names, any object with such attributes, or None (defaults).

    A mapping may name ``preset`` and ``protocol`` beside single fields; fields of a run (seed, data, ...) are left out.
    """
    return given if isinstance(given, Settings) else make_settings(**settings_fields(given))


def settings_fields(given: Any) -> dict[str, Any]:
    """What ``given`` says of the method's settings, by name (see ``settings_from``)."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        if dataclasses.is_dataclass(given) and not isinstance(given, type):
            given = {f.name: getattr(given, f.name) for f in dataclasses.fields(given)}
        elif hasattr(given, "__dict__"):
            given = vars(given)
        else:
            raise CaseError(f"settings must be a mapping or a dataclass, got {type(given).__name__}")
    return {name: value for name, value in given.items() if name == "preset" or name not in _RUN_FIELDS}


def to_dict(settings: Settings) -> dict[str, Any]:
    """JSON- and TOML-ready mapping from which the same settings can be made again (unset fields left out)."""
    items = dataclasses.asdict(settings).items()
    return {name: _plain(value) for name, value in items if value is not None}


def to_toml(settings: Settings) -> str:
    """``to_dict`` as TOML, less what only says how a run was started (``STARTING``)."""
    kept = {name: value for name, value in to_dict(settings).items() if name not in STARTING}
    # JSON's strings, numbers, booleans and flat lists are TOML's too.
    # As it stands, since TOML has no surrogate pairs; DEL alone must be escaped there and is not in JSON.
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in kept.items()]
    return "".join(lines).replace("\x7f", "\\u007f")


def read_toml(path: Path) -> dict[str, Any]:
    """Fields named in a TOML file. Raises ``CaseError`` when it is missing, ill-formed or names an unknown field."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CaseError(f"{path}: config file not found; check the path") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CaseError(f"{path}: cannot read it as TOML: {error}") from error
    known = {f.name for f in dataclasses.fields(TrainConfig)}
    for name in values:
        if name not in known:
            raise CaseError(f"{path}: unknown setting '{name}'; see `case-wtal train --help` for the names")
    return values


def make_train_config(values: Mapping[str, Any]) -> TrainConfig:
    """A ``TrainConfig`` from fields by name; ``preset`` and ``protocol`` among them choose the other defaults."""
    run_fields = {f.name: f for f in dataclasses.fields(TrainConfig)}
    method = {f.name for f in dataclasses.fields(Settings)}
    run = {k: v for k, v in values.items() if k in run_fields and k not in method}
    # What is no field of a run either is unknown there.
    settings = make_settings(**{k: v for k, v in values.items() if k not in run or k == "preset"})
    for name in ("data", "output", "config"):
        if run.get(name) is not None:
            run[name] = Path(coerce(name, run[name], Path()))
    if run.get("data") is not None:
        run["data"] = run["data"].absolute()  # the run must find it from anywhere
    defaults = TrainConfig()
    run = {k: coerce(k, v, getattr(defaults, k)) for k, v in run.items()}
    config = TrainConfig(**{f.name: getattr(settings, f.name) for f in dataclasses.fields(Settings)}, **run)
    validate_run(config)  # the method's were validated with the settings
    return config


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value
