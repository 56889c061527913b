"""What a check of a feature folder found, and its readable form."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class Finding:
    """One thing found."""

    kind: str
    """What it is, in a few words; findings of one kind are shown together."""
    split: str
    """"train", "test", or "" where it concerns neither or both."""
    video: str
    """The video concerned, or ""."""
    text: str
    """One line: where, what was found and what to do."""


@dataclass
class SplitSummary:
    """Numbers of one split, over its usable videos."""

    videos: int = 0
    """Videos that the split file names."""
    rows: list[int] = field(default_factory=list)
    """Feature rows of each video whose features can be read."""
    seconds: float = 0.0
    action_seconds: float = 0.0
    """Seconds covered by at least one instance."""
    instances: dict[str, int] = field(default_factory=dict)
    """Class -> annotated instances."""
    class_videos: dict[str, int] = field(default_factory=dict)
    """Class -> videos with at least one instance."""

    @property
    def rows_range(self) -> tuple[int, int, int]:
        """Fewest, median and most rows of a video; zeros where no features can be read."""
        if not self.rows:
            return 0, 0, 0
        ordered = sorted(self.rows)
        return ordered[0], ordered[len(ordered) // 2], ordered[-1]

    @property
    def action_share(self) -> float:
        """Share of the time that is action, 0 to 1."""
        return self.action_seconds / self.seconds if self.seconds else 0.0


@dataclass
class Report:
    """Result of ``check_folder``: findings by severity, and numbers that describe the data."""

    path: Path
    name: str = ""
    seconds_per_row: float = 0.0
    modalities: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    widths: dict[str, int] = field(default_factory=dict)
    """Stream -> numbers per row of most of its files."""
    dtypes: dict[str, str] = field(default_factory=dict)
    """Stream -> dtypes of its files, joined by "/" where they differ."""
    splits: dict[str, SplitSummary] = field(default_factory=dict)
    errors: list[Finding] = field(default_factory=list)
    """What keeps training or evaluation from running, or would falsify it."""
    warnings: list[Finding] = field(default_factory=list)
    """What runs, but not as the data's author may think."""
    infos: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True when there is no error."""
        return not self.errors

    def add(self, severity: Severity, kind: str, split: str, video: str, text: str) -> None:
        """Append a finding."""
        findings = {"error": self.errors, "warning": self.warnings, "info": self.infos}[severity]
        findings.append(Finding(kind, split, video, text))

    def render(self) -> str:
        """The report as plain text: the numbers, every finding under its kind, and the verdict in the last line."""
        return "\n".join([*self._numbers(), *self._findings(), self._verdict()])

    def _numbers(self) -> list[str]:
        lines = [f"{self.name or self.path}: {len(self.classes)} classes, {self.seconds_per_row:g} s per row"]
        for stream in self.modalities:
            lines.append(f"  {stream}: width {self.widths.get(stream, 0)}, {self.dtypes.get(stream, 'no features')}")
        for split, numbers in self.splits.items():
            low, middle, high = numbers.rows_range
            lines.append(
                f"  {split}: {numbers.videos} videos, {sum(numbers.instances.values())} instances; "
                f"rows {low} / {middle} / {high} (min / median / max), {sum(numbers.rows)} in all; "
                f"{numbers.seconds:.0f} s, {100 * numbers.action_share:.1f} % action"
            )
        if self.classes and self.splits:
            width = max(len(name) for name in (*self.classes, "class"))
            lines.append(f"  {'class':{width}}" + "".join(f"  {s + ' instances (videos)':>24}" for s in self.splits))
            for name in self.classes:
                counts = (f"{n.instances.get(name, 0)} ({n.class_videos.get(name, 0)})" for n in self.splits.values())
                lines.append(f"  {name:{width}}" + "".join(f"  {count:>24}" for count in counts))
        return lines

    def _findings(self) -> list[str]:
        lines = []
        for title, findings in (("error", self.errors), ("warning", self.warnings), ("info", self.infos)):
            by_kind: dict[str, list[Finding]] = {}
            for finding in findings:
                by_kind.setdefault(finding.kind, []).append(finding)
            for kind, members in by_kind.items():
                lines.append(f"{title}: {kind} ({len(members)})")
                lines.extend(f"  {member.text}" for member in members)
        return lines

    def _verdict(self) -> str:
        counts = ((len(self.errors), "error"), (len(self.warnings), "warning"), (len(self.infos), "remark"))
        listed = ", ".join(f"{n} {word}{'s' if n != 1 else ''}" for n, word in counts)
        return f"{'ok' if self.ok else 'not usable as it is'}: {listed}"
