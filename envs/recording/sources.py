"""Sources of recordings, by number: demonstrations on CALVIN's tables, of other robots, and re-rendered recordings."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from vw2_robot.data.calvin_writer import Label
from vw2_robot.data.sources.calvin import CalvinDataset
from vw2_robot.errors import InputError
from vw2_robot.limits import Count, Rate, number

from ..calvin import CalvinEnv
from ..other_robots.arm import HOME
from ..other_robots.environment import check_world, solved_episode
from ..physics import Physics
from ..rerendering.appearance import PANDA, sample_appearance
from ..rerendering.rendering import render_video
from ..scene import SCENES
from .config import SPLITS, RecordConfig
from .craft import CraftDemonstrations
from .demonstrations import RecordedDemonstration, Recorder
from .meta_world import MetaWorldDemonstrations
from .takeovers import Takeovers, open_policy

VALIDATION_START = 1_000_000
"""Index of the first validation episode of other robots, far beyond any training episode."""


class CalvinDemonstrations:
    """Demonstrations on a CALVIN table, or on several.

    Args:
        config: of the recording.

    Raises:
        InputError: unknown scenes or tasks, or a policy that cannot be loaded.
    """

    def __init__(self, config: RecordConfig) -> None:
        self._config = config
        self._tasks = config.task_names()
        self._seed = config.seed
        world = config.calvin()
        scenes = world.pop("scene")
        if not scenes or len(set(scenes)) < len(scenes) or set(scenes) - set(SCENES):
            raise InputError(f"unknown scene {scenes!r}; choose one of {', '.join(SCENES)}, or several, as ABC")
        # Before the environments, which an error would leave open.
        policy = None if config.policy is None else open_policy(config.policy)
        self.policy_hash = None if policy is None else str(policy.policy.metadata["policy_hash"])
        # One environment per scene, all in this process; resets are exact, so their order does not matter.
        self._envs = {scene: CalvinEnv(scene=scene, cameras=(), reset_mode="exact", **world) for scene in scenes}
        self._recorder = Recorder(
            max_steps=config.max_steps,
            tail_steps=config.tail_steps,
            play=config.play,
            max_window=config.max_window,
            wrist_camera=config.wrist_camera,
            depth=config.depth,
            perturbations=config.perturbations,
            failed_attempts=config.failed_attempts,
            random_starts=config.random_starts,
            ways=config.ways,
            near_starts=config.near_starts,
            takeovers=None if policy is None else Takeovers(policy, config.policy_share, config.policy_steps),
            appearance=config.appearance,
            camera_sway=config.camera_sway,
        )

    def make(self, split: int, number: int) -> RecordedDemonstration:
        """Return recording `number` of split number `split`; the tasks take turns to be the first."""
        # Round robin, so that the tasks are balanced at any number of recordings.
        task = self._tasks[number % len(self._tasks)]
        env = self._envs[self._config.scene_of(SPLITS[split], number)]
        return self._recorder.record(env, task, seed=(self._seed, split, number), pool=self._tasks)

    def close(self) -> None:
        """Free the simulators."""
        for env in self._envs.values():
            env.close()


class OtherRobotsDemonstrations:
    """Demonstrations of other robots at another table.

    Args:
        config: of the recording.

    Raises:
        InputError: numbers or robots that cannot work.
    """

    def __init__(self, config: RecordConfig) -> None:
        self._seed = config.seed
        self._hz = number(Rate, config.env["hz"], "env.hz")
        self._image_size = number(Count, config.env["image_size"], "env.image_size")
        self._embodiments = tuple(config.env["embodiments"])
        check_world(config.episodes, self._hz, self._image_size, self._embodiments)
        self._physics = Physics()

    def make(self, split: int, number: int) -> RecordedDemonstration:
        """Return recording `number` of split number `split`; its task is random."""
        # One sequence of episodes for both splits; their indices never overlap.
        index = number + split * VALIDATION_START
        episode = solved_episode(
            self._physics,
            seed=self._seed,
            index=index,
            hz=self._hz,
            image_size=self._image_size,
            embodiments=self._embodiments,
        )
        arrays: dict[str, Any] = {"rgb_static": episode.images, "commanded_actions": episode.actions}
        label = Label(episode.task, episode.instruction, 0, len(episode.images) - 1)
        return RecordedDemonstration(
            "other_robots", (label,), arrays, failed=(episode.task,) * episode.num_failed_attempts, hz=episode.hz
        )

    def close(self) -> None:
        """Free the simulator."""
        self._physics.close()


class Rerenderings:
    """Labeled windows of a CALVIN data set, each rendered again in several sampled appearances.

    Args:
        config: of the recording.

    Raises:
        InputError: no such data set or robots, fewer windows than `config` asks for, or states of an unknown scene.
    """

    def __init__(self, config: RecordConfig) -> None:
        self._seed = config.seed
        self._variants = number(Count, config.env["variants"], "env.variants")
        self._image_size = number(Count, config.env["image_size"], "env.image_size")
        self._embodiments = tuple(config.env["embodiments"])
        if not self._embodiments or set(self._embodiments) - {PANDA, *HOME}:
            raise InputError(
                f"env.embodiments={list(self._embodiments)}, expected one or more of {', '.join((PANDA, *HOME))}"
            )
        if config.env["data"] is None:
            raise InputError("env.data is not given; it is a CALVIN data set, published or of vw2-record")
        self._splits = {split: CalvinDataset(config.env["data"], split) for split, count in config.counts() if count}
        for split, count in config.counts():
            windows = self._splits[split].trajectories[:count] if count else []
            if len(windows) < count:
                raise InputError(
                    f"{config.env['data']} has {len(windows)} labeled {split} windows, not {count}; lower episodes or "
                    "validation_episodes"
                )
            if unknown := sorted({window.scene for window in windows} - set(SCENES)):
                raise InputError(
                    f"{config.env['data']}: scene {', '.join(unknown)} of {split} windows, expected A to D"
                )

    def make(self, split: int, number: int) -> RecordedDemonstration:
        """Return all videos of window `number` of split number `split`, one after the other, with a label each."""
        dataset = self._splits[SPLITS[split]]
        window = dataset.trajectories[number]
        actions, robot_obs, scene_obs = dataset.read_actions_and(window, "robot_obs", "scene_obs")
        videos = []
        labels = []
        for variant in range(self._variants):
            rng = np.random.default_rng([self._seed, split, number, variant])
            appearance = sample_appearance(rng, embodiments=self._embodiments)
            videos.append(render_video(window.scene, appearance, robot_obs, scene_obs, image_size=self._image_size))
            start = variant * window.length
            labels.append(Label(window.task, window.instruction, start, start + window.length - 1))
        arrays: dict[str, Any] = {
            "rgb_static": np.concatenate(videos),
            "commanded_actions": np.tile(actions, (self._variants, 1)),
        }
        return RecordedDemonstration("rerendered", tuple(labels), arrays)

    def close(self) -> None:
        """Do nothing: each video frees its simulator."""


class Source(Protocol):
    """What makes the recordings of a program."""

    def make(self, split: int, number: int) -> RecordedDemonstration:
        """Return recording `number` of split number `split`, a function of these two and the configuration."""

    def close(self) -> None:
        """Free the simulators."""


def open_source(config: RecordConfig) -> Source:
    """Return the source that `config.env` names."""
    if config.world == "metaworld":
        return MetaWorldDemonstrations(config)
    if config.world == "craft":
        return CraftDemonstrations(config)
    if config.world == "calvin":
        return CalvinDemonstrations(config)
    return OtherRobotsDemonstrations(config) if config.world == "other_robots" else Rerenderings(config)
