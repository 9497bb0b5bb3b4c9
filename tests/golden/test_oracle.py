"""The oracle finds the same tasks as the reference's in every recorded pair of moments (conformance level L1)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vw2_robot.envs.oracle import TaskOracle


def moment(state: dict[str, Any]) -> dict[str, Any]:
    """A recorded state in the shape of `CalvinEnv.task_info()`."""
    robot, table = state["robot"], state["table"]
    blocks = {
        name: {
            "uid": block["uid"],
            "current_pos": block["pos"],
            "current_orn": block["quat"],
            "current_lin_vel": block["lin_vel"],
            "current_ang_vel": block["ang_vel"],
            "contacts": [(0, block["uid"], other, -1, link) for other, link in block["contacts"]],
        }
        for name, block in state["blocks"].items()
    }
    return {
        "robot_info": {
            "uid": robot["uid"],
            "contacts": [(0, robot["uid"], other, -1, -1) for other in robot["contacts"]],
        },
        "scene_info": {
            "fixed_objects": {"table": {"uid": table["uid"], "links": table["links"], "contacts": []}},
            "movable_objects": blocks,
            "doors": {name: {"current_state": value} for name, value in state["doors"].items()},
            "lights": {name: {"logical_state": value} for name, value in state["lights"].items()},
        },
    }


@pytest.fixture(scope="module")
def records(golden_dir: Path) -> list[dict[str, Any]]:
    trajectories: list[dict[str, Any]] = json.loads((golden_dir / "oracle.json").read_text())["trajectories"]
    return trajectories


def test_every_recorded_pair_gets_the_recorded_tasks(records: list[dict[str, Any]]) -> None:
    oracle = TaskOracle()
    pairs = 0
    for record in records:
        moments = [moment(state) for state in record["states"]]
        for start, end, tasks in record["pairs"]:
            found = sorted(oracle.get_task_info(moments[start], moments[end]))
            assert found == tasks, (record["trajectory"], start, end)
            pairs += 1
    assert pairs > 500


def test_asking_about_one_task_agrees_with_asking_about_all(records: list[dict[str, Any]]) -> None:
    oracle = TaskOracle()
    record = records[0]
    moments = [moment(state) for state in record["states"]]
    for start, end, tasks in record["pairs"]:
        for name in oracle.task_to_id:
            alone = oracle.get_task_info_for_set(moments[start], moments[end], [name])
            assert alone == ({name} if name in tasks else set())


def test_task_ids_are_positions_in_the_published_list(calvin_dir: Path, golden_dir: Path) -> None:
    import numpy as np

    oracle = TaskOracle()
    published = np.load(golden_dir / "A_random.npz")["task_names"].tolist()
    assert oracle.num_tasks == 34
    assert [oracle.id_to_task[number] for number in range(34)] == published
    assert (calvin_dir / "tasks.yaml").read_text() == (Path(__file__).parents[2] / "envs/tasks.yaml").read_text()
