"""What runs are trained and evaluated on: a data folder read whole, checked, and put on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from case import console
from case.config import TrainConfig
from case.data import FeatureFolder, load_split, open_folder, split_bytes
from case.data.layout import Split
from case.engine.precision import rows_dtype
from case.engine.store import ResidentSplit, fitting_residence
from case.errors import CaseError
from case.metrics import truth_instances


@dataclass(frozen=True, eq=False)
class RunData:
    """A data folder and both of its splits on the device; runs share it."""

    folder: FeatureFolder
    train: ResidentSplit
    test: ResidentSplit


def load_data(config: TrainConfig, device: torch.device) -> RunData:
    """Read the data folder of a configuration. Raises ``CaseError`` in one line for whatever makes it unusable."""
    if config.data is None:
        raise CaseError("no data folder given; use --data DIR, or `case-wtal synth DIR` to make one")
    folder = open_folder(
        config.data, fps=config.fps, snippet_stride=config.snippet_stride, modalities=config.modalities,
        allow_pickle=config.allow_pickle,
    )  # fmt: skip
    if tuple(folder.classes) != config.labels:
        raise CaseError(f"{config.data} has the classes {_few(folder.classes)}, the settings {_few(config.labels)}")
    both = sorted(set(folder.split("train")) & set(folder.split("test")))
    if both:
        raise CaseError(f"{config.data}: training videos are in the test split too: {_few(both)}; drop them from one")
    # Asked for here, since an unknown subset must not be found out by the first evaluation.
    truth_instances(folder.ground_truth, {v: i for i, v in enumerate(folder.ground_truth.videos)}, folder.test_subset)
    train, test = _load(config, folder, device)
    for note in folder.notes:
        console.warn(note)
    return RunData(folder, train, test)


def _load(config: TrainConfig, folder: FeatureFolder, device: torch.device) -> tuple[ResidentSplit, ResidentSplit]:
    """(train, test), where there is room for both."""
    storage = None if config.storage == "stored" else getattr(torch, config.storage)
    size = sum(split_bytes(folder, name) for name in ("train", "test"))
    residence = fitting_residence(size, device) if config.residence == "auto" else config.residence
    if residence == "disk" and storage is not None:
        raise CaseError(f"features on disk stay as they are stored, got storage {config.storage}; use --storage stored")
    directory = config.output if residence == "disk" else None

    def load(name: Split) -> ResidentSplit:
        with console.progress(len(folder.split(name)), f"read {name}", unit="video") as bar:
            split = load_split(folder, name, directory=directory, progress=lambda done, total: bar.advance(1))
        return ResidentSplit.from_loaded(
            split, device, residence=residence, storage=storage, dtype=rows_dtype(config.precision)
        )

    return load("train"), load("test")


def _few(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list, and how many there are."""
    shown = ", ".join(names[:most])
    return f"{shown}, ... ({len(names)} in all)" if len(names) > most else shown
