"""``case-wtal train``: flags, preset, protocol and data folder to a configuration; then the run and its report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from case import console
from case.commands._flags import expand_tiou, parse, peek, program
from case.config import TrainConfig, make_train_config, read_toml
from case.data import open_folder
from case.errors import CaseError


def run(argv: Sequence[str]) -> int:
    args = expand_tiou(argv)
    helping = "-h" in args or "--help" in args
    default = make_train_config({}) if helping else configure(_values(args))
    config = parse(
        TrainConfig, args, command="train", default=default,
        description="Train CASE on a data folder, evaluate on its test split, write everything to --output.",
    )  # fmt: skip
    return train(make_train_config(vars(config)))


def train(config: TrainConfig) -> int:
    """Train, evaluate, draw; print the table and the next command. Exit code 130 when stopped by a signal.

    Of several processes (``torchrun``) the first evaluates what is kept and draws, after the others have left.
    """
    from case.engine.distributed import joined
    from case.engine.finish import finish_run
    from case.engine.share import RankLost
    from case.engine.train import LAST, Interrupted, open_run, run_training

    try:
        with joined(config.device) as ranks:
            training = open_run(config, ranks)
            try:
                run_training(training)
            except Interrupted:
                console.note(
                    f"stopped after step {training.learner.steps} of {config.max_steps}; go on with: "
                    f"{program()} train --resume --output {config.output}"
                )
                return 130
    except RankLost as lost:
        saved = (config.output / LAST).exists()
        cure = "go on from the last checkpoint with the same command and --resume" if saved else "start again"
        raise CaseError(f"{lost}; {cure}") from lost
    if ranks.first:
        finish_run(training)
    return 0


def configure(values: dict[str, Any]) -> TrainConfig:
    """A configuration from fields by name, completed by what the data folder says of itself."""
    if values.get("data") is None:
        return make_train_config(values)
    folder = open_folder(
        values["data"],
        fps=values.get("fps"),
        snippet_stride=values.get("snippet_stride"),
        modalities=values.get("modalities"),
    )
    told = {
        "fps": folder.fps,
        "snippet_stride": folder.snippet_stride,
        "modalities": folder.modalities,
        "num_classes": len(folder.classes),
        "class_names": folder.classes,
    }
    return make_train_config({**told, **values})


def _values(args: Sequence[str]) -> dict[str, Any]:
    """Fields that decide the defaults of the others: from a run to resume, a config file, and a few flags."""
    flags: dict[str, Any] = peek(args, "preset", "protocol", "config", "data", "output")
    if "--resume" in args:
        saved = Path(flags.get("output", TrainConfig().output)) / "config.toml"
        if not saved.exists():
            raise CaseError(f"{saved}: no run to resume; give its folder as --output, or leave --resume out")
        values = read_toml(saved)
        for name in ("preset", "protocol"):
            if name in flags and flags[name] != values.get(name):
                raise CaseError(
                    f"this run was started with {name} {values.get(name)}; resume it so, or start a new one"
                )
        if "config" in flags:
            raise CaseError("--resume goes on with the run's own config.toml; leave --config out, and give flags")
    else:
        values = read_toml(Path(flags["config"])) if "config" in flags else {}
    return {**values, **flags}
