"""What `environment_steps.py` compares: the original simulator in another process, our worlds, and the walk all take.

A walk is a start state and a row of actions, with contacts. `Original` speaks to `original_steps.py`; `Ours` holds one
`CalvinBenchmark`. Both give CPU seconds, and hashes of states and images which were taken outside the measured time.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.envs.benchmark import CalvinBenchmark

from .original_steps import digest

REPO = Path(__file__).resolve().parents[1]
RECORDING = REPO.parent / "shared/calvin/golden/D_stack_unstack.npz"
LOOK_EVERY = 4
TASK = "stack_block"  # what the oracle is asked at every step

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Walk:
    """Where to start and what to do."""

    scene: str
    robot_obs: Floats
    scene_obs: Floats
    actions: Floats
    origin: str


def read_walk(path: Path) -> Walk:
    """A recording of the original; where there is none, what the scripted expert does in the first chain."""
    if path.is_file():
        with np.load(path) as file:
            start = file["reset_robot_obs"], file["reset_scene_obs"]
            return Walk(str(file["scene"]), *start, file["actions"], f"recording {path.stem}")
    world = CalvinBenchmark()
    sequence = world.sequences(1)[0]
    world.reset(sequence)
    start = world.env.robot_obs(), world.env.scene_obs()
    expert, actions = world.expert(), []
    for task in sequence.subtasks[:3]:
        world.begin(task)
        expert.reset(world.instruction(task), seed=0)
        for _ in range(world.max_steps):
            actions.append(expert.infer({})["actions"][0].astype(np.float64))
            if world.step(actions[-1]):
                break
    world.close()
    return Walk("D", *start, np.array(actions), "scripted expert, first chain")


class Original:
    """The child process with the original."""

    def __init__(self, python: str, scene: str) -> None:
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as the process lives
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.original_steps"],
            cwd=REPO,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )
        self._scene = scene
        self.about = self.open(["static"])

    def open(self, cameras: list[str]) -> dict[str, Any]:
        """Build the world anew, with these cameras."""
        return self.ask({"do": "open", "scene": self._scene, "cameras": cameras})

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request, one answer; {"error": ...} also when the process is gone."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            status = self._process.wait()
            self._said.seek(0)
            last = (self._said.read().splitlines() or ["nothing said"])[-1]
            return {"error": f"its process ended with status {status}: {last}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def reset(self, walk: Walk) -> None:
        """Go to the walk's start."""
        self.ask({"do": "reset", "robot_obs": walk.robot_obs.tolist(), "scene_obs": walk.scene_obs.tolist()})

    def step(self, actions: Floats) -> dict[str, Any]:
        """Seconds, and hashes of what came out."""
        answer = self.ask({"do": "step", "actions": actions.tolist()})
        if "error" in answer:
            raise RuntimeError(f"the original stopped: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


class Ours:
    """One of our worlds, at the walk's start; the methods are what rows run."""

    def __init__(self, walk: Walk, assets: str) -> None:
        self._walk = walk
        self.benchmark = CalvinBenchmark(scene=walk.scene, assets=assets, renderer="tiny")
        self.env = self.benchmark.env
        self.states: list[str] = []
        self.images: dict[int, str] = {}
        self.restart()

    def restart(self) -> None:
        """Back to the start, as in a new process."""
        self.env.reset_physics(robot_obs=self._walk.robot_obs, scene_obs=self._walk.scene_obs)
        self.benchmark.begin(TASK)

    def evaluate(self, first: int, last: int) -> float:
        """Step and judge; look every fourth step. Hashes are taken outside the measured time."""
        seconds = 0.0
        for number in range(first, last):
            begin = time.process_time()
            self.benchmark.step(self._walk.actions[number])
            image = self.benchmark.observe()["images"]["static"] if is_look(number) else None
            seconds += time.process_time() - begin
            self.states.append(digest(self.env.robot_obs(), self.env.scene_obs()))
            if image is not None:
                self.images[number] = digest(image)
        return seconds

    def physics(self, first: int, last: int) -> float:
        """Step only."""
        begin = time.process_time()
        for number in range(first, last):
            self.env.step_physics(self._walk.actions[number])
        return time.process_time() - begin

    def physics_and_state(self, first: int, last: int) -> float:
        """Step, and read both state vectors."""
        begin = time.process_time()
        for number in range(first, last):
            self.env.step_physics(self._walk.actions[number])
            self.env.robot_obs()
            self.env.scene_obs()
        return time.process_time() - begin


def is_look(number: int) -> bool:
    """Whether an image is taken after this step."""
    return number % LOOK_EVERY == LOOK_EVERY - 1
