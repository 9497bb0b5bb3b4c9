"""A session: one policy and an instruction in one world, as a state machine that advances by single control steps.

    ready -> running <-> paused -> solved or unsolved

It knows neither page nor thread nor simulator, only the `LiveWorld` protocol. Each control step is kept, so that the
episode can be saved.
"""

# K expected frames · M latent steps · N codes per step
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vw2_robot.commands import commands, resolve_n_action_steps
from vw2_robot.contracts import Policy
from vw2_robot.image_metrics import psnr

Mode = Literal["ready", "running", "paused", "solved", "unsolved", "ended"]
"""no instruction yet; at work; the outcome of the last instruction; the end of a recording"""
Vector = tuple[float, float, float]
Image = NDArray[np.uint8]


PartPose = tuple[Vector, tuple[float, float, float, float]]
"""where a part of the world is: position, and quaternion with w first"""


class LiveWorld(Protocol):
    """What a session needs of a simulator with a task oracle."""

    scene: str
    max_steps: int  # per subtask

    def begin(self) -> None:
        """Set the moment from which the oracle counts."""

    def step(self, action: NDArray[np.floating[Any]]) -> frozenset[str]:
        """Execute one control step; return the tasks that happened since `begin`."""

    def hold(self) -> None:
        """Execute one control step in which the arm stays where it is."""

    def image(self) -> Image:
        """Return the static camera's image, rendered now."""

    def state(self) -> dict[str, NDArray[np.float64]]:
        """Return `robot_obs` [15] and `scene_obs` [24]."""

    def parts(self) -> dict[str, PartPose]:
        """Return the pose of each part that is shown, by its name."""

    def lights(self) -> dict[str, bool]:
        """Return which lights are on."""

    def drag(self, block: str, target: Vector) -> None:
        """Pull a block towards a point, with the force of a finger, until `release`."""

    def release(self) -> None:
        """Let go of the block that is dragged."""


class FrameDecoder(Protocol):
    """Draws what a policy expects."""

    offsets: Sequence[int]
    """control step of each of the K frames, 0 first"""

    def frames(self, image: Image, tokens: NDArray[np.int64]) -> Image:
        """Return uint8 [K, h, w, 3]: `image` reduced, and what the codes [M, N] make of it."""

    def reduced(self, image: Image) -> Image:
        """Return an image in the size of the frames."""


class Subtask(NamedTuple):
    """An instruction; its task, where it belongs to one; the seed that the policy is reset with."""

    instruction: str
    """as it was typed, which is what the policy gets"""
    task: str | None
    seed: int
    taken_as: str = ""
    """the known wording that gave the task, where the instruction is none itself"""


class LiveStep(NamedTuple):
    """One control step: the state and its image, and the action that was then executed."""

    image: Image
    state: Mapping[str, NDArray[np.float64]]
    action: NDArray[np.float64]


@dataclass(frozen=True)
class LiveEpisode:
    """The control steps of one instruction."""

    scene: str
    subtask: Subtask
    policy: str
    solved: bool
    dragged: bool
    """whether a block was dragged meanwhile"""
    env_steps: tuple[LiveStep, ...]
    last: LiveStep
    """the state after the last control step, its action zero"""


@dataclass
class Expected:
    """What the policy expected at one of its calls, beside what then happened."""

    env_step: int
    frames: Image
    """uint8 [K, h, w, 3]"""
    offsets: Sequence[int]
    happened: list[Image] = field(default_factory=list)
    """of the first frames, as far as time has come"""

    @property
    def is_complete(self) -> bool:
        """Whether all of it can be compared."""
        return len(self.happened) == len(self.frames)

    def decibel(self) -> tuple[float, float] | None:
        """Return the mean PSNR of the expected frames, and of the first image held still; None before the end."""
        if not self.is_complete or len(self.frames) < 2:
            return None
        happened = np.stack(self.happened[1:])
        still = np.broadcast_to(self.happened[0], happened.shape)
        return float(psnr(self.frames[1:], happened).mean()), float(psnr(still, happened).mean())


@dataclass(frozen=True)
class LiveView:
    """All that the page shows of one moment."""

    scene: str
    policy: str
    """name of the policy that acts; empty where a recording is shown"""
    mode: Mode
    instruction: str
    task: str | None
    position: tuple[int, int]
    """number of the instruction, from 1, and how many there are"""
    env_step: int
    max_steps: int
    happened: tuple[str, ...]
    """tasks that the oracle found since the instruction"""
    image: Image
    parts: Mapping[str, PartPose]
    lights: Mapping[str, bool]
    taken_as: str = ""
    """the known wording that gave the task, where the instruction is none itself"""
    tokens: NDArray[np.int64] | None = None
    expected: Expected | None = None


class Session:
    """A policy in a world. `policy_name` is stored with what is saved."""

    def __init__(
        self, world: LiveWorld, policy: Policy, *, policy_name: str = "", decoder: FrameDecoder | None = None
    ) -> None:
        self.world = world
        self.mode: Mode = "ready"
        self.env_step = 0
        self._policy = policy
        self._policy_name = policy_name
        self._decoder = decoder
        self._n_action_steps = resolve_n_action_steps(policy.metadata, None)
        self._subtasks: tuple[Subtask, ...] = ()
        self._position = 0
        self._happened: frozenset[str] = frozenset()
        self._chunk = np.empty((0, 0))
        self._tokens: NDArray[np.int64] | None = None
        self._expected: Expected | None = None
        self._image: Image | None = None
        self._steps: list[LiveStep] = []
        self._is_dragging = False
        self._was_dragged = False

    @property
    def subtask(self) -> Subtask | None:
        """The present instruction."""
        return self._subtasks[self._position] if self._subtasks else None

    def run(self, *subtasks: Subtask) -> None:
        """Begin the first of these instructions in the world as it is; each begins when the one before is solved."""
        self._subtasks = subtasks
        self._begin(0)
        self.mode = "running"

    def pause(self) -> None:
        """Stop after the present control step."""
        if self.mode == "running":
            self.mode = "paused"

    def resume(self) -> None:
        """Continue where it was paused."""
        if self.mode == "paused":
            self.mode = "running"

    def single_step(self) -> None:
        """Execute one control step and pause."""
        if self.mode in ("running", "paused"):
            self.mode = "paused"
            self._control_step()

    def drag(self, block: str, target: Vector) -> None:
        """Pull a block towards a point; time goes on meanwhile, with the arm at rest where nothing runs."""
        self.world.drag(block, target)
        self._is_dragging = self._was_dragged = True

    def release(self) -> None:
        """Let go of the block."""
        self.world.release()
        self._is_dragging = False

    def advance(self) -> bool:
        """Execute one control step if there is something to do; return whether anything may have moved."""
        if self.mode == "running":
            self._control_step()
            return True
        if self._is_dragging:
            self.world.hold()
            self._image = None
        return self._is_dragging

    def view(self) -> LiveView:
        """Return what is to be shown now."""
        subtask = self.subtask
        return LiveView(
            scene=self.world.scene,
            policy=self._policy_name,
            mode=self.mode,
            instruction=subtask.instruction if subtask else "",
            task=subtask.task if subtask else None,
            position=(self._position + 1, len(self._subtasks)),
            env_step=self.env_step,
            max_steps=self.world.max_steps,
            happened=tuple(sorted(self._happened)),
            image=self._present_image(),
            parts=self.world.parts(),
            lights=self.world.lights(),
            taken_as=subtask.taken_as if subtask else "",
            tokens=self._tokens,
            expected=self._expected,
        )

    def episode(self) -> LiveEpisode | None:
        """Return the control steps of the present instruction; None before the first of them."""
        if self.subtask is None or not self._steps:
            return None
        return LiveEpisode(
            scene=self.world.scene,
            subtask=self.subtask,
            policy=self._policy_name,
            solved=self.mode == "solved",
            dragged=self._was_dragged,
            env_steps=tuple(self._steps),
            last=LiveStep(self._present_image(), self.world.state(), np.zeros(7)),
        )

    def _begin(self, position: int) -> None:
        self._position = position
        subtask = self._subtasks[position]
        self.env_step = 0
        self._happened = frozenset()
        self._tokens = self._expected = None
        self._steps = []
        self._was_dragged = self._is_dragging
        self.world.begin()
        self._policy.reset(subtask.instruction, seed=subtask.seed)

    def _control_step(self) -> None:
        subtask = self._subtasks[self._position]
        image = self._present_image()
        in_chunk = self.env_step % self._n_action_steps
        # The same order as in an evaluation: the policy acts on the image of this moment.
        if in_chunk == 0:
            output = self._policy.infer({"images": {"static": image}, "prompt": subtask.instruction})
            self._chunk = commands(output["actions"], at_least=self._n_action_steps)
            self._tokens = output.get("latent_tokens")
            self._expect(image)
        action = self._chunk[in_chunk]
        self._steps.append(LiveStep(image, self.world.state(), action))
        self._happened = self.world.step(action)
        self._image = None
        self.env_step += 1
        self._compare()
        if subtask.task is not None and subtask.task in self._happened:
            if self._position + 1 < len(self._subtasks):
                self._begin(self._position + 1)
            else:
                self.mode = "solved"
        elif self.env_step >= self.world.max_steps:
            self.mode = "unsolved"

    def _expect(self, image: Image) -> None:
        """Decode what the policy expects, unless an earlier expectation is still open."""
        # One window at a time: every frame that is shown can then be compared with what happened.
        if self._decoder is None or self._tokens is None or not (self._expected is None or self._expected.is_complete):
            return
        frames = self._decoder.frames(image, self._tokens)
        self._expected = Expected(self.env_step, frames, self._decoder.offsets, [self._decoder.reduced(image)])

    def _compare(self) -> None:
        """Add the present image where it is the next that was expected."""
        expected = self._expected
        if self._decoder is None or expected is None or expected.is_complete:
            return
        if expected.env_step + expected.offsets[len(expected.happened)] == self.env_step:
            expected.happened.append(self._decoder.reduced(self._present_image()))

    def _present_image(self) -> Image:
        # Rendered once for each state, whoever asks first.
        if self._image is None:
            self._image = self.world.image()
        return self._image
