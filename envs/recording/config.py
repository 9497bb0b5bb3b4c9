"""The configuration of a recording: the root of `vw2-record`, its checks, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vw2_robot.data.sources.calvin import CalvinSplit

from ..craft.patterns import PATTERNS
from ..experts.start_states import BETWEEN_STEPS, FAILED_ATTEMPT_STEPS, PAUSE_STEPS, RANDOM_MOTION_STEPS
from ..experts.ways import Ways
from ..meta_world import META_WORLD_ACTIONS, recorded_robot
from ..option_validation import check_choice
from .demonstrations import RecordedAppearance, expand_tasks
from .environment_description import environment_yaml
from .formats import CALVIN_RULE, MAX_FRAME, CalvinOutput, Format, Output, frames_per_recording, parts_output

SPLITS: tuple[CalvinSplit, ...] = ("training", "validation")
CALVIN_TARGET = "vw2_robot.envs.benchmark.CalvinBenchmark"
OTHER_ROBOTS_TARGET = "vw2_robot.envs.other_robots.environment.solved_episodes"
RERENDERED_TARGET = "vw2_robot.envs.rerendering.rendering.render_video"
CALVIN_DEFAULTS = {"scene": "D", "assets": "builtin", "renderer": "layered"}
CRAFT_TARGET = "vw2_robot.envs.craft.building.build"
METAWORLD_TARGET = "vw2_robot.envs.meta_world.benchmark.MetaWorldBenchmark"
WORLDS = {
    CALVIN_TARGET: "calvin",
    OTHER_ROBOTS_TARGET: "other_robots",
    RERENDERED_TARGET: "rerendered",
    METAWORLD_TARGET: "metaworld",
    CRAFT_TARGET: "craft",
}


class RecordingJob(NamedTuple):
    """One recording to make."""

    split: CalvinSplit
    number: int

    def __str__(self) -> str:
        """Return the name of the recording in messages."""
        return f"recording {self.number} of {self.split}"


@dataclass(frozen=True)
class RecordConfig:
    """The root of `vw2-record`."""

    out: str
    """folder of the data set; it appears when it is complete"""
    env: dict[str, Any]
    """the environment: with env=calvin `scene` (D, or several, as ABC), `assets` and `renderer` are used, with
    env=other_robots `hz`, `image_size` and `embodiments`, with env=rerendered `data`, `variants`, `image_size` and
    `embodiments`, with env=metaworld `tasks`, `camera` and `image_size`, with env=craft as with env=other_robots
    """
    episodes: int = 150
    """recordings in the training split; with env=rerendered labeled windows of `env.data`, the first ones"""
    validation_episodes: int = 0
    """recordings of the validation split, with env=craft in test worlds; null: a tenth of `episodes`"""
    format: Format = "calvin"
    """of the data set: calvin (a folder like the published ones), rlds (TFDS) or video (mp4 with captions)"""
    tasks: str | list[str] = "all"
    """tasks or groups of tasks: all, basic, furniture, push, lift (from the table), lift_anywhere; what is named twice
    is demonstrated twice as often; other robots have tasks of their own, Meta-World those of `env.tasks`, craft its
    patterns: tower, gate, pyramid"""
    seed: int = 0
    """with split and number, all that a recording depends on"""
    workers: int = 1
    """processes; does not change the result"""
    max_steps: int = 128
    """control steps; longer attempts count as failures"""
    tail_steps: int = 4
    """control steps kept after success"""
    play: int = 1
    """tasks in a row, without a reset, in one recording"""
    max_window: int | None = None
    """longest labeled window in time steps, 64 in the published data sets; null: the whole demonstration"""
    perturbations: float = 0.0
    """probability of each step to be the first of a push against the arm; `commanded_actions` stay the expert's"""
    failed_attempts: float = 0.0
    """share of tasks that begin after a failed attempt, in which the expert acted on wrong object positions"""
    ways: Ways = "single"
    """several: every task is done in a way chosen at random, by another route and at another speed, and the labels
    state it; single: the expert's usual way (docs/simulator.md)
    """
    near_starts: float = 0.0
    """share of tasks that begin near their goal, where gripper or wrist are next to move, or at a fork of two routes"""
    random_starts: float = 0.0
    """share of tasks that begin after a random motion of the arm, which ends in any pose and is not labeled"""
    policy: str | None = None
    """checkpoint or run folder of a fine-tuned policy, or builtin:NAME, that begins a share of the tasks; where it has
    not solved one, the expert takes over and its part alone is labeled (docs/simulator.md); null: none
    """
    policy_share: float = 0.5
    """share of tasks that `policy` begins"""
    policy_steps: tuple[int, int] = (8, 96)
    """fewest and most control steps of `policy` before the expert takes over"""
    appearance: RecordedAppearance = "scene"
    """sampled: textures, colors and light are random for each recording, blocks stay red, blue and pink; with the
    built-in assets, without wrist camera and depth
    """
    camera_sway: int = 0
    """pixels, of 200, by which the static camera's image sways at most, differently in each recording; 0: it stands"""
    wrist_camera: bool = False
    """also record the wrist camera"""
    depth: bool = False
    """depth in meters of every camera; only in the CALVIN format"""
    compress_level: int = 1
    """zlib level of CALVIN frames: 0 stores, 9 is small and slow"""

    def __post_init__(self) -> None:
        """Reject what cannot work."""
        # Smallest value of each; 0 for those that are not listed.
        least = {"episodes": 1, "seed": 0, "workers": 1, "max_steps": 1, "play": 1, "max_window": 1}
        for name in (*least, "validation_episodes", "tail_steps", "camera_sway"):
            value = getattr(self, name)
            low = least.get(name, 0)
            if value is not None and value < low:
                raise ValueError(f"{name}={value}, expected at least {low}")
        # Refuse what does not fit before hours of recording.
        most = MAX_FRAME // self.spacing
        if self.format == "calvin" and max(self.episodes, self.validation_episodes) > most:
            raise ValueError(
                f"episodes={self.episodes}, validation_episodes={self.validation_episodes}: the seven-digit frame"
                f" numbers of the CALVIN format have room for {most} recordings of {self.spacing}; use several folders"
            )
        for name in ("perturbations", "failed_attempts", "near_starts", "random_starts"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}, expected a probability from 0 to below 1")
        fewest, most = self.policy_steps
        if not 0 < self.policy_share <= 1 or not 1 <= fewest <= most:
            raise ValueError(
                f"policy_share={self.policy_share}, policy_steps=[{fewest}, {most}], expected a share above 0, up to 1,"
                " and the fewest and the most steps, at least 1"
            )
        if self.policy is None and (self.policy_share, self.policy_steps) != (0.5, (8, 96)):
            raise ValueError("policy_share and policy_steps belong to a policy; give policy=, or leave them out")
        if not 0 <= self.compress_level <= 9:
            raise ValueError(f"compress_level={self.compress_level}, expected 0 to 9")
        if self.env.get("_target_") not in WORLDS:
            raise ValueError(
                f"env has the target {self.env.get('_target_')!r}, which records no demonstrations; try env=calvin"
            )
        if self.world in ("other_robots", "rerendered") and self.format == "calvin":
            raise ValueError(f"env={self.world} does not fit the CALVIN format; choose format=rlds or format=video")
        if self.world == "craft" and self.format != "video":
            raise ValueError("env=craft records video without actions; choose format=video")
        if self.depth and self.format != "calvin":
            raise ValueError(f"format={self.format} holds no depth; leave out depth=true or choose format=calvin")
        if self.world == "metaworld" and (self.wrist_camera or self.depth):
            raise ValueError("env=metaworld records one camera, env.camera, without depth")
        if self.world != "calvin" and (
            (self.play, self.max_window, self.failed_attempts) != (1, None, 0)
            or (self.perturbations and self.world != "metaworld")
            or (self.ways, self.near_starts, self.random_starts) != ("single", 0, 0)
            or (self.appearance, self.camera_sway, self.policy) != ("scene", 0, None)
        ):
            raise ValueError(
                f"env={self.world} has no play, max_window{'' if self.world == 'metaworld' else ', perturbations'},"
                " failed_attempts, ways, near_starts, random_starts, appearance, camera_sway or policy; leave them out"
            )
        if self.camera_sway and self.depth:
            raise ValueError(f"camera_sway={self.camera_sway} moves images and no depth; leave out depth=true")
        if self.appearance == "sampled":
            self._check_sampled_appearance()

    def _check_sampled_appearance(self) -> None:
        if self.wrist_camera or self.depth:
            raise ValueError("appearance=sampled renders the static camera alone; leave out wrist_camera and depth")
        world = self.calvin()
        if (world["assets"], world["renderer"]) != ("builtin", "layered"):
            raise ValueError(
                f"appearance=sampled needs env.assets=builtin and env.renderer=layered, found {world['assets']} and"
                f" {world['renderer']}"
            )

    @property
    def world(self) -> str:
        """What is recorded, "calvin", "other_robots", "rerendered", "metaworld" or "craft"."""
        return WORLDS[self.env["_target_"]]

    @property
    def spacing(self) -> int:
        """Frame numbers reserved for each recording in the CALVIN format."""
        pause = PAUSE_STEPS[1] - 1  # longest pause, between two tasks
        before = RANDOM_MOTION_STEPS[1] if self.random_starts else 0
        if self.policy is not None:  # what may come before a window; without a policy the numbers stay as they were
            before += self.policy_steps[1]
            before += FAILED_ATTEMPT_STEPS[1] if self.failed_attempts else 0
            before += BETWEEN_STEPS if self.near_starts else 0
        return frames_per_recording(self.play * (before + self.max_steps + self.tail_steps + pause) - pause)

    def open_output(self) -> Output:
        """Return the output that recordings are written to."""
        if self.world == "metaworld":
            return self._open_metaworld_output()
        if self.format != "calvin":
            return parts_output(self.format, Path(self.out), world=self.world, actions=CALVIN_RULE)
        cameras = ("static", "gripper") if self.wrist_camera else ("static",)
        return CalvinOutput(
            Path(self.out),
            compress_level=self.compress_level,
            spacing=self.spacing,
            environment=environment_yaml(
                cameras=cameras, appearance=self.appearance, camera_sway=self.camera_sway, **self.calvin()
            ),
        )

    def _open_metaworld_output(self) -> Output:
        if self.format != "calvin":
            return parts_output(self.format, Path(self.out), world=self.world, actions=META_WORLD_ACTIONS.units)
        return CalvinOutput(
            Path(self.out),
            compress_level=self.compress_level,
            spacing=self.spacing,
            robot=recorded_robot(self.env["camera"]),
            instructions=self.env["tasks"],
        )

    def calvin(self) -> dict[str, str]:
        """Return scene or scenes, assets and renderer of a CALVIN recording."""
        return {key: str(self.env.get(key, value)) for key, value in CALVIN_DEFAULTS.items()}

    def scene_of(self, split: CalvinSplit, number: int) -> str:
        """Return the scene of a recording: with `env.scene=ABC` the first third of a split is in A, and so on."""
        # Contiguous blocks of equal size, as the scenes of the published data sets are.
        scenes = self.calvin()["scene"]
        count = dict(self.counts())[split]
        return scenes[number * len(scenes) // count]

    def scenes_left_out(self) -> dict[CalvinSplit, list[str]]:
        """Return the scenes without a recording, for each split with fewer recordings than scenes."""
        if self.world != "calvin":
            return {}
        found: dict[CalvinSplit, list[str]] = {}
        for split, count in self.counts():
            recorded = {self.scene_of(split, number) for number in range(count)}
            if missing := sorted(set(self.calvin()["scene"]) - recorded) if count else []:
                found[split] = missing
        return found

    def task_names(self) -> tuple[str, ...]:
        """Return the tasks to demonstrate, groups expanded.

        Raises:
            InputError: an unknown task.
        """
        if self.world in ("metaworld", "craft"):
            known = tuple(self.env["tasks"]) if self.world == "metaworld" else tuple(PATTERNS)
            names = [self.tasks] if isinstance(self.tasks, str) else self.tasks
            return known if names == ["all"] else tuple(check_choice("task", name, known) for name in names)
        return expand_tasks((self.tasks,) if isinstance(self.tasks, str) else self.tasks)

    def jobs(self) -> list[RecordingJob]:
        """Return every recording to make."""
        return [RecordingJob(split, number) for split, count in self.counts() for number in range(count)]

    def counts(self) -> tuple[tuple[CalvinSplit, int], ...]:
        """Return the number of recordings of each split."""
        return ("training", self.episodes), ("validation", self.validation_episodes)
