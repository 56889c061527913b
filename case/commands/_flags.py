"""Parsing with tyro: frozen dataclasses in, typed flags out. Values given twice: file, then flags."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from case.metrics import parse_tiou

T = TypeVar("T")


def parse(cls: type[T], argv: Sequence[str], *, command: str, description: str, default: T | None = None) -> T:
    """``cls`` from flags, all flat (``--num-segments``); tyro prints help and usage errors and leaves with 0 or 2."""
    import tyro

    kwargs: dict[str, Any] = {} if default is None else {"default": default}
    # Help says PATH, not {None}|PATH: what is not given is None, and no word stands for it.
    form = (tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone)
    return tyro.cli(cls, args=list(argv), prog=f"case-wtal {command}", description=description, config=form, **kwargs)


def program() -> str:
    """What the user's shell knows this command line by: on the path, beside the interpreter, or as a module."""
    if shutil.which("case-wtal"):
        return "case-wtal"
    beside = Path(sys.executable).parent / "case-wtal"
    if not beside.exists():
        return f"{sys.executable} -m case"
    return str(beside.relative_to(Path.cwd())) if beside.is_relative_to(Path.cwd()) else str(beside)


def peek(argv: Sequence[str], *names: str) -> dict[str, str]:
    """Values of a few flags read before the rest, since they choose the defaults of the others."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in names:
        parser.add_argument(f"--{name}", nargs="?")
    try:
        known, _ = parser.parse_known_args(list(argv))
    except argparse.ArgumentError:
        return {}
    return {name: value for name, value in vars(known).items() if value is not None}


def expand_tiou(argv: Sequence[str]) -> list[str]:
    """``--tiou START:STEP:STOP`` as the list of thresholds that the flag takes."""
    expanded: list[str] = []
    for word in argv:
        name, _, value = word.partition("=")
        if name == "--tiou" and ":" in value:
            expanded += [name, *(str(t) for t in parse_tiou(value))]
        elif expanded and expanded[-1] == "--tiou" and ":" in word:
            expanded += [str(t) for t in parse_tiou(word)]
        else:
            expanded.append(word)
    return expanded
