"""Recorded episodes that can be played: the rows of a rollout, and the episodes of a data set in any format."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

from vw2_robot.aliases import with_new_keys
from vw2_robot.command_line.config_tree import config_from
from vw2_robot.contracts import EvalSequence
from vw2_robot.data.sources.calvin import CalvinDataset, CalvinSplit
from vw2_robot.data.sources.calvin_scenes import UNKNOWN
from vw2_robot.data.sources.formats import open_source, recognize
from vw2_robot.errors import InputError
from vw2_robot.storage.files import read_yaml

from ..config import RolloutConfig, open_policy
from ..evaluate import subtask_seed
from ..recording import FOLDER
from ..results import read_results
from .control import ChosenWorld, Library, Stage
from .playback import Playback, PlayedEpisode
from .session import Session, Subtask


class RolloutRows:
    """The chains of a rollout. They are run again: a row is a function of policy, chain and seed.

    Args:
        run_dir: of the rollout.
        device: of its policy.

    Raises:
        InputError: the folder holds no finished chain, or a file in it is damaged.
    """

    def __init__(self, run_dir: Path, *, device: str) -> None:
        self._rows = read_results(run_dir)
        tree = with_new_keys(read_yaml(run_dir / "config.yaml", cure="copy the folder again"))
        known = {field.name for field in dataclasses.fields(RolloutConfig)}
        values = {key: value for key, value in tree.items() if key in known} | {"device": device, "shard": None}
        # Recorded actions need no policy and no time.
        values["policy"] = str(run_dir) if (run_dir / FOLDER).is_dir() else values.get("policy")
        self._config = config_from(RolloutConfig, values)
        self.env: dict[str, Any] = self._config.env
        """the simulator of the rollout"""

    def __len__(self) -> int:
        """Return the number of chains."""
        return len(self._rows)

    def description(self, number: int) -> str:
        """Return a line about a chain."""
        row = self._rows[number]
        return (
            f"chain {row['sequence']}: {row['solved']} of {len(row['subtasks'])} solved, {', '.join(row['subtasks'])}"
        )

    def scene(self, number: int) -> str:
        """Return the scene of the rollout."""
        return str(self.env.get("scene", "D"))

    def open(self, number: int, world: ChosenWorld) -> Stage:
        """Return the chain at its start, running."""
        row = self._rows[number]
        world.benchmark.reset(EvalSequence(row["sequence"], row["initial_state"], tuple(row["subtasks"])))
        policy = open_policy(self._config, world.benchmark)
        session = Session(world, policy, policy_name=self._config.policy)
        session.run(
            *(
                Subtask(instruction, row["subtasks"][i], subtask_seed(row["seed"], row["sequence"], i))
                for i, instruction in enumerate(row["instructions"])
            )
        )
        return session


class CalvinEpisodes:
    """The labeled windows of a CALVIN data set, with the state of every time step.

    Args:
        path: of the data set.
        split: training or validation.

    Raises:
        InputError: it is no CALVIN data set, or damaged.
    """

    def __init__(self, path: Path, split: CalvinSplit) -> None:
        self._dataset = CalvinDataset(path, split)

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self._dataset)

    def description(self, number: int) -> str:
        """Return a line about a window."""
        trajectory = self._dataset.trajectories[number]
        return f"{trajectory.trajectory_id}: {trajectory.task}, {trajectory.length} steps in scene {trajectory.scene}"

    def scene(self, number: int) -> str:
        """Return its scene; D where that is not known."""
        scene = self._dataset.trajectories[number].scene
        return scene if scene != UNKNOWN else "D"

    def open(self, number: int, world: ChosenWorld) -> Stage:
        """Return the window at its beginning, running."""
        trajectory = self._dataset.trajectories[number]
        images, robot_obs, scene_obs = self._dataset.read_together(trajectory, ("rgb_static", "robot_obs", "scene_obs"))
        states = (robot_obs, scene_obs) if trajectory.scene == world.scene else None
        return Playback(world, PlayedEpisode(trajectory.instruction, trajectory.task, images, states))


class VideoEpisodes:
    """The episodes of a data set of any other format, which are images alone.

    Args:
        path: of the data set.
        split: of it; None: its training split.

    Raises:
        InputError: the format is not known, or the data set is damaged.
    """

    def __init__(self, path: Path, split: str | None) -> None:
        self._source = open_source(path, split=split)
        # Parts that do not know how many episodes they hold are played from their first one.
        self._places = [
            (number, start)
            for number, part in enumerate(self._source.parts())
            for start in range(1 if part.episodes is None else part.episodes)
        ]

    def __len__(self) -> int:
        """Return the number of episodes."""
        return len(self._places)

    def description(self, number: int) -> str:
        """Return a line about an episode."""
        return f"episode {number} of {self._source.name}: video alone, the scene rests"

    def scene(self, number: int) -> str:
        """Return any scene: it is not shown what belongs to none."""
        return "D"

    def open(self, number: int, world: ChosenWorld) -> Stage:
        """Return the episode at its beginning, running."""
        part, start = self._places[number]
        episode = next(self._source.read(part, start=start), None)
        if episode is None:
            raise InputError(f"episode {number} of {self._source.name} cannot be read")
        images = [episode.decode(index) for index in range(len(episode))]
        rate = max(1, round(world.control_hz / episode.hz))
        return Playback(world, PlayedEpisode(episode.instruction, None, images, None, steps_per_image=rate))


def open_library(path: Path, split: str | None, *, device: str) -> Library:
    """Return the recorded episodes in a folder.

    Args:
        path: run_dir of a rollout, or a data set.
        split: of a data set; None: its training split.
        device: of the policy of a rollout.

    Raises:
        InputError: it is neither, or damaged.
    """
    library: Library
    if (path / "results.jsonl").is_file():
        library = RolloutRows(path, device=device)
    elif recognize(path) == "calvin":
        if split not in (None, "training", "validation"):
            raise InputError(f"data.split={split}: a CALVIN data set has training and validation")
        library = CalvinEpisodes(path, cast(CalvinSplit, split or "training"))
    else:
        library = VideoEpisodes(path, split)
    if not len(library):
        raise InputError(f"data.path={path} holds no episode that could be played")
    return library
