"""The commands of the live page, and the thread that follows them."""

from __future__ import annotations

import threading
import time

import pytest

from vw2_robot.errors import InputError
from vw2_robot.rollouts.live.control import Control
from vw2_robot.rollouts.live.worker import LiveWorker


@pytest.fixture
def opener(line):
    return line.LineOpener()


@pytest.fixture
def control(opener):
    return Control(opener, policy="right", scene="D", seed=4)


def advance(control: Control, count: int = 10) -> None:
    for _ in range(count):
        control.stage.advance()


def test_a_typed_instruction_of_a_task_is_judged_and_a_free_one_is_not(control):
    assert control.world.place == 4  # the start of the seed
    control.ask("  please   go ")
    advance(control)
    assert (control.view().mode, control.view().task, control.view().instruction) == ("solved", "go", "please go")
    control.ask("go now")
    assert (control.view().task, control.view().instruction, control.view().taken_as) == ("go", "go now", "please go")
    control.ask("dance")
    assert (control.view().mode, control.view().task, control.view().taken_as) == ("running", None, "")
    with pytest.raises(InputError, match="type an instruction"):
        control.ask(" ")


def test_a_task_that_cannot_be_done_from_here_begins_at_a_start_where_it_can(control):
    control.ask_task("go")
    assert (control.notice, control.world.place) == ("", 4)
    control.world.place = 100
    control.ask_task("go")
    assert "a start where it can" in control.notice
    advance(control)
    assert (control.world.place, control.view().mode) == (7, "solved")


def test_start_continues_repeats_or_asks_for_an_instruction(control):
    with pytest.raises(InputError, match="type an instruction"):
        control.start()
    control.ask_task("go")
    control.single_step()
    control.start()
    assert (control.view().mode, control.view().env_step) == ("running", 1)
    advance(control)
    control.start()
    assert (control.view().mode, control.view().env_step) == ("running", 0)
    control.pause()
    control.reset()
    assert (control.view().mode, control.view().instruction, control.world.place) == ("ready", "", 4)


def test_policy_scene_and_seed_are_chosen_and_what_cannot_be_opened_changes_nothing(control, opener):
    control.choose_policy("left")
    control.ask_task("go")
    advance(control)
    assert (control.view().mode, control.policy_name) == ("unsolved", "left")
    with pytest.raises(InputError, match="no policy middle"):
        control.choose_policy("middle")
    assert control.policy_name == "left"
    control.choose_seed(2)
    control.choose_scene("B")
    assert (control.view().scene, control.world.place, control.world_number) == ("B", 2, 1)
    assert opener.worlds[0].calls[-1] == "close"


def test_a_recording_is_played_in_its_scene_and_an_instruction_leaves_it(control, opener):
    control.play(0)
    assert (control.view().scene, control.notice, control.view().image[0, 0, 0]) == ("A", "the only one", 7)
    with pytest.raises(InputError, match="nothing to save"):
        control.save()
    control.drag("block_red", (0.0, 0.0, 0.0))  # a recording cannot be changed
    control.ask_task("go")
    advance(control)
    assert (control.view().mode, control.world.place) == ("solved", 7)  # from the start of seed 4
    control.save()
    assert (control.notice, opener.saved[0].solved) == ("saved: episode.mp4", True)
    with pytest.raises(InputError, match="no recorded episode 1"):
        control.play(1)


def test_the_worker_publishes_views_turns_errors_into_notices_and_stops(opener):
    views, notices, solved = [], [], threading.Event()

    def publish(control: Control, view) -> None:
        views.append(view)
        notices.append(control.notice)
        if view.mode == "solved":
            solved.set()

    def fail(control: Control) -> None:
        raise RuntimeError("a bug")

    worker = LiveWorker(lambda: Control(opener, policy="right", scene="D", seed=0), publish)
    worker.start()
    worker.submit(lambda control: control.choose_policy("middle"))
    worker.submit(lambda control: control.ask_task("go"))
    assert solved.wait(20)
    worker.submit(fail)
    end = time.monotonic() + 20
    while "RuntimeError: a bug; the traceback is on the terminal" not in notices and time.monotonic() < end:
        time.sleep(0.01)
    worker.stop()
    assert (worker.error, worker.is_alive()) == (None, False)
    assert notices[-1].startswith("RuntimeError: a bug")
    assert views[0].mode == "ready"
    assert opener.worlds[0].calls[-1] == "close"
