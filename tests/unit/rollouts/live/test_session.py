"""The state machine of the live page: a policy and an instruction, step by step."""

from __future__ import annotations

import numpy as np
import pytest

from vw2_robot.rollouts.live.playback import Playback, PlayedEpisode
from vw2_robot.rollouts.live.session import Session, Subtask

GO = Subtask("please go", "go", 5)


def advance(session, count: int) -> None:
    for _ in range(count):
        session.advance()


def test_a_task_runs_until_the_oracle_finds_it_and_every_image_is_rendered_once(line):
    world, policy = line.LineWorld(), line.GoRight()
    session = Session(world, policy)
    assert (session.view().mode, session.advance()) == ("ready", False)
    session.run(GO)
    advance(session, 10)
    view = session.view()
    assert (view.mode, view.env_step, view.happened, view.instruction) == ("solved", 3, ("go", "rest"), "please go")
    assert policy.resets == [("please go", 5)]
    assert policy.seen == [0, 2]  # every second step, on the image of that moment
    assert world.calls.count("image") == 4  # of the places 0 to 3


def test_a_task_that_does_not_happen_ends_at_the_limit_and_a_free_instruction_names_what_happened(line):
    session = Session(line.LineWorld(), line.GoRight(-1.0))
    session.run(GO)
    advance(session, 10)
    assert (session.mode, session.env_step) == ("unsolved", 6)
    free = Session(line.LineWorld(), line.GoRight())
    free.run(Subtask("dance", None, 0))
    advance(free, 10)
    assert (free.mode, free.env_step, free.view().happened) == ("unsolved", 6, ("go", "rest"))


def test_subtasks_follow_one_another_in_the_world_as_it_is(line):
    world = line.LineWorld()
    session = Session(world, line.GoRight())
    session.run(GO, GO)
    advance(session, 4)
    assert (session.view().position, session.env_step, session.mode) == ((2, 2), 1, "running")
    advance(session, 4)
    assert (session.mode, world.place) == ("solved", 6)


def test_pause_resume_and_single_steps(line):
    session = Session(line.LineWorld(), line.GoRight())
    session.single_step()
    session.resume()
    assert session.mode == "ready"  # nothing to do yet
    session.run(GO)
    session.single_step()
    assert (session.mode, session.env_step, session.advance()) == ("paused", 1, False)
    session.resume()
    advance(session, 1)
    session.pause()
    assert (session.mode, session.env_step) == ("paused", 2)
    session.single_step()
    session.resume()
    assert (session.mode, session.env_step) == ("solved", 3)


def test_what_is_expected_is_shown_beside_what_then_happens_one_window_at_a_time(line):
    tokens = np.array([[1, 2]])
    session = Session(line.LineWorld(), line.GoRight(tokens=tokens), decoder=line.CountingDecoder())
    session.run(Subtask("dance", None, 0))
    advance(session, 3)
    expected = session.view().expected
    assert expected is not None
    assert (expected.env_step, len(expected.happened), expected.decibel()) == (0, 2, None)
    advance(session, 1)
    assert [int(frame[0, 0, 0]) for frame in expected.happened] == [0, 2, 4]
    assert [int(frame[0, 0, 0]) for frame in expected.frames] == [0, 1, 2]
    nearer, still = expected.decibel() or (0.0, 0.0)
    assert nearer > still  # it expected some motion, of which a still image has none
    advance(session, 1)  # the next policy call after the end of the window opens another
    assert session.view().expected.env_step == 4
    np.testing.assert_array_equal(session.view().tokens, tokens)


def test_a_dragged_block_moves_while_the_arm_rests_and_is_noted_with_the_episode(line):
    world = line.LineWorld()
    session = Session(world, line.GoRight())
    session.drag("block_red", (0.1, 0.2, 0.3))
    assert session.advance()
    assert world.calls == [("drag", "block_red", (0.1, 0.2, 0.3)), "hold"]
    session.release()
    assert not session.advance()
    assert session.episode() is None
    session.run(GO)
    advance(session, 2)
    assert not session.episode().dragged
    session.drag("block_red", (0.0, 0.0, 0.0))
    advance(session, 2)
    episode = session.episode()
    assert (episode.solved, episode.dragged, len(episode.env_steps)) == (True, True, 3)
    assert [step.image[0, 0, 0] for step in episode.env_steps] == [0, 1, 2]
    assert [step.state["robot_obs"][0] for step in (*episode.env_steps, episode.last)] == [0, 1, 2, 3]


@pytest.mark.parametrize(("rate", "at_end"), [(1, 2), (3, 6)])
def test_a_recording_is_shown_state_by_state_to_its_end_and_again(line, rate, at_end):
    world = line.LineWorld()
    images = [np.full((4, 4, 3), place, np.uint8) for place in (7, 8, 9)]
    states = (np.array([[float(place)] * 15 for place in (7, 8, 9)]), np.zeros((3, 24)))
    playback = Playback(world, PlayedEpisode("please play", None, images, states, steps_per_image=rate))
    assert (playback.view().image[0, 0, 0], world.place) == (7, 7)
    playback.single_step()
    assert (playback.mode, playback.view().image[0, 0, 0], world.place) == ("paused", 8, 8)
    playback.resume()
    for _ in range(9):
        playback.advance()
    assert (playback.view().mode, playback.env_step, playback.view().image[0, 0, 0]) == ("ended", at_end, 9)
    playback.resume()
    assert (playback.mode, playback.view().env_step, world.place) == ("running", 0, 7)
