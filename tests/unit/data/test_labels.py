from pathlib import Path

import pytest

from vw2_robot.data.labels import (
    choose_labels,
    label_budget,
    label_order,
    label_stratum,
    labels_digest,
    read_labels,
    select_labels,
    write_labels,
)
from vw2_robot.errors import InputError
from vw2_robot.storage.files import read_json, write_json

STRATA = ["open"] * 30 + ["close"] * 20 + ["push"] * 10
IDS = [f"episode_{number:04d}" for number in range(60)]


def test_the_choice_is_fixed_across_versions() -> None:
    # Written down once: a change here changes which labels published runs were trained on.
    assert select_labels(STRATA, IDS, fraction=0.1, seed=0) == [3, 14, 15, 33, 35, 59]


def test_calvin_sized_selection_has_the_expected_counts() -> None:
    strata = [f"task_{number % 34}" for number in range(22966)]
    chosen = choose_labels(strata, [str(number) for number in range(22966)], fraction=0.1, seed=0)
    assert len(chosen.episode_ids) == 2297
    assert {selected for selected, _ in chosen.strata.values()} == {67, 68}


@pytest.mark.parametrize(
    ("total", "fraction", "budget"), [(22966, 0.1, 2297), (5, 0.1, 1), (5, 0.5, 3), (7, 1.0, 7), (7, 0.0, 0)]
)
def test_budget_is_rounded_half_up(total: int, fraction: float, budget: int) -> None:
    assert label_budget(total, fraction) == budget


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_a_fraction_outside_zero_to_one_is_refused(fraction: float) -> None:
    with pytest.raises(InputError, match=r"must lie in \[0, 1\]"):
        label_budget(10, fraction)


def test_a_fraction_that_selects_nothing_is_refused_with_the_smallest_that_does() -> None:
    with pytest.raises(InputError, match=r"selects none; use at least 0\.05"):
        label_budget(10, 0.01)


def test_a_budget_below_one_for_everybody_goes_to_the_largest_strata() -> None:
    chosen = choose_labels(STRATA, IDS, fraction=2 / 60, seed=0)
    assert chosen.strata == {"open": (1, 30), "close": (1, 20), "push": (0, 10)}


def test_repeated_ids_and_unequal_lists_are_refused() -> None:
    with pytest.raises(InputError, match="1 repeated, for example 'x'"):
        label_order(["a", "b"], ["x", "x"], seed=0)
    with pytest.raises(InputError, match="1 strata were given for 2"):
        label_order(["a"], ["x", "y"], seed=0)


def test_stratum_is_the_task_or_scene_and_text() -> None:
    assert label_stratum(task="open_drawer", scene="D", instruction="x") == "task:open_drawer"
    plain = label_stratum(task=None, scene="D", instruction="open the drawer")
    assert plain == label_stratum(task=None, scene="D", instruction="  Open the \t DRAWER ")
    assert plain != label_stratum(task=None, scene="A", instruction="open the drawer")


def test_digest_knows_the_set_and_not_its_order() -> None:
    assert labels_digest(["a", "b"]) == labels_digest(["b", "a"]) != labels_digest(["a", "c"])


def test_label_file_round_trip(tmp_path: Path) -> None:
    labels = choose_labels(STRATA, IDS, fraction=0.2, seed=3)
    write_labels(tmp_path / "labels.json", labels)
    assert read_labels(tmp_path / "labels.json") == labels
    assert [path.name for path in tmp_path.iterdir()] == ["labels.json"]
    assert labels.strata == {"open": (6, 30), "close": (4, 20), "push": (2, 10)}


def test_an_edited_label_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    write_labels(path, choose_labels(STRATA, IDS, fraction=0.2, seed=3))
    content = read_json(path, cure="", sealed=True)
    content["episode_ids"].pop()
    for sealed in (True, False):  # older files have no seal
        write_json(path, content, sealed=sealed)
        with pytest.raises(InputError, match="was edited"):
            read_labels(path)
    write_labels(path, choose_labels(STRATA, IDS, fraction=0.2, seed=3))
    path.write_text(path.read_text().replace('"seed": 3', '"seed": 4'))
    with pytest.raises(InputError, match="is not what was written"):
        read_labels(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format_version": 99}', "\x00"])
def test_a_file_that_is_no_label_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "labels.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"labels\.json"):
        read_labels(path)
    with pytest.raises(InputError, match="is missing; it is written by vw2-finetune"):
        read_labels(tmp_path / "none.json")
