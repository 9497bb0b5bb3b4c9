"""What the page commands: the one object that its buttons reach, and that the worker advances.

`Control` holds the present session or playback and what is chosen (policy, scene, seed). It opens worlds, policies and
recordings through an `Opener`, so that it is tested with made-up ones. A command that cannot be followed leaves
everything as it was, and its reason in `notice`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vw2_robot.contracts import Benchmark, Policy
from vw2_robot.errors import InputError

from .playback import Playback, ShownWorld
from .session import FrameDecoder, Image, LiveEpisode, LiveView, Session, Subtask, Vector

Stage = Session | Playback


class ShownShape(Protocol):
    """A visual shape of a part of the world: of `kind` mesh, box, cylinder or sphere."""

    @property
    def part(self) -> str:
        """Name of the part."""

    kind: str
    file: Path | None
    """of a mesh"""
    size: tuple[float, ...]
    """scale of a mesh [3], sides of a box [3], length and radius of a cylinder, radius of a sphere"""
    position: Vector
    """in the frame of the part"""
    quaternion: tuple[float, float, float, float]
    """in the frame of the part, w first"""
    color: tuple[float, float, float, float]
    """RGBA, 0 to 1"""


class ChosenWorld(ShownWorld, Protocol):
    """A world with start states and visible shapes; `CalvinBenchmark.live_world` makes one."""

    benchmark: Benchmark
    control_hz: float
    shapes: tuple[ShownShape, ...]
    blocks: Mapping[str, str]
    """name of each block -> name of its part"""
    light_parts: Mapping[str, str]
    """name of each light -> name of its part"""
    light_colors: Mapping[tuple[str, bool], tuple[int, ...]]
    """(light, whether it is on) -> RGB, 0 to 255"""

    def restart(self, task: str | None, seed: int) -> None:
        """Go to a start state: of a task, or of the evaluation chain with this number."""

    def can_begin(self, task: str) -> bool:
        """Return whether the task can be done from the present state."""

    def task_of(self, instruction: str) -> str | None:
        """Return the task whose instruction this is; None for a free one."""

    def nearest_wording(self, instruction: str) -> str | None:
        """Return the known wording that a free instruction is nearest to; None where none is near."""

    def instruction(self, task: str) -> str:
        """Return the instruction of a task."""

    def write_recording(
        self,
        out: Path,
        number: int,
        *,
        label: tuple[str, str],
        images: Sequence[Image],
        states: Sequence[Mapping[str, NDArray[np.float64]]],
        actions: Sequence[NDArray[np.float64]],
    ) -> None:
        """Add a recording to a data set.

        Args:
            out: the data set.
            number: of the recording.
            label: task and instruction.
            images: L images of the static camera.
            states: L + 1 states, as `state` returns them.
            actions: L commanded actions.
        """

    def close(self) -> None:
        """Free the simulator."""


class OpenedPolicy(NamedTuple):
    """A policy, and what draws what it expects."""

    policy: Policy
    decoder: FrameDecoder | None = None
    note: str = ""
    """why there is no decoder"""


class Library(Protocol):
    """Recorded episodes: rows of a rollout, or a data set."""

    def __len__(self) -> int:
        """Return how many there are."""

    def description(self, number: int) -> str:
        """Return a line about an episode."""

    def scene(self, number: int) -> str:
        """Return the scene that it was recorded in."""

    def open(self, number: int, world: ChosenWorld) -> Stage:
        """Return the episode, ready to be played in a world of its scene."""


class Opener(Protocol):
    """Opens and stores what is chosen on the page."""

    @property
    def library(self) -> Library | None:
        """Recorded episodes that can be played."""

    def world(self, scene: str) -> ChosenWorld:
        """Return a new world."""

    def policy(self, name: str, world: ChosenWorld) -> OpenedPolicy:
        """Return a policy: a folder, builtin:NAME, demonstrator, ..."""

    def save(self, episode: LiveEpisode, world: ChosenWorld) -> Sequence[Path]:
        """Store an episode; return what was written."""


class Control:
    """The commands of the page. `notice` answers the last one; `world_number` changes with each new world."""

    def __init__(self, opener: Opener, *, policy: str, scene: str, seed: int) -> None:
        self.policy_name = policy
        self.seed = seed
        self.notice = ""
        self.world_number = 0
        self._opener = opener
        self.world = opener.world(scene)
        self.opened = opener.policy(policy, self.world)
        self.stage: Stage = self._new_session()
        self.world.restart(None, seed)

    def ask(self, instruction: str) -> None:
        """Give an instruction, of a task or a free one, and begin at once.

        A free one is judged by the task of the nearest known wording, where one is near. Where the task cannot be done
        from the present state, the world first goes to a start where it can.
        """
        text = " ".join(instruction.split())
        if not text:
            raise InputError("type an instruction, or press a task")
        task, taken_as = self.world.task_of(text), ""
        if task is None and (near := self.world.nearest_wording(text)) is not None:
            task, taken_as = self.world.task_of(near), near
        self._begin(Subtask(text, task, self.seed, taken_as))

    def ask_task(self, task: str) -> None:
        """Give the instruction of a task."""
        self._begin(Subtask(self.world.instruction(task), task, self.seed))

    def start(self) -> None:
        """Continue what is paused, or give the present instruction again."""
        if isinstance(self.stage, Playback) or self.stage.mode == "paused":
            self.stage.resume()
        elif self.stage.mode != "running":
            if self.stage.subtask is None:
                raise InputError("type an instruction, or press a task")
            self._begin(self.stage.subtask)

    def pause(self) -> None:
        """Stop after the present control step."""
        self.stage.pause()

    def single_step(self) -> None:
        """Execute one control step."""
        self.stage.single_step()

    def reset(self) -> None:
        """Go to the start state of the chosen seed, without an instruction."""
        self.stage = self._new_session()
        self.world.restart(None, self.seed)

    def choose_seed(self, seed: int) -> None:
        """Set which start states come next, and the seed of the policy."""
        self.seed = seed

    def choose_policy(self, name: str) -> None:
        """Load another policy; the world stays as it is."""
        self.opened = self._opener.policy(name, self.world)
        self.policy_name = name
        self.stage = self._new_session()

    def choose_scene(self, scene: str) -> None:
        """Open another scene."""
        self._open_world(scene)
        self.reset()

    def play(self, number: int) -> None:
        """Play a recorded episode, in its scene."""
        library = self._opener.library
        if library is None or not 0 <= number < len(library):
            raise InputError(f"there is no recorded episode {number}; start vw2-live with data.path=DIR")
        if library.scene(number) != self.world.scene:
            self._open_world(library.scene(number))
        self.stage = library.open(number, self.world)
        self.notice = library.description(number)

    def drag(self, block: str, target: Vector) -> None:
        """Pull a block towards a point, until `release`."""
        self.stage.drag(block, target)

    def release(self) -> None:
        """Let go of the block."""
        self.stage.release()

    def save(self) -> None:
        """Store the control steps of the present instruction."""
        episode = self.stage.episode()
        if episode is None:
            raise InputError("there is nothing to save yet: give an instruction first")
        self.notice = "saved: " + ", ".join(str(path) for path in self._opener.save(episode, self.world))

    def view(self) -> LiveView:
        """Return what is to be shown now."""
        return self.stage.view()

    def close(self) -> None:
        """Free the simulator."""
        self.world.close()

    def _begin(self, subtask: Subtask) -> None:
        if isinstance(self.stage, Playback):  # a recording leaves the world in a state of its middle
            self.reset()
        assert isinstance(self.stage, Session)
        if subtask.task is not None and not self.world.can_begin(subtask.task):
            self.stage = self._new_session()
            self.world.restart(subtask.task, self.seed)
            self.notice = (
                "The task could not be done from where the scene was, so the scene went to a start where it can."
            )
        self.stage.run(subtask)

    def _new_session(self) -> Session:
        opened = self.opened
        return Session(self.world, opened.policy, policy_name=self.policy_name, decoder=opened.decoder)

    def _open_world(self, scene: str) -> None:
        world = self._opener.world(scene)
        try:
            # Some policies belong to one world: the demonstrator reads its state.
            opened = self._opener.policy(self.policy_name, world)
        except BaseException:
            world.close()
            raise
        self.world.close()
        self.world, self.opened = world, opened
        self.world_number += 1
