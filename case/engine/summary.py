"""What many runs come to: mean and standard deviation over the seeds of each setting."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from case import console
from case.config import TrainConfig
from case.data import atomic_write, save_json
from case.engine.finish import Outcome, conclude_run, run_origin
from case.engine.many import Planned
from case.engine.selection import SELECTED_ON
from case.engine.train import TrainingRun
from case.report import Table, spread_rows, write_summary


def finish_many(config: TrainConfig, planned: Sequence[Planned], runs: Sequence[TrainingRun]) -> dict[str, Any]:
    """``conclude_run`` of each run, then ``summary.json``, ``summary.csv`` and ``report.md`` beside their folders.

    Prints the table of each result (last, best-heldout, best-test), and returns what ``summary.json`` holds.
    """
    with console.progress(len(runs), "report", unit="run") as bar:
        outcomes = []
        for run in runs:
            outcomes.append(conclude_run(run))
            bar.advance(1)
    # Runs that went on in different ways may have evaluated, hence selected, differently; only like is summed up.
    names = [name for name in outcomes[0] if all(name in mine for mine in outcomes)]
    outcomes = [{name: mine[name] for name in names} for mine in outcomes]
    tables = {f"mAP (%), {_title(name)}": _table(name, planned, outcomes) for name in names}
    summary = {"protocol": config.protocol, "kept": config.keep_checkpoint, "settings": _settings(planned, outcomes)}
    save_json(config.output / "summary.json", summary, indent=1)
    atomic_write(config.output / "summary.csv", _csv(planned, outcomes).encode())
    title = f"{len(runs)} runs on {runs[0].folder.name}"
    origin = {**run_origin(config), "seed": ", ".join(str(s) for s in dict.fromkeys(p.config.seed for p in planned))}
    write_summary(config.output / "report.md", config, tables, title=title, origin=origin)
    for name, table in tables.items():
        console.table(f"{runs[0].folder.name}, {config.protocol}, {name}", *table)
    console.note(f"a folder for each run, summary.csv, summary.json and report.md in {config.output}")
    return summary


def _title(name: str) -> str:
    return f"{name}, selected on {SELECTED_ON[name]}" if name in SELECTED_ON else name


def _groups(planned: Sequence[Planned]) -> dict[str, list[int]]:
    """Places of the runs of each setting."""
    groups: dict[str, list[int]] = {}
    for i, one in enumerate(planned):
        groups.setdefault(one.setting, []).append(i)
    return groups


def _table(name: str, planned: Sequence[Planned], outcomes: Sequence[dict[str, Outcome]]) -> Table:
    return spread_rows(
        {
            setting or "all": [outcomes[i][name].score.mean_ap for i in places]
            for setting, places in _groups(planned).items()
        }
    )


def _settings(planned: Sequence[Planned], outcomes: Sequence[dict[str, Outcome]]) -> list[dict[str, Any]]:
    """Of each setting and result: n, mean and standard deviation (n - 1; None for one run) of mAP, and every run's."""
    found = []
    for places in _groups(planned).values():
        results = {}
        for name in outcomes[places[0]]:
            values = [outcomes[i][name].score.mean_ap.mean for i in places]
            results[name] = {
                "n": len(values),
                "mAP_mean": fmean(values),
                "mAP_std": stdev(values) if len(values) > 1 else None,
                "runs": [_run(planned[i], outcomes[i][name]) for i in places],
            }
        found.append({"swept": planned[places[0]].swept, "results": results})
    return found


def _run(one: Planned, outcome: Outcome) -> dict[str, Any]:
    held = {} if outcome.heldout is None else {"heldout_mAP": outcome.heldout.mean_ap.mean}
    return {
        "run": one.config.output.name, "seed": one.config.seed, "step": outcome.step,
        "mAP": outcome.score.mean_ap.mean, "ap_per_tiou": outcome.score.mean_ap.per_tiou.tolist(),
        "video_accuracy": outcome.score.video_accuracy, **held,
    }  # fmt: skip


def _csv(planned: Sequence[Planned], outcomes: Sequence[dict[str, Outcome]]) -> str:
    """A row for each run and result, shares rather than %."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    tiou = planned[0].config.tiou
    columns = ["run", "seed", *planned[0].swept, "result", "step", "mAP", *(f"AP@{t:g}" for t in tiou)]
    writer.writerow([*columns, "video_accuracy", "heldout_mAP"])
    for one, mine in zip(planned, outcomes, strict=True):
        for name, outcome in mine.items():
            run = _run(one, outcome)
            numbers = [run["step"], run["mAP"], *run["ap_per_tiou"], run["video_accuracy"], run.get("heldout_mAP", "")]
            writer.writerow([run["run"], run["seed"], *one.swept.values(), name, *numbers])
    return text.getvalue()
