"""The simulators that `environment_steps.py` compares: the original in another process, and ours.

Both execute a `Recording`: a start state and actions, with contacts. `Original` sends requests to
`original_steps.py`; `Ours` holds one `CalvinBenchmark`. Both return CPU seconds, and hashes of states and images that
are computed outside the measured time.
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
ORIGINAL_ASSETS = REPO.parent / "shared/calvin/data"
IMAGE_EVERY = 4
TASK = "stack_block"  # the task that the oracle checks at every step

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Recording:
    """A start state and the actions from there."""

    scene: str
    robot_obs: Floats
    scene_obs: Floats
    actions: Floats
    origin: str


def read_recording(path: Path) -> Recording:
    """Return a recording of the original; without one, the actions of the scripted expert in the first chain."""
    if path.is_file():
        with np.load(path) as file:
            start = file["reset_robot_obs"], file["reset_scene_obs"]
            return Recording(str(file["scene"]), *start, file["actions"], f"recording {path.stem}")
    world = CalvinBenchmark()
    chain = world.sequences(1)[0]
    world.reset(chain)
    start = world.env.robot_obs(), world.env.scene_obs()
    expert = world.expert()
    actions = []
    for task in chain.subtasks[:3]:
        world.begin(task)
        expert.reset(world.instruction(task), seed=0)
        for _ in range(world.max_steps):
            actions.append(expert.infer({})["actions"][0].astype(np.float64))
            if world.step(actions[-1]):
                break
    world.close()
    return Recording("D", *start, np.array(actions), "scripted expert, first chain")


class Original:
    """A child process with the original simulator."""

    def __init__(self, python: str, scene: str) -> None:
        # A file, not a pipe: a full pipe would block the child process.
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as the process lives
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.original_steps"],
            cwd=REPO,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )
        self._scene = scene
        self.about = self.open(["static"])

    def open(self, cameras: list[str]) -> dict[str, Any]:
        """Build the world again, with these cameras."""
        return self.ask({"do": "open", "scene": self._scene, "cameras": cameras})

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and return its answer; {"error": ...} if the process has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            status = self._process.wait()
            self._stderr.seek(0)
            last = (self._stderr.read().splitlines() or ["no message"])[-1]
            return {"error": f"its process ended with status {status}: {last}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def reset(self, recording: Recording) -> None:
        """Go to the start state."""
        self.ask({"do": "reset", "robot_obs": recording.robot_obs.tolist(), "scene_obs": recording.scene_obs.tolist()})

    def step(self, actions: Floats) -> dict[str, Any]:
        """Execute actions; return seconds and the hashes of states and images."""
        answer = self.ask({"do": "step", "actions": actions.tolist()})
        if "error" in answer:
            raise RuntimeError(f"the original stopped: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


class Ours:
    """One world of ours at the start state; its methods are what the rows of the table run."""

    def __init__(self, recording: Recording, assets: str, renderer: str) -> None:
        self._recording = recording
        self.benchmark = CalvinBenchmark(scene=recording.scene, assets=assets, renderer=renderer)
        self.env = self.benchmark.env
        self.states: list[str] = []
        self.images: dict[int, str] = {}
        self.restart()

    def restart(self) -> None:
        """Return to the start state, as in a new process."""
        self.env.reset_physics(robot_obs=self._recording.robot_obs, scene_obs=self._recording.scene_obs)
        self.benchmark.begin(TASK)

    def evaluate(self, first: int, last: int) -> float:
        """Step with the task oracle, and render every fourth step; hashes are outside the measured time."""
        seconds = 0.0
        for number in range(first, last):
            # CPU time: other programs on the machine do not count.
            begin = time.process_time()
            self.benchmark.step(self._recording.actions[number])
            image = self.benchmark.observe()["images"]["static"] if has_image(number) else None
            seconds += time.process_time() - begin
            self.states.append(digest(self.env.robot_obs(), self.env.scene_obs()))
            if image is not None:
                self.images[number] = digest(image)
        return seconds

    def original_way(self, first: int, last: int) -> float:
        """Step and render at every step, without the oracle, as the original does; return CPU seconds."""
        begin = time.process_time()
        for number in range(first, last):
            self.env.step_physics(self._recording.actions[number])
            self.env.robot_obs()
            self.env.scene_obs()
            self.env.render_camera("static")
        return time.process_time() - begin

    def images_only(self, first: int, last: int) -> float:
        """Execute actions with an image after every fourth; return CPU seconds of the images."""
        seconds = 0.0
        for number in range(first, last):
            self.env.step_physics(self._recording.actions[number])
            if has_image(number):
                begin = time.process_time()
                self.env.render_camera("static")
                seconds += time.process_time() - begin
        return seconds

    def physics(self, first: int, last: int) -> float:
        """Execute actions without images and oracle; return CPU seconds."""
        begin = time.process_time()
        for number in range(first, last):
            self.env.step_physics(self._recording.actions[number])
        return time.process_time() - begin

    def physics_and_state(self, first: int, last: int) -> float:
        """Execute actions and read both state vectors; return CPU seconds."""
        begin = time.process_time()
        for number in range(first, last):
            self.env.step_physics(self._recording.actions[number])
            self.env.robot_obs()
            self.env.scene_obs()
        return time.process_time() - begin


def has_image(number: int) -> bool:
    """Return whether an image is rendered after this step."""
    return number % IMAGE_EVERY == IMAGE_EVERY - 1
