"""A world on a line: "go" happens once three steps went right, "rest" at once; and a policy that goes right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vw2_robot.errors import InputError
from vw2_robot.rollouts.live.control import Library, OpenedPolicy, Stage
from vw2_robot.rollouts.live.playback import Playback, PlayedEpisode
from vw2_robot.rollouts.live.session import LiveEpisode

GOAL = 3


class LineWorld:
    max_steps, control_hz = 6, 30.0
    shapes, light_parts, light_colors = (), {}, {}
    blocks: Mapping[str, str] = {"block_red": "/block"}

    def __init__(self, scene: str = "D") -> None:
        self.scene, self.place, self.begun_at, self.calls = scene, 0, 0, []
        self.benchmark: Any = None

    def begin(self) -> None:
        self.begun_at = self.place

    def step(self, action: np.ndarray) -> frozenset[str]:
        self.place += int(np.sign(action[0]))
        return frozenset({"rest"} | ({"go"} if self.place - self.begun_at >= GOAL else set()))

    def hold(self) -> None:
        self.calls.append("hold")

    def image(self) -> np.ndarray:
        self.calls.append("image")
        return np.full((4, 4, 3), self.place % 256, np.uint8)

    def state(self) -> dict[str, np.ndarray]:
        return {"robot_obs": np.full(15, float(self.place)), "scene_obs": np.zeros(24)}

    def show(self, robot_obs: np.ndarray, scene_obs: np.ndarray) -> None:
        self.place = int(robot_obs[0])

    def parts(self) -> dict[str, Any]:
        return {"/block": ((float(self.place), 0.0, 0.0), (1.0, 0.0, 0.0, 0.0))}

    def lights(self) -> dict[str, bool]:
        return {}

    def drag(self, block: str, target: tuple[float, float, float]) -> None:
        self.calls.append(("drag", block, target))

    def release(self) -> None:
        self.calls.append("release")

    def restart(self, task: str | None, seed: int) -> None:
        self.place = seed

    def can_begin(self, task: str) -> bool:
        return self.place < 100

    def task_of(self, instruction: str) -> str | None:
        return {"please go": "go"}.get(instruction)

    def nearest_wording(self, instruction: str) -> str | None:
        return "please go" if "go" in instruction.split() else None

    def instruction(self, task: str) -> str:
        return f"please {task}"

    def write_recording(self, out: Path, number: int, **_: Any) -> None:
        self.calls.append(("recording", number))

    def close(self) -> None:
        self.calls.append("close")


class GoRight:
    """Two actions per call; `tokens` are its latent tokens, `direction` -1 goes left."""

    def __init__(self, direction: float = 1.0, tokens: np.ndarray | None = None) -> None:
        self.metadata = {"n_action_steps": 2, "chunk_size": 4}
        self.direction, self.tokens, self.resets, self.seen = direction, tokens, [], []

    def reset(self, prompt: str | None = None, seed: int | None = None) -> None:
        self.resets.append((prompt, seed))

    def infer(self, obs: Any) -> Any:
        self.seen.append(int(obs["images"]["static"][0, 0, 0]))
        actions = np.tile([self.direction, 0, 0, 0, 0, 0, 1], (4, 1)).astype(np.float32)
        return {"actions": actions} | ({} if self.tokens is None else {"latent_tokens": self.tokens})


class CountingDecoder:
    """Expects the place to grow by one a frame; a frame is every second control step."""

    offsets: Sequence[int] = (0, 2, 4)

    def frames(self, image: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        return np.stack([image[:2, :2] + i for i in range(3)])

    def reduced(self, image: np.ndarray) -> np.ndarray:
        return image[:2, :2]


class LineLibrary:
    def __len__(self) -> int:
        return 1

    def description(self, number: int) -> str:
        return "the only one"

    def scene(self, number: int) -> str:
        return "A"

    def open(self, number: int, world: Any) -> Stage:
        images = [np.full((4, 4, 3), place, np.uint8) for place in (7, 8, 9)]
        states = (np.array([[7.0] * 15, [8.0] * 15, [9.0] * 15]), np.zeros((3, 24)))
        return Playback(world, PlayedEpisode("please play", "go", images, states))


class LineOpener:
    def __init__(self) -> None:
        self.library: Library | None = LineLibrary()
        self.worlds: list[LineWorld] = []
        self.saved: list[LiveEpisode] = []

    def world(self, scene: str) -> Any:
        self.worlds.append(LineWorld(scene))
        return self.worlds[-1]

    def policy(self, name: str, world: Any) -> OpenedPolicy:
        if name not in ("right", "left"):
            raise InputError(f"there is no policy {name}")
        return OpenedPolicy(GoRight(1.0 if name == "right" else -1.0), note="a line needs no tokens")

    def save(self, episode: LiveEpisode, world: Any) -> Sequence[Path]:
        self.saved.append(episode)
        return [Path("episode.mp4")]
