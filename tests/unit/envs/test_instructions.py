"""The nearest known wording of an instruction."""

from __future__ import annotations

import pytest

from vw2_robot.envs.instructions import nearest_wording, read_instructions


def wordings(*names: str) -> dict[str, str]:
    return {text: task for name in names for task, texts in read_instructions(name).items() for text in texts}


KNOWN = wordings("train", "enriched", "validation")


@pytest.mark.parametrize(
    ("text", "task"),
    [
        ("Please open the drawer!", "open_drawer"),
        ("push red block left", "push_red_block_left"),
        ("shove the red cube to the left", "push_red_block_left"),
        ("slide the door right please", "move_slider_right"),
        ("shut the drawer", "close_drawer"),
        ("switch the green lamp off", "turn_off_led"),
        ("push the block left", None),  # which one?
        ("turn on the light", None),  # bulb or LED
        ("do not open the drawer", None),
        ("never open the drawer", None),
        ("bring the door of the cabinet to its right end", "move_slider_right"),
        ("open the drawer and close it", None),
        ("make me a coffee", None),
        ("the", None),
        ("!", None),
    ],
)
def test_the_nearest_wording_has_the_words_that_tell_and_no_rival(text: str, task: str | None) -> None:
    found = nearest_wording(text, KNOWN)
    assert (None if found is None else KNOWN[found]) == task


def test_a_wording_that_was_left_out_is_taken_for_its_task_or_for_none() -> None:
    taken = {
        text: KNOWN[near]
        for text in list(KNOWN)[::10]
        if (near := nearest_wording(text, {known: task for known, task in KNOWN.items() if known != text})) is not None
    }
    assert taken == {text: KNOWN[text] for text in taken}
    assert len(taken) > 30
