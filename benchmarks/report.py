"""From the JSON files under benchmarks/results to BENCHMARKS.md and its pictures: python -m benchmarks.report

Every number in it comes from a file that a run wrote; a machine is a folder. ``--results`` and ``--out`` take other
folders and files (``make bench`` keeps its own in build/), ``--print`` shows the ratios on the terminal as well.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import pictures, tables
from benchmarks.limits import least_seconds
from benchmarks.machine import RESULTS, ROOT
from benchmarks.peers import PEERS
from benchmarks.prose import METHOD, PAPER, on_paper
from benchmarks.records import STOPPED, UNASKED
from benchmarks.tables import amount, duration, percent, ratio, table

Entry = dict[str, Any]
# Of pytest-benchmark; a GPU machine splits them by what matters most.
FILES = ("large", "ops")
# What `auto` takes first, by device.
ORDER = {"cpu": ("case", "native", "numpy", "reference"), "cuda": ("case", "triton", "native", "reference")}
# Contenders that are the work as WTAL projects write it, in our own words.
USUAL = ("usual code, Conv1d", "pandas loop", "numpy loop", "eager torch")


@dataclass(frozen=True)
class Machine:
    """One folder of results."""

    folder: Path
    header: dict[str, Any]
    entries: list[Entry]
    limits: dict[str, Any] | None
    scaling: dict[str, Any] | None
    left_out: list[dict[str, Any]] = field(default_factory=list)  # empty in files from before it was written

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
            [x for found in files for x in found.get("left_out", [])],
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


def usual(group: Iterable[Entry]) -> Entry | None:
    """What a WTAL project runs today, the fastest way of several, where it was timed."""
    return next((e for e in rivals(group) if e["extra_info"]["contender"] in USUAL), None)


def verdict(machine: Machine) -> str:
    """In two sentences: how much faster ops are than usual code, and how often than the fastest of what there is."""
    best = [found[0] for group in machine.groups().values() if own(group) and (found := rivals(group))]
    ratios = [e["extra_info"]["ratio"] for e in best]
    faster, slower = sum(r["low"] > 1 for r in ratios), sum(r["high"] < 1 for r in ratios)
    today = [e for group in machine.groups().values() if own(group) and (e := usual(group))]
    gains = [e["extra_info"]["ratio"]["ratio"] for e in today]
    gain = (
        f"Code as WTAL projects write it (eager torch, numpy, pandas) takes {min(gains):.1f} to {max(gains):.1f} times "
        f"as long, {median(gains):.1f} times in the middle of {len(gains)} cases.\n"
        if gains
        else ""
    )
    return gain + (
        f"Beside the fastest peer of each of {len(ratios)} cases, of all sizes, ops are faster in {faster}, slower in "
        f"{slower}{' (named below)' if slower else ''}, and in {len(ratios) - faster - slower} the interval holds 1.\n"
    )


def at_a_glance(machine: Machine) -> str:
    """A line an op: time at the method's own size, share of the limit, usual code, the fastest peer at each."""
    lines: dict[tuple[str, ...], dict[int, list[Entry]]] = {}
    for group in machine.groups().values():
        info = group[0]["extra_info"]
        names = (info["title"].partition(" x ")[0], *(str(info[name]) for name in ("backward", "dtype", "device")))
        lines.setdefault(names, {})[info["scale"]] = group
    rows = []
    for sizes in lines.values():
        first = sizes[min(sizes)]
        mine = own(first)
        if mine is None:
            continue
        today = usual(first)
        against = [_against([today] if today else None), *(_against(sizes.get(scale)) for scale in (1, 10, 100))]
        if against[0] == against[1]:
            against[1] = "the same"
        rows.append((first[0]["group"], tables.spread(spent(mine)), percent(machine.share(mine)), *against))
    peers = ("usual code, its time over ours", "fastest peer", "at 10 times the size", "at 100 times")
    return table(("op", "time (quartiles)", "of the limit", *peers), rows)


def _against(group: list[Entry] | None) -> str:
    if group is None:
        return ""
    found = rivals(group)
    return f"{found[0]['extra_info']['contender']} {ratio(found[0]['extra_info']['ratio'])}" if found else "none timed"


def left_out(machine: Machine) -> str:
    """What this run did not measure: a line for each reason, in which seconds stand behind the name."""
    reasons: dict[str, list[str]] = {}
    for found in machine.left_out:
        why, _, seconds = found["why"].removesuffix(" s)").partition(" s (")
        case = found["case"] + (f" x {found['scale']}" if "scale" in found else "")
        if "backward" in found:
            case += ", forward + backward" if found["backward"] else ", forward"
        name = ", ".join([case, *([found["contender"]] if "contender" in found else [])])
        if "cannot be imported" in why:
            name = found["contender"]  # one line for a peer that is not there, whatever it was to be timed in
        elif why in (STOPPED, UNASKED):
            name = case
        reasons.setdefault(why + " s" * bool(seconds), []).append(name + (f" ({seconds} s)" if seconds else ""))
    return "".join(f"- {'; '.join(dict.fromkeys(names))}: {why}\n" for why, names in reasons.items())


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
    devices = {"cpu"} | {"cuda" for m in machines if m.header["gpu"]}

    def run(name: str) -> str:
        if name in ran:
            return "yes"
        if not devices & set(PEERS[name].devices):
            return "**not run**: no GPU yet"
        why = {x["why"] for m in machines for x in m.left_out if x.get("contender") == name}
        return f"**not run**: {'; '.join(sorted(why))}" if why else "**not run**"

    rows = [
        (name, peer.work, peer.cannot, ", ".join(peer.devices), f"`{peer.extra}`" if peer.extra else "", run(name))
        for name, peer in PEERS.items()
    ]
    return table(("peer", "what it does here", "what it cannot do", "runs on", "extra", "run"), rows)


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
            "" if power is None else f"{power:.2f}", tables.spread(last["seconds"]),
            "" if peak is None else f"{amount(peak)} beside {amount(last['input_bytes'])} of inputs",
        ))  # fmt: skip
    head = ("op", "over", "from, to", "exponent", "time at the end (quartiles)", "memory at the end")
    picture = (machine.folder / "scaling.png").relative_to(machine.folder.parents[2])
    return f"{table(head, rows)}\n![time and memory over sizes]({picture.as_posix()})\n"


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
            verdict(m),
            at_a_glance(m),
            "### Where a peer is better\n",
            where_peers_win(m),
            *(["### Not measured\n", left_out(m)] if m.left_out else []),
            "### The machine\n",
            header(m),
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
                verdict(machine),
                at_a_glance(machine),
                "Where a peer is better:",
                where_peers_win(machine),
                "Not measured:",
                left_out(machine),
                sep="\n",
            )
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
