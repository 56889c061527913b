"""Synthetic data with the structure that makes weakly-supervised localization hard, from nothing but a seed.

Videos are sequences of stretches: plain background, the *context* of a class (the pool in which nobody dives) and
context in which *actions* take place. Context goes with the video's label as surely as the action does and lasts
longer, so classifying videos says little about where the actions are. What tells them apart is a component that
actions of all classes share (motion, stronger in flow), and other things share it in part: bursts of motion that
belong to no action, in background and context alike, and actions that show little of it.

A feature row is ``relu(profile + scene + context + action + noise)``:

- profile: mean level of each channel, the same everywhere, averaging 0.3 like I3D features;
- scene: a direction of the shot, new after each cut;
- context: one direction per class, where the timeline says context;
- action: one direction per class, one per third of the action, and the shared one, scaled by the strength of the
  instance and by the part of the snippet that the instance covers;
- noise: independent for every number.

Strengths are lengths of these components over the unit of the noise, so a setting is as hard at any width. Features
are sums and products of draws in a fixed order (no BLAS, whose order varies), and each video has a generator of its
own: a seed gives the same videos on every platform, however many are asked for.

Lengths follow THUMOS14, whose snippet counts are log-normal: train mean log 5.38, deviation 0.92, within 13 and 2202;
test 5.46, 0.85, within 23 and 2614. Instances follow its instances, log-normal around 3.0 s with deviation 0.8.
"""

from __future__ import annotations

import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from case.data.annotations import GroundTruth, VideoTruth, to_json, video_truth
from case.data.appearance import draw_features, draw_look, generator
from case.data.files import PathLike, reason, save_json
from case.data.folder import LoadedSplit, feature_name
from case.data.layout import SPLITS, Split
from case.data.timeline import draw_timeline
from case.errors import CaseError

_LENGTHS: dict[Split, tuple[float, float, int, int]] = {"train": (5.38, 0.92, 13, 2202), "test": (5.46, 0.85, 23, 2614)}
"""Snippets per video of THUMOS14: mean and deviation of the logarithm, least, most."""


@dataclass(frozen=True)
class SyntheticConfig:
    """Size and difficulty of a synthetic data set. Strengths are in units of the noise (see the module)."""

    num_train: int = 200
    num_test: int = 210
    num_classes: int = 20
    width: int = 1024
    """Numbers per row of each stream."""
    modalities: tuple[str, ...] = ("rgb", "flow")
    dtype: str = "float16"
    """Of the stored features: float16 or float32."""
    fps: float = 25.0
    snippet_stride: int = 16
    length_scale: float = 1.0
    """Factor on THUMOS14's video lengths."""
    seed: int = 0
    two_class_share: float = 0.13
    """Share of videos with two classes."""
    context_share: float = 0.4
    """Share of stretches that show the context of the video's class without its action."""
    action_share: float = 0.35
    """Share of stretches that show context with actions in it; the rest is background."""
    noise: float = 0.3
    """Deviation of the independent noise before the ReLU, where the mean level of a channel is 0.3."""
    scene: float = 2.0
    """Strength of the look of a shot, of no meaning."""
    context: float = 5.0
    """Strength of the context of a class."""
    action: float = 1.5
    """Strength of what is peculiar to the actions of a class."""
    phase: float = 1.0
    """Strength of what is peculiar to a third of the action."""
    motion: float = 4.0
    """Strength of what actions share, in flow; half of it in rgb."""
    burst_gap: float = 15.0
    """Mean seconds between bursts of motion that are no action."""
    weakest: float = 0.5
    """Least strength of an instance, where the most is 1.2."""

    def __post_init__(self) -> None:
        whole = ("num_train", "num_test", "num_classes", "width", "snippet_stride")
        for name in (*whole, "fps", "length_scale", "burst_gap"):
            value = getattr(self, name)
            if not 0 < value < math.inf or (name in whole and int(value) != value):
                kind = "a whole number" if name in whole else "a number"
                raise CaseError(f"synthetic data: {name} must be {kind} greater than 0, got {value!r}")
        for name in ("noise", "scene", "context", "action", "phase", "motion", "weakest"):
            if not 0 <= getattr(self, name) < math.inf:
                raise CaseError(f"synthetic data: {name} must not be negative, got {getattr(self, name)!r}")
        for name in ("two_class_share", "context_share", "action_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise CaseError(f"synthetic data: {name} must lie in [0, 1], got {getattr(self, name)!r}")
        if self.dtype not in ("float16", "float32"):
            raise CaseError(f"synthetic data: dtype must be float16 or float32, got {self.dtype!r}")
        if not self.modalities or len(set(self.modalities)) != len(self.modalities):
            raise CaseError(f"synthetic data: modalities must be different names, got {self.modalities!r}")
        if self.seed < 0:
            raise CaseError(f"synthetic data: seed must not be negative, got {self.seed!r}")

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in index order, which is also their alphabetical order."""
        digits = len(str(self.num_classes - 1))
        return tuple(f"action_{i:0{digits}}" for i in range(self.num_classes))

    @property
    def seconds_per_row(self) -> float:
        return self.snippet_stride / self.fps


DEMO = SyntheticConfig(num_train=60, num_test=30, num_classes=8, width=64)
"""Small enough to be made and trained on in seconds, hard enough that the method matters."""

THUMOS14_SIZED = SyntheticConfig()
"""As many videos, classes, snippets and numbers per snippet as THUMOS14 (0.5 GB on disk)."""


@dataclass(frozen=True, eq=False)
class SyntheticVideo:
    """One video: its name, annotations and per stream a (rows, width) array."""

    name: str
    truth: VideoTruth
    features: tuple[np.ndarray, ...]


@dataclass(frozen=True, eq=False)
class SyntheticData:
    """A whole synthetic data set in memory."""

    config: SyntheticConfig
    ground_truth: GroundTruth
    train: LoadedSplit
    test: LoadedSplit


def iter_videos(config: SyntheticConfig, split: Split) -> Iterator[SyntheticVideo]:
    """The videos of a split, one at a time."""
    looks = [draw_look(config, m) for m in range(len(config.modalities))]
    for index in range(_count(config, split)):
        rng = generator(config.seed, 1 + SPLITS.index(split), index)
        mean, deviation, least, most = _LENGTHS[split]
        rows = round(min(max(rng.lognormal(mean, deviation), least), most) * config.length_scale)
        rows = max(rows, 4)
        classes = [index % config.num_classes]
        if rng.random() < config.two_class_share and config.num_classes > 1:
            classes.append(int(classes[0] + rng.integers(1, config.num_classes)) % config.num_classes)
        timeline = draw_timeline(
            rng,
            round(rows * config.seconds_per_row, 6),
            tuple(classes),
            shortest_action=2 * config.seconds_per_row,
            context_share=config.context_share,
            action_share=config.action_share,
            burst_gap=config.burst_gap,
            weakest=config.weakest,
        )
        features = tuple(draw_features(config, look, timeline, rows, rng) for look in looks)
        instances = [(a.label, a.start, a.end) for a in timeline.actions if a.label is not None]
        truth = video_truth(split, timeline.duration, instances)
        yield SyntheticVideo(f"{split}_{index:04d}", truth, features)


def generate(config: SyntheticConfig) -> SyntheticData:
    """The whole data set in memory; what ``write`` followed by ``load_split`` gives."""
    truths: dict[str, VideoTruth] = {}
    splits = {}
    for split in SPLITS:
        videos = list(iter_videos(config, split))
        truths.update((video.name, video.truth) for video in videos)
        labels = np.zeros((len(videos), config.num_classes), dtype=np.float32)
        for row, video in zip(labels, videos, strict=True):
            row[video.truth.labels] = 1
        offsets = np.concatenate(([0], np.cumsum([len(video.features[0]) for video in videos]))).astype(np.int64)
        streams = range(len(config.modalities))
        features = tuple(np.concatenate([video.features[m] for video in videos]) for m in streams)
        splits[split] = LoadedSplit(tuple(video.name for video in videos), features, offsets, labels)
    return SyntheticData(config, GroundTruth(config.classes, truths), splits["train"], splits["test"])


def write(
    config: SyntheticConfig,
    folder: PathLike,
    *,
    force: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> None:
    """Write the data set as a feature folder, holding one video in memory at a time.

    It is made under a temporary name beside ``folder`` and renamed when complete. ``progress`` is called with (videos
    written, videos in all). Raises ``CaseError`` when the folder holds something and not ``force``, when it holds
    something other than a feature folder, or when the system refuses; then nothing is left behind.
    """
    target = Path(os.path.abspath(folder))
    if target.exists() and not target.is_dir():
        raise CaseError(f"{folder}: is a file; give a folder")
    if target.is_dir() and any(target.iterdir()):
        if not force:
            raise CaseError(f"{folder}: not empty; choose another folder, or pass force to replace it")
        if not (target / "dataset.json").exists():
            raise CaseError(f"{folder}: not empty and no feature folder (no dataset.json), so it is not replaced")
    mark = secrets.token_hex(4)
    partial, former = (target.with_name(f".{target.name}.{word}-{mark}") for word in ("partial", "former"))
    try:
        try:
            _fill(config, partial, progress)
            if target.exists():
                target.rename(former)
            try:
                partial.rename(target)
            except BaseException:
                if former.exists():
                    former.rename(target)
                raise
            shutil.rmtree(former, ignore_errors=True)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise CaseError(f"cannot write {folder}: {reason(error)}; free space or choose another folder") from error


def _fill(config: SyntheticConfig, folder: Path, progress: Callable[[int, int], object] | None) -> None:
    total = config.num_train + config.num_test
    truths: dict[str, VideoTruth] = {}
    for split in SPLITS:
        for modality in config.modalities:
            (folder / "features" / split / modality).mkdir(parents=True)
        names = []
        for video in iter_videos(config, split):
            for modality, rows in zip(config.modalities, video.features, strict=True):
                np.save(folder / feature_name(split, modality, video.name), rows)
            truths[video.name] = video.truth
            names.append(video.name)
            if progress is not None:
                progress(len(truths), total)
        (folder / f"split_{split}.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    save_json(folder / "gt.json", to_json(GroundTruth(config.classes, truths)))
    description = {
        "name": "synthetic",
        "fps": config.fps,
        "snippet_stride": config.snippet_stride,
        "modalities": config.modalities,
        "train_subset": "train",
        "test_subset": "test",
        "classes": config.classes,
    }
    save_json(folder / "dataset.json", description, indent=2)


def _count(config: SyntheticConfig, split: Split) -> int:
    return config.num_train if split == "train" else config.num_test
