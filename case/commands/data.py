"""``case-wtal data check``: everything that is wrong with a data folder, at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from case.commands._flags import parse
from case.data import check_folder
from case.errors import CaseError


@dataclass(frozen=True)
class CheckConfig:
    folder: Annotated[Path, tyro.conf.Positional]
    """Data folder: features/, gt.json, split_train.txt, split_test.txt, dataset.json."""
    fps: float | None = None
    """Frames per second, in place of dataset.json's."""
    snippet_stride: int | None = None
    """Frames per feature row, in place of dataset.json's."""
    modalities: tuple[str, ...] | None = None
    """Feature streams, in place of dataset.json's."""
    allow_pickle: bool = False
    """Accept pickled feature files, which can run code of whoever made them."""


def run(argv: Sequence[str]) -> int:
    if not argv or argv[0] != "check":
        if argv and argv[0] in ("-h", "--help"):
            print("usage: case-wtal data check DIR [flags]      case-wtal data check --help")
            return 0
        raise CaseError("`case data` has one subcommand: case-wtal data check DIR")
    config = parse(
        CheckConfig, argv[1:], command="data check",
        description="Check a data folder and summarize it. Exit code 2 if anything is wrong.",
    )  # fmt: skip
    report = check_folder(
        config.folder, fps=config.fps, snippet_stride=config.snippet_stride, modalities=config.modalities,
        allow_pickle=config.allow_pickle,
    )  # fmt: skip
    print(report.render())
    return 0 if report.ok else 2
