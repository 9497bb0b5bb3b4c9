"""Recorded episodes played again: states of a CALVIN data set in the 3-D scene, images of any other data set.

A `Playback` answers to the same commands as a `Session`, so that the page needs no other buttons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .session import Image, LiveEpisode, LiveView, LiveWorld, Mode, Vector


class ShownWorld(LiveWorld, Protocol):
    """A world that can be set to a recorded state."""

    def show(self, robot_obs: NDArray[np.float64], scene_obs: NDArray[np.float64]) -> None:
        """Go to this state."""


@dataclass(frozen=True)
class PlayedEpisode:
    """L recorded time steps."""

    instruction: str
    task: str | None
    images: Sequence[Image] | Image
    """uint8 [H, W, 3] each"""
    states: tuple[NDArray[np.float64], NDArray[np.float64]] | None
    """robot_obs [L, 15] and scene_obs [L, 24]; None: the data set has none, and the 3-D scene rests"""
    steps_per_image: int = 1
    """control steps of 1/30 s from one image to the next"""


class Playback:
    """A recorded episode in a world, which it only shows."""

    def __init__(self, world: ShownWorld, recorded: PlayedEpisode) -> None:
        self.world = world
        self.mode: Mode = "running"
        self.env_step = 0
        self._recorded = recorded
        self._shown = -1

    def pause(self) -> None:
        """Stop at the present image."""
        if self.mode == "running":
            self.mode = "paused"

    def resume(self) -> None:
        """Continue; after the end, from the beginning."""
        if self.mode == "ended":
            self.env_step = 0
        self.mode = "running"

    def single_step(self) -> None:
        """Show the next image and pause."""
        if self.mode in ("running", "paused"):
            self.mode = "paused"
            self._forward(self._recorded.steps_per_image)

    def advance(self) -> bool:
        """Let one control step pass; return whether anything may have moved."""
        if self.mode != "running":
            return False
        self._forward(1)
        return True

    def drag(self, block: str, target: Vector) -> None:
        """Do nothing: what was recorded cannot be changed."""

    def release(self) -> None:
        """Do nothing."""

    def view(self) -> LiveView:
        """Return what is to be shown now."""
        recorded = self._recorded
        index = self.env_step // recorded.steps_per_image
        if recorded.states is not None and index != self._shown:
            robot_obs, scene_obs = recorded.states
            self.world.show(robot_obs[index], scene_obs[index])
        self._shown = index
        return LiveView(
            scene=self.world.scene,
            policy="",
            mode=self.mode,
            instruction=recorded.instruction,
            task=recorded.task,
            position=(1, 1),
            env_step=self.env_step,
            max_steps=self._last_step,
            happened=(),
            image=recorded.images[index],
            parts=self.world.parts(),
            lights=self.world.lights(),
        )

    def episode(self) -> LiveEpisode | None:
        """Return None: it is saved already."""
        return None

    @property
    def _last_step(self) -> int:
        return (len(self._recorded.images) - 1) * self._recorded.steps_per_image

    def _forward(self, env_steps: int) -> None:
        self.env_step = min(self.env_step + env_steps, self._last_step)
        if self.env_step == self._last_step:
            self.mode = "ended"
