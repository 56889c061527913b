"""``case-wtal train``: flags, preset, protocol and data folder to a configuration; then the run and its report."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from case import console
from case.commands._flags import expand_tiou, parse, peek, program
from case.config import STARTING, TrainConfig, make_train_config, read_toml
from case.data import open_folder
from case.errors import CaseError


def run(argv: Sequence[str]) -> int:
    from case.commands._train_flags import TrainFlags

    args = expand_tiou(argv)
    helping = "-h" in args or "--help" in args
    default = make_train_config({}) if helping else configure(_values(args))
    flags = parse(
        TrainFlags, args, command="train", default=TrainFlags(**vars(default)),
        description=(
            "Train CASE on a data folder, evaluate on its test split, write everything to --output. A first run needs "
            "--data alone. Flags in this order: the method (data, network, losses, optimizer, localization, mAP); its "
            "numbered settings, in which the released code and its formulas differ; the run, from --preset on; the "
            "machine, from --device on; many runs at once."
        ),
    )  # fmt: skip
    config = make_train_config({name: value for name, value in vars(flags).items() if name not in ("seeds", "sweep")})
    if not (flags.seeds or flags.sweep):
        return train(config)
    if flags.seeds and any(word.partition("=")[0] == "--seed" for word in args):
        raise CaseError("give --seed for one run, or --seeds for many, not both")
    return train_all(config, flags.seeds, flags.sweep)


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


def train_all(config: TrainConfig, seeds: str, sweep: Sequence[str]) -> int:
    """As ``train``, a run for each seed and each combination of swept values, in one process."""
    from case.engine.many import open_many, parse_seeds, parse_sweep, plan_runs, train_many
    from case.engine.signals import Interrupted
    from case.engine.summary import finish_many

    planned = plan_runs(config, parse_seeds(seeds) if seeds else (config.seed,), parse_sweep(sweep))
    runs = open_many(config, planned)
    try:
        train_many(config, runs)
    except Interrupted:
        flags = [*(["--seeds", seeds] if seeds else []), *(word for text in sweep for word in ("--sweep", text))]
        console.note(
            f"stopped after step {min(run.learner.steps for run in runs)} of {config.max_steps}; go on with: "
            f"{program()} train --resume --output {config.output} {shlex.join(flags)}"
        )
        return 130
    finish_many(config, planned, runs)
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
    # Files of earlier versions have these too.
    return {**{name: value for name, value in values.items() if name not in STARTING}, **flags}
