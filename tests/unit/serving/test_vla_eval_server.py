"""The real vla-eval 0.8: its server, its connection, what its CALVIN makes of an action, and the page about it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

anyio = pytest.importorskip("anyio", reason="vla-eval is not installed (extra vla-eval)")
pytest.importorskip("vla_eval", reason="vla-eval is not installed (extra vla-eval)")
# vla-eval's server leaves streams of anyio to the garbage collector when it is canceled.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

from vla_eval.api import serve_background  # noqa: E402
from vla_eval.benchmarks.calvin.benchmark import CALVINBenchmark  # noqa: E402
from vla_eval.connection import Connection  # noqa: E402
from vla_eval.specs import check_specs  # noqa: E402

from vw2_robot.agent import VW2Agent  # noqa: E402
from vw2_robot.errors import InputError  # noqa: E402
from vw2_robot.serving.vla_eval_server import Vw2ModelServer  # noqa: E402


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Collect the open streams in the test that left them, so that no other one is blamed."""
    yield
    gc.collect()


from .moving_policy import MovingPolicy  # noqa: E402
from .pages import examples  # noqa: E402


def observation(shade: int, prompt: str = "open it", camera: str = "rgb_static", **more: Any) -> dict[str, Any]:
    images = {camera: np.full((20, 20, 3), shade, np.uint8), "rgb_gripper": np.zeros((8, 8, 3), np.uint8)}
    return {"images": images, "task_description": prompt, **more}


@contextmanager
def served(policy: Any, **options: Any) -> Iterator[str]:
    with serve_background(Vw2ModelServer(policy, **options)) as handle:
        yield handle.url


def drive(url: str, *asked: dict[str, Any]) -> list[np.ndarray]:
    """The actions of one episode."""

    async def episode() -> list[np.ndarray]:
        async with Connection(url) as connection:
            await connection.start_episode({"task": {"name": "seq_0000"}})
            actions = [(await connection.act(one))["actions"] for one in asked]
            await connection.end_episode({"success": True})
        return actions

    return anyio.run(episode)


def test_an_episode_gets_its_chunks_in_meters_and_radians() -> None:
    policy = MovingPolicy()
    with served(policy) as url:
        actions = drive(url, *(observation(shade) for shade in (255, 0, 51)))
    # Two of four actions are executed, so the second image is not read.
    expected = [[1, 0.07, 0.01, 0.1, 0.2, 0.0, 1], [1, 0.07, 0.01, 0.1, 0.2, 0.1, 1], [0.2, 0.07, 0.02, 0.1, 0.2, 0, 1]]
    np.testing.assert_allclose(actions, np.array(expected) * ([0.02] * 3 + [0.05] * 3 + [1]), rtol=1e-6)
    assert policy.batches == [1, 1]


def test_the_next_subtask_drops_what_is_left_of_the_chunk_and_begins_anew() -> None:
    with served(MovingPolicy(is_stateless=False)) as url:
        restart = observation(51, "close it", episode_restart=True)
        actions = np.array(drive(url, observation(255), observation(255), observation(255), restart))
    # calls count from 1 again, and the gripper closes
    np.testing.assert_allclose(actions[:, 2] / 0.02 * 100, [1, 1, 2, 1], rtol=1e-5)
    np.testing.assert_allclose(actions[3, [0, 6]], [0.2 * 0.02, -1], rtol=1e-6)


@pytest.mark.parametrize("is_stateless", [True, False])
def test_several_clients_share_a_batch_and_keep_their_episodes(is_stateless: bool) -> None:
    policy = MovingPolicy(is_stateless=is_stateless)
    answers: dict[int, list[np.ndarray]] = {}

    async def client(url: str, shade: int) -> None:
        async with Connection(url) as connection:
            await connection.start_episode({})
            answers[shade] = [(await connection.act(observation(shade)))["actions"] for _ in range(4)]

    async def all_clients(url: str) -> None:
        async with anyio.create_task_group() as group:
            for shade in (0, 51, 102, 255):
                group.start_soon(client, url, shade)

    with served(policy, max_batch_size=4, max_wait_time=0.5, n_action_steps=1) as url:
        anyio.run(all_clients, url)
    for shade, actions in answers.items():
        np.testing.assert_allclose(np.array(actions)[:, 0], 0.02 * shade / 255, rtol=1e-6)
        if not is_stateless:
            np.testing.assert_allclose(np.array(actions)[:, 2] / 0.02 * 100, [1, 2, 3, 4], rtol=1e-5)
    assert sum(policy.batches) == 16
    assert (max(policy.batches) > 1) == is_stateless


def test_a_wrong_observation_is_an_error_for_its_client_alone_and_the_session_stays() -> None:
    wrong = {
        "there is no image rgb_static; found primary, rgb_gripper": observation(0, camera="primary"),
        r"found float64 \[20, 20, 3\]": observation(0) | {"images": {"rgb_static": np.zeros((20, 20, 3))}},
        '"task_description" must be the instruction': observation(0, ""),
    }

    async def episode(url: str) -> None:
        async with Connection(url) as connection:
            with pytest.raises(RuntimeError, match="before the start of an episode"):
                await connection.act(observation(0))
            await connection.start_episode({})
            for message, one in wrong.items():
                with pytest.raises(RuntimeError, match=message):
                    await connection.act(one)
            assert (await connection.act(observation(255)))["actions"][0] == np.float32(0.02)

    with served(MovingPolicy()) as url:
        anyio.run(episode, url)


def test_its_calvin_executes_what_the_simulator_would() -> None:
    server, benchmark = Vw2ModelServer(MovingPolicy()), CALVINBenchmark()
    specs = (server.get_action_spec(), benchmark.get_action_spec())
    assert check_specs(*specs, server.get_observation_spec(), benchmark.get_observation_spec()) == []
    benchmark._last_act = np.array([0.1, 0.2, 0.3, 3.1, 0.0, 1.5, 1.0])
    chunk = server.predict({"images": observation(255)["images"] | {"static": np.full((2, 2, 3), 255, np.uint8)},
                            "prompt": "close it"}, None)["actions"]  # fmt: skip
    pose = benchmark._process_delta_action({"actions": chunk[1]})
    np.testing.assert_allclose(pose, [0.12, 0.2016, 0.3002, 3.105, 0.01, 1.505, -1], atol=1e-9)


def test_another_benchmark_has_its_cameras_units_rotations_and_gripper() -> None:
    options = {"cameras": {"static": "agentview"}, "position_m": 1.0, "rotation_rad": 1.0, "gripper_closes": 1}
    with served(MovingPolicy(), rotation="axis_angle", **options) as url:
        (action,) = drive(url, observation(255, camera="agentview"))
    np.testing.assert_allclose(action[[0, 6]], [1, -1])
    # 0.1 about x, then 0.2 about y: to first order the same, to second order also about z.
    np.testing.assert_allclose(action[3:6], [0.1, 0.2, -0.01], atol=5e-4)
    with pytest.raises(InputError, match="cameras names wrist; the policy has static"):
        Vw2ModelServer(MovingPolicy(), cameras={"wrist": "rgb_gripper"})
    with pytest.raises(InputError, match="n_action_steps=9"):
        Vw2ModelServer(MovingPolicy(), n_action_steps=9)
    with pytest.raises(InputError, match="gripper_closes -1 or 1; found euler_xyz and 0"):
        Vw2ModelServer(MovingPolicy(), gripper_closes=0)  # type: ignore[arg-type]


def test_the_examples_of_the_page_serve_the_policy_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    script, in_python = examples("vla_eval.md")
    made: list[Any] = []
    monkeypatch.setattr(
        "vla_eval.model_servers.serve.serve", lambda *server, **address: made.extend((*server, address))
    )
    policy = "--args.policy builtin:calvin-tiny --args.device cpu --args.cameras.static primary"
    monkeypatch.setattr("sys.argv", ["serve.py", "--address", "127.0.0.1:8000", *policy.split()])
    exec(script, {"__name__": "__main__"})
    server, address = made
    assert address == {"host": "127.0.0.1", "port": 8000}
    with serve_background(server) as handle:
        actions = drive(handle.url, *[observation(120, "open the drawer", "primary")] * (server.chunk_size + 1))
    image = {"images": {"static": np.full((20, 20, 3), 120, np.uint8)}, "prompt": "open the drawer"}
    chunk = VW2Agent.from_pretrained("builtin:calvin-tiny", device="cpu").infer(image)["actions"]
    expected = chunk[[*range(server.chunk_size), 0]] * ([0.02] * 3 + [0.05] * 3 + [1])
    np.testing.assert_allclose(actions, expected, atol=1e-6)
    exec(in_python.replace("runs/first/finetune", "builtin:calvin-tiny"), {"__name__": "example"})
