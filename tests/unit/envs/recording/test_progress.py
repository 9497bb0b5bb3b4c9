"""Progress of a recording where there is no terminal: a line at every tenth, or when it takes long, and at the end."""

import io

import pytest

from vw2_robot.envs.recording import progress
from vw2_robot.envs.recording.progress import progress_lines, show_progress


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def work(clock, items, *, seconds):
    for _ in range(items):
        clock.now += seconds
        yield


def test_a_line_falls_due_at_every_tenth_of_the_work(clock):
    lines = list(progress_lines(work(clock, 200, seconds=0.5), total=200, already=0, unit="demo"))
    assert len(lines) == 10
    assert lines[0] == "record: 20 of 200 demos, 0.5 s each, 1.5 min left"
    assert lines[-1] == "record: 200 of 200 demos, 0.5 s each, 0.0 min left"


def test_slow_work_speaks_every_half_minute(clock):
    lines = list(progress_lines(work(clock, 12, seconds=10.0), total=1000, already=900, unit="demo"))
    assert [line.split()[1] for line in lines] == ["903", "906", "909", "912"]


def test_lines_are_printed_where_there_is_no_terminal(clock):
    stream = io.StringIO()
    show_progress(work(clock, 2, seconds=1.0), total=2, already=0, unit="demo", stream=stream)
    assert stream.getvalue().splitlines()[-1].startswith("record: 2 of 2 demos")


def test_a_terminal_gets_a_bar(clock):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    show_progress(work(clock, 2, seconds=1.0), total=2, already=0, unit="demo", stream=stream)
    assert "2/2" in stream.getvalue()
