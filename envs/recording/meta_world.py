"""Demonstrations of Meta-World's scripted experts, confirmed by its own test of success, as recordings of `vw2-record`.

Recording number i shows task i modulo the number of tasks; everything else about it is a function of (seed, split, i).
An attempt that does not succeed within `max_steps` is dropped, and another start is sampled.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.contracts import EvalSequence
from vw2_robot.data.calvin_writer import Label
from vw2_robot.data.sources.calvin_scenes import UNKNOWN
from vw2_robot.errors import InputError

from ..gymnasium_benchmark import SEED
from ..meta_world import CONTROL_HZ, META_WORLD_ACTIONS
from ..meta_world.benchmark import MetaWorldBenchmark
from .config import RecordConfig
from .demonstrations import MAX_ATTEMPTS, RecordedDemonstration

PUSH_STEPS = (4, 16)
"""fewest and most control steps of a perturbation"""


class MetaWorldDemonstrations:
    """Demonstrations of the tasks of a recording.

    Args:
        config: of the recording.

    Raises:
        InputError: unknown tasks or camera, or nothing to render with.
    """

    def __init__(self, config: RecordConfig) -> None:
        self._config = config
        self._tasks = config.task_names()
        settings = {key: value for key, value in config.env.items() if key != "_target_"}
        self._benchmark = MetaWorldBenchmark(**settings)
        self._expert = self._benchmark.expert()

    def make(self, split: int, number: int) -> RecordedDemonstration:
        """Return recording `number` of split number `split`.

        Raises:
            InputError: the expert fails from every start.
        """
        task = self._tasks[number % len(self._tasks)]
        for attempt in range(MAX_ATTEMPTS):
            rng = np.random.default_rng([self._config.seed, split, number, attempt])
            found = self._attempt(task, rng)
            if found is not None:
                images, actions = found
                label = Label(task, self._benchmark.instruction(task), 0, len(images) - 1)
                arrays: dict[str, NDArray[Any]] = {"rgb_static": images, "commanded_actions": actions}
                return RecordedDemonstration(UNKNOWN, (label,), arrays, failed=(task,) * attempt, hz=CONTROL_HZ)
        raise InputError(
            f"the expert of {task} failed {MAX_ATTEMPTS} times within {self._config.max_steps} steps; raise max_steps, "
            "or lower perturbations"
        )

    def close(self) -> None:
        """Free the environments."""
        self._benchmark.close()

    def _attempt(self, task: str, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.float64]] | None:
        """Return images [L, H, W, 3] and the expert's actions [L, 4]; None if it does not succeed."""
        benchmark = self._benchmark
        benchmark.reset(EvalSequence(0, {SEED: int(rng.integers(2**31))}, (task,)))
        self._expert.reset()
        images: list[NDArray[np.uint8]] = []
        actions: list[NDArray[np.float32]] = []
        push_left = 0
        push = np.zeros(META_WORLD_ACTIONS.size)
        end: int | None = None
        while end is None or len(images) < end:
            if end is None and len(images) == self._config.max_steps:
                return None
            observation = benchmark.observe()
            action = self._expert.infer(observation)["actions"][0]
            images.append(observation["images"][benchmark.camera])
            actions.append(action)
            if not push_left and rng.random() < self._config.perturbations:
                push_left = int(rng.integers(*PUSH_STEPS, endpoint=True))
                push = rng.uniform(-1, 1, META_WORLD_ACTIONS.size)
            # The label stays what the expert wanted: it shows the way back.
            is_solved = benchmark.step(push if push_left else action)
            push_left = max(0, push_left - 1)
            if is_solved and end is None:
                end = len(images) + self._config.tail_steps
        return np.stack(images), np.stack(actions).astype(np.float64)
