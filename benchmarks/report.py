"""From the JSON files under benchmarks/results to BENCHMARKS.md and its pictures: python -m benchmarks.report

Every number in it comes from a file that a run wrote; a machine is a folder. ``--results`` and ``--out`` take other
folders and files (``make bench`` keeps its own in build/), ``--print`` shows the ratios on the terminal as well.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import pictures
from benchmarks.limits import least_seconds
from benchmarks.machine import RESULTS, ROOT
from benchmarks.paper import Rank, prototype_numbers, transport_numbers, weight_numbers
from benchmarks.peers import PEERS

Entry = dict[str, Any]
# Of pytest-benchmark; a GPU machine splits them by what matters most.
FILES = ("large", "ops")
# What `auto` takes first, by device.
ORDER = {"cpu": ("case", "native", "numpy", "reference"), "cuda": ("case", "triton", "native", "reference")}
METHOD = """## How this is measured

- **Right first.** Each contender's result is compared with the float64 reference before it is timed; training steps and
  mAP likewise. What is wrong is not timed.
- **Ratios are of pairs.** The op as `case.ops` runs it and the peer, one right after the other, round after round;
  the ratio is the median of the pairs' ratios, its interval the 95 % bootstrap interval of that median
  (where calls are long, the range of fewer pairs, and their number). Times of
  single rows were taken at different moments: on a shared machine compare ratios, not times.
- **Times** are medians with quartiles of the rounds, after a warm-up, on as many threads as the machine's line says,
  for all contenders alike. On CUDA they are of graph replay (or eager calls, where a call waits for the host), between
  events, over inputs that rotate so that none is found in the L2 cache; where as many as are rotated fit into it
  together, the row says so. Launching is a part of eager times and not of replays.
- **The limit** is the larger of two times: the bytes that have to be read and written once, at the rate of a copy of
  that size on this machine, and the operations of the matrix products at the rate of a float32 product; both rates
  are the best seen. With backward: also the gradients written, and three times the products. Exponentials and
  sorting are not counted, so 100 % is out of reach for what consists of them.
- **Peers** get their own best settings: no convergence checks where they can be left out, no warnings, costs laid out
  so that they need no transposition. A cost that has to be built from logits and prior is part of their time.
- Again: `make bench` (some minutes, quick sizes, results in `build/bench`), `make bench-results` (all of this page).
"""


@dataclass(frozen=True)
class Machine:
    """One folder of results."""

    folder: Path
    header: dict[str, Any]
    entries: list[Entry]
    limits: dict[str, Any] | None
    scaling: dict[str, Any] | None

    @classmethod
    def read(cls, folder: Path) -> Machine:
        files = [found for name in ("train", *FILES) if (found := _optional(folder / f"{name}.json"))]
        entries = [e for found in files for e in found["benchmarks"] if "op" in e["extra_info"]]
        return cls(
            folder,
            files[-1]["machine_info"],
            entries,
            _optional(folder / "limits.json"),
            _optional(folder / "scaling.json"),
        )

    def groups(self) -> dict[str, list[Entry]]:
        found: dict[str, list[Entry]] = {}
        for entry in self.entries:
            found.setdefault(entry["group"], []).append(entry)
        return found

    def share(self, entry: Entry) -> float | None:
        """Of the limit that was reached; None where nothing was counted or no limits were measured."""
        info = entry["extra_info"]
        if self.limits is None or info["device"] not in self.limits or not (info["moved"] or info["operations"]):
            return None
        least = least_seconds(self.limits[info["device"]], info["moved"], info["operations"], info["dtype"])
        return least / spent(entry)["median"]


def spent(entry: Entry) -> dict[str, float]:
    """Seconds, median and quartiles: the device's own where they were taken."""
    taken = entry["extra_info"].get("device_time")
    if taken:
        times = taken.get("replay", taken["eager"])
        return {name: times[f"{name}_us"] / 1e6 for name in ("median", "quartile_1", "quartile_3")}
    stats = entry["stats"]
    return {"median": stats["median"], "quartile_1": stats["q1"], "quartile_3": stats["q3"]}


def in_cache(entry: Entry) -> bool:
    """Whether all inputs that took turns fit into the GPU's cache together: calls may have found them there."""
    taken = entry["extra_info"].get("device_time", {})
    return "rotated_bytes" in taken and taken["rotated_bytes"] <= taken["l2_bytes"]


def own(group: Iterable[Entry]) -> Entry | None:
    """The row of what `auto` runs."""
    rows = {e["extra_info"]["contender"]: e for e in group if not e["extra_info"]["peer"]}
    device = next((e["extra_info"]["device"] for e in rows.values()), "cpu")
    return next((rows[name] for name in ORDER[device] if name in rows), None)


def rivals(group: Iterable[Entry]) -> list[Entry]:
    """Peers, the fastest beside the op first."""
    found = [e for e in group if e["extra_info"]["peer"] and "ratio" in e["extra_info"]]
    return sorted(found, key=lambda e: e["extra_info"]["ratio"]["ratio"])


def duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.2g} µs"


def amount(size: float) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size:.0f} B"


def ratio(found: dict[str, float]) -> str:
    few = f", {found['pairs']} pairs" if found["pairs"] < 6 else ""
    return f"{found['ratio']:.2f} ({found['low']:.2f} to {found['high']:.2f}{few})"


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [" | ".join(head), "|".join("---" for _ in head), *(" | ".join(row) for row in rows)]
    return "".join(f"| {line} |\n" if i != 1 else f"|{line}|\n" for i, line in enumerate(lines))


def at_a_glance(machine: Machine) -> str:
    """The method's own sizes: the time, the best peer and the limit."""
    rows = []
    for name, group in machine.groups().items():
        mine, peers = own(group), rivals(group)
        if mine is None or not peers or peers[0]["extra_info"]["scale"] != 1:
            continue
        info = peers[0]["extra_info"]
        rows.append(
            (
                name,
                duration(spent(mine)["median"]),
                info["contender"],
                ratio(info["ratio"]),
                percent(machine.share(mine)),
            )
        )
    head = (
        "op, at the method's own size",
        "time",
        "fastest peer",
        "its time over ours (95 % interval)",
        "of the limit",
    )
    return table(head, rows)


def where_peers_win(machine: Machine) -> str:
    found = [
        f"- {entry['group']}: {entry['extra_info']['contender']}, {ratio(entry['extra_info']['ratio'])}\n"
        for group in machine.groups().values()
        for entry in rivals(group)
        if entry["extra_info"]["ratio"]["high"] < 1
    ]
    return "".join(found) or "In no case here does the whole interval lie below 1.\n"


def all_cases(machine: Machine) -> str:
    rows = []
    for name, group in machine.groups().items():
        for entry in group:
            info, times = entry["extra_info"], spent(entry)
            contender = info["contender"] if info["peer"] else f"**{info['contender']}**"
            quartiles = f"{duration(times['quartile_1'])} to {duration(times['quartile_3'])}"
            against = ratio(info["ratio"]) if "ratio" in info else ""
            rounds = str(entry["stats"]["rounds"])
            median = duration(times["median"]) + (", inputs in L2" if in_cache(entry) else "")
            rows.append((name, contender, median, quartiles, rounds, against, percent(machine.share(entry))))
            name = ""
    return table(("case", "contender", "median", "quartiles", "rounds", "over ours", "of the limit"), rows)


def peer_table(machines: Sequence[Machine]) -> str:
    ran = {e["extra_info"]["contender"].removesuffix("+compile") for m in machines for e in m.entries}
    rows = [
        (name, peer.work, peer.cannot, ", ".join(peer.devices), "yes" if name in ran else "**not run**")
        for name, peer in PEERS.items()
    ]
    return table(("peer", "what it does here", "what it cannot do", "runs on", "run"), rows)


def header(machine: Machine) -> str:
    h = machine.header
    commit = f"`{h['commit']}`" + (", with changes" if h["changed"] else "")
    parts = [f"CPU {h['cpu']}", f"{h['threads']} threads", h["system"]]
    if h["gpu"]:
        parts[:0] = [f"GPU {h['gpu']}, driver {h['driver']}, CUDA {h['cuda']}"]
    versions = ", ".join(f"{name} {version}" for name, version in h["versions"].items())
    return f"{'; '.join(parts)}; load {h['load']} at the start. {versions}. Commit {commit}.\n"


def limits(machine: Machine) -> str:
    if machine.limits is None:
        return ""
    lines = []
    for device in ("cpu", "cuda"):
        if device in machine.limits:
            found = machine.limits[device]
            copies = ", ".join(
                f"{amount(int(size))} {rate / 1e9:.1f}" for size, rate in found["copy_bytes_per_second"].items()
            )
            rates = ", ".join(f"{k} {v / 1e9:.0f}" for k, v in found["product_operations_per_second"].items())
            lines.append(
                f"Limits of {device}: copies, read and written, in GB/s: {copies}; products in GFLOP/s: {rates}.\n"
            )
    return "\n".join(lines)


def scaling(machine: Machine) -> str:
    if machine.scaling is None:
        return ""
    rows = []
    for curve in machine.scaling["curves"]:
        last, power = curve["points"][-1], curve.get("exponent")
        peak = last.get("peak_bytes")
        rows.append((
            curve["name"], curve["over"], f"{curve['points'][0]['value']:,} to {last['value']:,}",
            "" if power is None else f"{power:.2f}", duration(last["seconds"]["median"]),
            "" if peak is None else f"{amount(peak)} beside {amount(last['input_bytes'])} of inputs",
        ))  # fmt: skip
    head = ("op", "over", "from, to", "exponent", "time at the end", "memory at the end")
    picture = (machine.folder / "scaling.png").relative_to(machine.folder.parents[2])
    return f"{table(head, rows)}\n![time and memory over sizes]({picture.as_posix()})\n"


def on_paper() -> str:
    rows = []
    for ranks in (8, 64, 512):
        rank = Rank(ranks)
        rows.append((
            f"{ranks}", f"{rank.rows:,}", *(amount(size) for size in (
                rank.features, rank.embeddings, rank.logits, rank.ranking, rank.exchanged,
                *(rank.all_reduced(n) for n in (transport_numbers(), prototype_numbers(), weight_numbers())),
            )),
        ))  # fmt: skip
    head = (
        "ranks", "snippets a rank", "features, half", "embeddings, half", "cluster logits", "ranking", "sent: ranking",
        "sent: Sinkhorn", "sent: prototypes", "sent: gradients",
    )  # fmt: skip
    return table(head, rows)


PAPER = """Arithmetic (`benchmarks/paper.py`), not measurements: the clustering of 10^9 snippets as one set. Rows are
split over ranks; transport needs K sums an iteration and prototypes one K x H sum, whatever the number of snippets, so
both stay small beside the gradients of the network, and only the rank prior moves data in proportion to the snippets:
a distributed sort of the scores. `sinkhorn(group=...)` has the split transport today (on the reference path, prior
given as a matrix); the distributed ranking and split prototypes are not there.

"""


def document(machines: Sequence[Machine]) -> str:
    parts = [
        "# Benchmarks\n\nWritten by `python -m benchmarks.report` from the files under `benchmarks/results/`; no "
        "number is typed by hand.\nA ratio above 1 says how many times longer the peer takes.\n"
    ]
    if not any(m.header["gpu"] for m in machines):
        parts.append("**Nothing here has run on a GPU.** What a GPU has to answer is in `benchmarks/GPU_TODO.md`.\n")
    for m in machines:
        parts += [
            f"## {m.header['name']}\n",
            header(m),
            at_a_glance(m),
            "### Where a peer is better\n",
            where_peers_win(m),
        ]
    parts += ["## Peers, and what they cannot do\n", peer_table(machines), METHOD]
    for m in machines:
        parts += [f"## Scaling: {m.header['name']}\n", scaling(m)] if m.scaling else []
    parts += ["## 10^9 snippets, on paper\n", PAPER + on_paper()]
    for m in machines:
        parts += [f"## All cases: {m.header['name']}\n", limits(m), all_cases(m)]
    return "\n".join(part for part in parts if part)


def _optional(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.report", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=ROOT / "BENCHMARKS.md")
    parser.add_argument("--print", action="store_true", dest="shown")
    given = parser.parse_args(argv)
    machines = [Machine.read(path.parent) for path in sorted(given.results.resolve().glob("*/ops.json"))]
    if not machines:
        parser.error(f"no */ops.json under {given.results}; `make bench` writes one")
    for machine in machines:
        if machine.scaling is not None:
            pictures.scaling(machine.scaling, machine.folder / "scaling.png")
    given.out.write_text(document(machines))
    if given.shown:
        for machine in machines:
            print(
                machine.header["name"],
                at_a_glance(machine),
                "Where a peer is better:",
                where_peers_win(machine),
                sep="\n",
            )
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
