import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from case import console

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Clock:
    """Stands in for time.monotonic: a step takes what the test says."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """Standard output and error as one terminal, from ``attach`` on (pytest's capture resets them after fixtures)."""

    def isatty(self) -> bool:
        return True

    def attach(self, patch: pytest.MonkeyPatch, columns: int = 120) -> None:
        patch.setattr(sys, "stdout", self)
        patch.setattr(sys, "stderr", self)
        patch.setenv("TERM", "xterm-256color")
        patch.setenv("COLUMNS", str(columns))
        patch.delenv("NO_COLOR", raising=False)

    @property
    def text(self) -> str:
        """What was written, without escape codes."""
        return ESCAPE.sub("", self.getvalue())


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console.time, "monotonic", clock)
    return clock


@pytest.fixture
def terminal() -> Terminal:
    return Terminal()


def lines_of(capsys) -> list[str]:
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


def test_plain_lines(clock, capsys) -> None:
    with console.progress(600, "train") as bar:
        for i in range(600):
            clock.now += 0.0625
            bar.advance(loss=10 - i / 100)
    lines = lines_of(capsys)
    assert lines[0] == "train 1/600 (0%)  loss 10"
    assert lines[1] == "train 81/600 (13%)  loss 9.2  0.06 s/step  32 s left"
    assert lines[-1] == "train 600/600 (100%)  loss 4.01  0.06 s/step  38 s in all"
    assert len(lines) == 9


def test_slow_units_have_a_line_each(clock, capsys) -> None:
    with console.progress(3, "evaluate", unit="video") as bar:
        for _ in range(3):
            clock.now += 3700
            bar.advance()
    assert lines_of(capsys) == [
        "evaluate 1/3 (33%)",
        "evaluate 2/3 (66%)  3700.00 s/video  61 min 40 s left",
        "evaluate 3/3 (100%)  3700.00 s/video  3 h 05 min in all",
    ]


def test_rate_is_of_late_and_of_this_process(clock, capsys) -> None:
    with console.progress(1300, "train", done=1000) as bar:
        clock.now += 40  # compilation
        bar.advance()
        for seconds in (1, 1, 0.25, 0.25, 0.25):
            for _ in range(50):
                clock.now += seconds
                bar.advance()
    lines = lines_of(capsys)
    assert lines[0] == "train 1001/1300 (77%)"
    assert lines[1] == "train 1006/1300 (77%)  1.00 s/step  4 min 54 s left"
    assert lines[-1] == "train 1251/1300 (96%)  0.25 s/step  12 s left"


def test_fast_units_in_milliseconds(clock, capsys) -> None:
    with console.progress(2, "train") as bar:
        clock.now += 0.0031
        bar.advance()
        clock.now += 0.0031
        bar.advance()
    assert "3.1 ms/step" in lines_of(capsys)[-1]


def test_numbers_stay_until_the_next(clock, capsys) -> None:
    with console.progress(4, "train") as bar:
        for i in range(4):
            clock.now += 6
            bar.advance(loss=8.3123, **({"mAP": 46.21} if i == 1 else {}))
    assert [("mAP 46.2" in line) for line in lines_of(capsys)] == [False, True, True, True]


def test_numbers_are_read_only_when_printed(clock, capsys) -> None:
    reads = []

    class OnDevice:
        def __float__(self) -> float:
            reads.append(1)
            return 1234.5

    with console.progress(100, "train") as bar:
        for _ in range(100):
            clock.now += 0.01
            bar.advance(loss=OnDevice())
    assert len(reads) == 2
    assert "loss 1234  " in lines_of(capsys)[-1]


def test_interruption_says_how_far_it_came(clock, capsys) -> None:
    def interrupted() -> None:
        with console.progress(100, "train") as bar:
            for _ in range(30):
                clock.now += 0.1
                bar.advance()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert lines_of(capsys)[-1] == "train 30/100 (30%)  0.10 s/step  7 s left"


def test_nothing_to_do_prints_nothing(capsys) -> None:
    with console.progress(0, "train"), console.progress(5, "resumed", done=5):
        pass
    assert lines_of(capsys) == []


def test_end_is_said_once(clock, capsys) -> None:
    with console.progress(1, "train") as bar:
        clock.now += 1
        bar.advance()
        bar.advance(0, mAP=40.0)
    assert lines_of(capsys) == ["train 1/1 (100%)  1.00 s/step  1 s in all"]


def test_bar_on_a_terminal(terminal, monkeypatch) -> None:
    terminal.attach(monkeypatch)
    with console.progress(40, "train [x]", done=10) as bar:
        for i in range(30):
            bar.advance(loss=8.31)
            if i == 10:
                console.warn("memory-mapped")
                console.note("a [bold] note")
    text = terminal.text
    assert "train [x] 40/40  loss 8.31" in text
    assert "━" in text
    assert "in all" in text
    assert "warning: memory-mapped\n" in text
    assert "a [bold] note\n" in text
    assert text.endswith("\n")


def test_bar_within_a_bar(terminal, monkeypatch) -> None:
    terminal.attach(monkeypatch)
    with console.progress(2, "train") as outer:
        outer.advance()
        with console.progress(5, "evaluate", unit="video") as inner:
            inner.advance(5)
            assert [(t.description, t.completed) for t in console._live.tasks] == [("train", 1), ("evaluate", 5)]
        assert [t.description for t in console._live.tasks] == ["train"]
        outer.advance()
    assert console._live is None
    assert "evaluate" in terminal.text


def test_bar_is_taken_down_after_an_error(terminal, monkeypatch) -> None:
    terminal.attach(monkeypatch)
    with pytest.raises(RuntimeError), console.progress(2, "train"):
        raise RuntimeError
    assert console._live is None
    assert sys.stderr is terminal
    assert terminal.getvalue().rstrip().endswith("\x1b[?25h")  # the cursor is back


@pytest.mark.parametrize("columns", [100, 60, 30, 12])
def test_narrow_terminal_keeps_to_one_line(terminal, monkeypatch, columns) -> None:
    terminal.attach(monkeypatch, columns)
    with console.progress(3600, "train") as bar:
        bar.advance(1000, loss=8.31, mAP=46.2)
    shown = re.split(r"[\r\n]", terminal.text)
    assert max(map(len, shown)) <= columns
    assert ("━" in terminal.getvalue()) == (columns == 100)


def test_no_color(terminal, monkeypatch) -> None:
    terminal.attach(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    console.warn("odd")
    with console.progress(2, "train") as bar:
        bar.advance(2)
    console.table("t", ["a"], [["b"]])
    assert "warning: odd\n" in terminal.getvalue()
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", terminal.getvalue())


def test_dumb_terminal_has_plain_lines(terminal, monkeypatch) -> None:
    terminal.attach(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    with console.progress(2, "train") as bar:
        bar.advance(2)
    console.error("odd")
    assert terminal.getvalue().splitlines()[0].startswith("train 2/2 (100%)")
    assert "\x1b" not in terminal.getvalue()


def test_messages(capsys) -> None:
    console.note("written")
    console.warn("few videos")
    console.error("a.npy: not\n  an array")
    out, err = capsys.readouterr()
    assert out == "written\n"
    assert err == "warning: few videos\nerror: a.npy: not an array\n"


def test_coloured_labels(terminal, monkeypatch) -> None:
    terminal.attach(monkeypatch)
    console.error("odd")
    assert terminal.getvalue() == "\x1b[31merror:\x1b[0m odd\n"


def test_plain_table(capsys) -> None:
    console.table("mAP (%)", ["result", "0.5", "mean"], [["last", "7.1", 46.234], ["[best]", "37.7", "-"]])
    assert capsys.readouterr().out.splitlines() == [
        "mAP (%)",
        "result   0.5  mean",
        "------  ----  ----",
        "last     7.1  46.2",
        "[best]  37.7     -",
    ]


def test_table_of_nothing(capsys) -> None:
    console.table("mAP (%)", ["result"], [])
    assert capsys.readouterr().out.splitlines() == ["mAP (%)", "result", "------"]


def test_row_of_another_length(capsys) -> None:
    with pytest.raises(ValueError, match="has 2 columns, got a row of 1"):
        console.table("mAP (%)", ["result", "mean"], [["last"]])


def test_table_on_a_terminal(terminal, monkeypatch) -> None:
    terminal.attach(monkeypatch)
    console.table("mAP (%)", ["result", "0.5"], [["[best]", 37.7]])
    text = terminal.text
    assert "mAP (%)" in text
    assert re.search(r"\[best\] +37\.7", text)


def test_wide_table_is_turned_on_a_narrow_terminal(terminal, monkeypatch) -> None:
    terminal.attach(monkeypatch, 40)
    columns = ["result", *(f"0.{i}" for i in range(1, 8))]
    console.table("mAP (%)", columns, [["last", *["46.2"] * 7], ["best", *["47.9"] * 7]])
    text = terminal.text
    assert re.search(r"result +last +best", text)
    assert re.search(r"0\.7 +46\.2 +47\.9", text)
    assert max(map(len, text.splitlines())) <= 40


def test_long_text_is_folded_not_turned(terminal, monkeypatch) -> None:
    terminal.attach(monkeypatch, 40)
    console.table("case", ["part", "state"], [[f"op {i}", "reason " * 10] for i in range(8)])
    text = terminal.text
    assert re.search(r"part +state", text)
    assert text.count("reason") == 80


@pytest.mark.slow
def test_a_real_terminal() -> None:
    """Progress goes to the terminal, output to a pipe, and neither gets the other's."""
    code = (
        "from case import console\n"
        "with console.progress(3, 'train') as bar:\n"
        "    for i in range(3): bar.advance(loss=1.5); console.note(f'note {i}')\n"
        "console.table('t', ['a'], [['1']])\n"
    )
    primary, secondary = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "PYTHONPATH": str(Path(__file__).parents[1])}
    try:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code], env=environment, stdout=subprocess.PIPE, stderr=secondary
        )
        seen = os.read(primary, 100_000).decode()
    finally:
        os.close(primary)
        os.close(secondary)
    assert done.returncode == 0
    assert done.stdout.decode().splitlines() == ["note 0", "note 1", "note 2", "t", "a", "-", "1"]
    assert "train 3/3  loss 1.5" in ESCAPE.sub("", seen)
    assert "note" not in seen


@pytest.mark.slow
def test_import_is_light() -> None:
    code = "import sys, case.console; assert not {'rich', 'torch', 'numpy', 'matplotlib'} & set(sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
