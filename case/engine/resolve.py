"""From a path to a network that can localize: run folders, checkpoints, and the data they are asked about."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from case import console
from case.config import Settings
from case.data import FeatureFolder, LoadedSplit, load_split, open_folder
from case.data.layout import Split
from case.data.unlabelled import load_features
from case.engine.checkpoint import Checkpoint, load_checkpoint
from case.engine.distributed import ALONE, Ranks
from case.engine.evaluate import Localized, concatenate, localize_split
from case.engine.precision import Precision, rows_dtype, set_products
from case.engine.selection import CHECKPOINTS, LAST
from case.engine.store import ResidentSplit
from case.engine.train import pick_device
from case.errors import CaseError
from case.inference import video_accuracy
from case.model import CASE
from case.settings_check import validate


@dataclass(frozen=True, eq=False)
class Opened:
    """A checkpoint ready to localize."""

    path: Path
    checkpoint: Checkpoint
    model: CASE
    device: torch.device
    precision: Precision = "fp32"
    ranks: Ranks = ALONE

    @property
    def settings(self) -> Settings:
        return self.checkpoint.settings

    def timed(self, *, fps: float | None = None, snippet_stride: int | None = None) -> Opened:
        """The same for videos of so many frames per second and feature row, where those are given."""
        given: dict[str, Any] = {"fps": fps, "snippet_stride": snippet_stride}
        settings = replace(self.settings, **{name: value for name, value in given.items() if value is not None})
        validate(settings)
        return replace(self, checkpoint=replace(self.checkpoint, settings=settings))

    def localize_features(self, folder: Path, *, allow_pickle: bool = False) -> Localized:
        """Localize in every video of a folder of features (see ``case.data.unlabelled``).

        Each of several processes reads and localizes its stretch of them.
        """
        with console.progress(1, "read", unit="folder") as bar:
            split = load_features(
                folder, self.settings.modalities, num_classes=self.settings.num_classes, allow_pickle=allow_pickle,
                part=self.ranks.slice,
            )  # fmt: skip
            bar.advance(1)
        notes = tuple(note for notes in self.ranks.gather(split.notes) for note in notes)
        return self._localize(replace(split, notes=notes), str(folder), slice(0, len(split.videos)))

    def localize_data(
        self, data: Path | None, split: Split, *, allow_pickle: bool = False
    ) -> tuple[Localized, FeatureFolder, LoadedSplit]:
        """Localize in a split of a data folder (None: the folder of training).

        Each of several processes localizes its stretch of the videos; rank 0 gets all of them, the others their own.
        """
        known = self.checkpoint.notes["config"]["data"]
        if data is None and known is None:
            raise CaseError(f"{self.path} does not know a data folder; give one with --data")
        path = data if data is not None else Path(known)
        s = self.settings
        folder = open_folder(
            path, fps=s.fps, snippet_stride=s.snippet_stride, modalities=s.modalities, allow_pickle=allow_pickle
        )
        if tuple(folder.classes) != s.labels:
            raise CaseError(
                f"{path} has other classes than {self.path} was trained on; compare gt.json and dataset.json"
            )
        loaded = load_split(folder, split)
        parts = self.ranks.gather(self._localize(loaded, str(path), self.ranks.slice(len(loaded.videos))))
        return concatenate(parts), folder, loaded

    def accuracy(self, localized: Localized, split: LoadedSplit) -> float:
        """Share of videos whose kept classes are those annotated."""
        return video_accuracy(localized.activations.kept, torch.from_numpy(split.labels))

    def _localize(self, split: LoadedSplit, where: str, videos: slice) -> Localized:
        for note in split.notes:
            console.warn(note)
        widths = tuple(f.shape[1] for f in split.features)
        if widths != self.checkpoint.widths:
            raise CaseError(
                f"{where}: features of width {widths} ({', '.join(self.settings.modalities)}), but {self.path} "
                f"was trained on {self.checkpoint.widths}; extract them the same way"
            )
        set_products(self.precision, self.device)
        resident = ResidentSplit.from_loaded(split, self.device, dtype=rows_dtype(self.precision)).part(videos)
        labels = self.checkpoint.cluster_labels.to(self.device)
        with console.progress(len(resident.videos), "localize", unit="video") as bar:
            done = 0

            def advance(videos: int) -> None:
                nonlocal done
                bar.advance(videos - done)
                done = videos

            return localize_split(self.model, labels, resident, self.settings, progress=advance)


def open_checkpoint(path: Path, *, device: str = "auto", precision: Precision = "fp32", ranks: Ranks = ALONE) -> Opened:
    """A checkpoint file, or the kept checkpoint of a run folder (``keep_checkpoint``: last, or best on some split)."""
    if not path.exists():
        raise CaseError(f"{path}: no such run folder or checkpoint; check the path")
    file = kept_checkpoint(path) if path.is_dir() else path
    checkpoint = load_checkpoint(file)
    where = pick_device(device)
    return Opened(file, checkpoint, checkpoint.model(where), where, precision, ranks)


def kept_checkpoint(run: Path) -> Path:
    """The file of a run folder that its ``keep_checkpoint`` setting means."""
    last = run / LAST
    if not last.exists():
        raise CaseError(f"{run}: no {LAST} in this folder; give a run folder or a checkpoint")
    kept = run / CHECKPOINTS[load_checkpoint(last).settings.keep_checkpoint]
    return kept if kept.exists() else last
