"""What the live page writes and draws for a view, without a server."""

from __future__ import annotations

import numpy as np
import pytest

from vw2_robot.rollouts.live.control import Control, OpenedPolicy
from vw2_robot.rollouts.live.page import comparison, status_text, tokens_text


@pytest.fixture
def control(line):
    return Control(line.LineOpener(), policy="right", scene="D", seed=0)


def advance(control: Control, count: int) -> None:
    for _ in range(count):
        control.stage.advance()


def test_the_status_names_state_instruction_outcome_and_what_else_happened(control):
    assert status_text(control, control.view(), 0.0).startswith("### Ready for an instruction")
    control.ask_task("go")
    advance(control, 9)
    text = status_text(control, control.view(), 9.96)
    for part in ("### Solved in 3 steps", "**please go**", "`go`", "also found: rest", "`right`", "10.0 frames/s"):
        assert part in text
    control.ask("go now")
    assert "Taken as: **please go** (judged by that" in status_text(control, control.view(), 0.0)
    control.ask("dance")
    advance(control, 1)
    text = status_text(control, control.view(), 0.0)
    assert "Not judged: no task has a wording like this one." in text
    assert "The oracle found: rest" in text
    control.play(0)
    text = status_text(control, control.view(), 0.0)
    assert "recorded · scene A" in text
    assert "judged" not in text
    assert "the only one" in text
    assert tokens_text(control, control.view()) == "No expected frames: this is a recording."


def test_tokens_and_expected_frames_are_shown_or_the_reason_why_not(control, line):
    assert tokens_text(control, control.view()) == "No expected frames: a line needs no tokens."
    control.opened = OpenedPolicy(line.GoRight(tokens=np.array([[1, 23]])), line.CountingDecoder())
    control.reset()
    assert "with the first policy call" in tokens_text(control, control.view())
    control.ask("dance")
    advance(control, 2)
    assert "   1   23" in tokens_text(control, control.view())
    image = comparison(control.view().expected)
    assert (image[0, :, 0] == np.repeat([0, 1, 2], 96)).all()  # expected
    assert (image[-1, :, 0] == np.repeat([0, 2, 128], 96)).all()  # happened; gray: not yet
    advance(control, 2)
    assert "expected 4" in tokens_text(control, control.view())
