"""One command per tick, or none: stale images, new instructions, slow and failing servers."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import numpy as np
import pytest

from vw2_robot.errors import InputError
from vw2_robot.serving.control_loop import ControlLoop

from .moving_policy import MovingPolicy


class Later(Executor):
    """Runs what was submitted when it is asked to."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, function: Any, /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.waiting.append((future, lambda: function(*arguments, **named)))
        return future

    def run(self) -> None:
        for future, call in self.waiting:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except Exception as error:
                    future.set_exception(error)
        self.waiting.clear()


def image(shade: int) -> np.ndarray:
    return np.full((4, 4, 3), shade, np.uint8)


def robot(policy: MovingPolicy | None = None, **options: Any) -> tuple[ControlLoop, Later]:
    executor = Later()
    loop = ControlLoop(policy or MovingPolicy(is_stateless=False), executor, **options)
    return loop, executor


def test_a_chunk_is_executed_action_by_action_and_the_next_is_asked_for_with_the_newest_image() -> None:
    loop, executor = robot()
    assert loop.command(0.0) is None
    assert loop.waits_for == "an instruction"
    loop.set_instruction("close it")
    assert loop.command(0.0) is None
    assert loop.waits_for == "an image"
    found = []
    for tick in range(6):
        loop.set_image(image(50 * tick), tick / 10)
        command = loop.command(tick / 10)
        found.append(None if command is None else (round(command[0] * 255), round(command[5] * 10), command[6]))
        executor.run()
    # Asked in tick 0, executed in 1 and 2; asked with the image of tick 3.
    assert found == [None, (0, 0, -1), (0, 1, -1), None, (150, 0, -1), (150, 1, -1)]
    assert loop.waits_for == ""


def test_it_never_waits_for_the_policy() -> None:
    loop, executor = robot()
    loop.set_instruction("go")
    loop.set_image(image(1), 0.0)
    assert [loop.command(0.01 * tick) for tick in range(20)] == [None] * 20
    assert len(executor.waiting) == 1
    assert loop.waits_for == "the policy"


@pytest.mark.parametrize("seconds", [0.6, -0.6])
def test_a_stale_image_stops_the_robot_and_what_was_predicted_is_dropped(seconds: float) -> None:
    loop, executor = robot()
    loop.set_instruction("go")
    loop.set_image(image(255), 0.0)
    loop.command(0.0)
    executor.run()
    assert loop.command(0.0) is not None
    assert loop.command(seconds) is None
    assert f"the last is {seconds:.2f} s old" in loop.waits_for
    loop.set_image(image(0), seconds)
    assert loop.command(seconds) is None  # asked anew
    executor.run()
    command = loop.command(seconds)
    assert command is not None
    assert (command[0], command[5]) == (0, 0)
    assert command[2] == pytest.approx(0.01)  # the first call of an episode


def test_the_answer_to_an_earlier_instruction_is_never_executed() -> None:
    loop, executor = robot()
    loop.set_image(image(255), 0.0)
    loop.set_instruction("close it")
    loop.command(0.0)
    _, ask = executor.waiting[0]
    executor.waiting[0][0].set_running_or_notify_cancel()  # on its way
    loop.set_instruction("open")
    assert loop.command(0.0) is None
    late, _ = executor.waiting.pop(0)
    late.set_result(ask())
    assert loop.command(0.0) is None
    executor.run()
    command = loop.command(0.0)
    assert command is not None
    assert command[1] == pytest.approx(0.04)  # the length of the prompt
    loop.set_instruction(" ")
    assert loop.command(0.0) is None


def test_a_refusal_is_raised_once_and_the_next_tick_asks_again() -> None:
    policy = MovingPolicy()
    loop, executor = robot(policy)
    loop.set_instruction("go")
    loop.set_image(image(1), 0.0)
    policy.errors.append(InputError("no image for this policy"))
    loop.command(0.0)
    executor.run()
    with pytest.raises(InputError, match="no image for this policy"):
        loop.command(0.0)
    policy.errors.clear()
    assert loop.command(0.0) is None
    executor.run()
    assert loop.command(0.0) is not None


def test_options_that_cannot_work_are_refused() -> None:
    with pytest.raises(InputError, match="n_action_steps=5"):
        robot(n_action_steps=5)
    with pytest.raises(InputError, match="max_image_age_seconds=0"):
        robot(max_image_age_seconds=0)
