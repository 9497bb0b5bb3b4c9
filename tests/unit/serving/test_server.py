"""The server with a policy that repeats its input: whose answer is whose, what is refused, and that it lives on."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vw2_robot.errors import InputError
from vw2_robot.serving.client import PolicyClient
from vw2_robot.serving.server import PolicyServer, ServerSettings
from vw2_robot.serving.wire import pack, unpack

from .echo_policy import EchoPolicy

pytest.importorskip("msgpack", reason="msgpack is not installed (extra serve)")
connect = pytest.importorskip("websockets.sync.client", reason="websockets is not installed (extra serve)").connect

FAST: dict[str, Any] = {"port": 0, "max_requests_per_second": float("inf")}


@pytest.fixture
def policy() -> EchoPolicy:
    return EchoPolicy()


@pytest.fixture
def server(policy: EchoPolicy) -> Iterator[PolicyServer]:
    with PolicyServer(policy, ServerSettings(**FAST, metrics=True)) as running:
        policy.batches.clear()  # the call that warms up
        yield running


def observation(value: int = 1, prompt: str = "open", **more: Any) -> dict[str, Any]:
    return {"images": {"static": np.full((4, 5, 3), value, np.uint8)}, "prompt": prompt, **more}


def http(server: PolicyServer, path: str, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_each_robot_gets_its_answers_and_those_that_wait_are_one_batch(
    server: PolicyServer, policy: EchoPolicy
) -> None:
    def drive(robot: int) -> None:
        with PolicyClient(port=server.port) as client:
            for number in range(20):
                answer = client.infer(observation(robot, "x" * (number + 1)))
                np.testing.assert_array_equal(answer["actions"][0, :2], [60 * robot, number + 1])
                assert answer["actions"].flags.writeable

    policy.free.clear()
    with ThreadPoolExecutor(8) as robots:
        done = [robots.submit(drive, robot) for robot in range(8)]
        until(lambda: "vw2_in_progress 8\n" in http(server, "/metrics")[1])  # answered while the policy computes
        policy.free.set()
        for one in done:
            one.result(30)
    assert sum(policy.batches) == server.counters.requests == 160
    assert max(policy.batches) >= 4


def test_metadata_and_answer_are_what_openpis_clients_expect(server: PolicyServer, policy: EchoPolicy) -> None:
    with connect(f"ws://127.0.0.1:{server.port}", compression=None) as robot:
        metadata = unpack(robot.recv())
        assert metadata["action_horizon"] == policy.metadata["n_action_steps"]
        assert metadata["image_keys"]["static"][:2] == ["images/static", "observation/image"]
        for first in (True, False):
            robot.send(pack({"observation/image": np.ones((4, 5, 3), np.uint8), "prompt": "go", "state": np.ones(8)}))
            answer = unpack(robot.recv())
            # One array alone, whose first axis is time: ActionChunkBroker slices every array.
            assert [key for key, value in answer.items() if isinstance(value, np.ndarray)] == ["actions"]
            assert answer["latent_tokens"] == [[0, 1, 2, 3]]
            assert set(answer["server_timing"]) == {"infer_ms"} | (set() if first else {"prev_total_ms"})


def test_pings_are_answered_while_the_policy_computes(server: PolicyServer, policy: EchoPolicy) -> None:
    """The commonest failure of policy servers: code 1011, keepalive ping timeout, at the first long call."""
    with connect(f"ws://127.0.0.1:{server.port}", ping_interval=0.05, ping_timeout=0.2) as robot:
        robot.recv()
        policy.free.clear()
        threading.Timer(0.5, policy.free.set).start()
        robot.send(pack(observation()))
        assert unpack(robot.recv())["actions"][0, 0] == 60


def test_a_policy_with_a_state_has_one_for_each_connection_until_reset() -> None:
    policy = EchoPolicy(is_stateless=False)
    with (
        PolicyServer(policy, ServerSettings(**FAST)) as server,
        PolicyClient(port=server.port) as one,
        PolicyClient(port=server.port) as other,
    ):
        policy.batches.clear()

        def calls_and_seed(client: PolicyClient) -> list[float]:
            return list(client.infer(observation())["actions"][0, 2:4])

        assert [calls_and_seed(one), calls_and_seed(one), calls_and_seed(other)] == [[1, 0], [2, 0], [1, 0]]
        one.reset(seed=5)
        assert [calls_and_seed(one), calls_and_seed(one), calls_and_seed(other)] == [[1, 5], [2, 5], [2, 0]]
        assert set(policy.batches) == {1}


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"images": {"static": np.zeros((4, 5, 3), np.float32)}}, r"uint8 \[height.*found float32 \[4, 5, 3\]"),
        ({"images": {"static": np.full((4, 5, 3), np.nan)}}, "found float64"),
        ({"images": {"static": np.zeros((1, 4, 5, 3), np.uint8)}}, r"found uint8 \[1, 4, 5, 3\]"),
        ({"images": {"static": np.zeros((3, 4, 5), np.uint8)}}, r"found uint8 \[3, 4, 5\]"),
        ({"images": {"static": np.zeros((0, 5, 3), np.uint8)}}, r"found uint8 \[0, 5, 3\]"),
        ({"images": {"static": "image"}}, "found str"),
        ({"images": {"wrist": np.zeros((4, 5, 3), np.uint8)}}, "no image under images/static.*found images/wrist"),
        ({"images": None}, "no image under"),
        ({"prompt": None}, '"prompt" must be the instruction'),
        ({"prompt": "  "}, "found 2 characters"),
        ({"prompt": "x" * 2001}, "found 2001 characters"),
        ({"reset": 1}, '"reset" must be true or false'),
        ({"seed": -1}, '"seed" must be'),
    ],
)
def test_a_wrong_observation_is_refused_by_name_and_the_next_one_is_answered(
    server: PolicyServer, wrong: dict[str, Any], why: str
) -> None:
    with connect(f"ws://127.0.0.1:{server.port}") as robot:
        robot.recv()
        robot.send(pack({**observation(), **wrong}))
        found = robot.recv()
        assert isinstance(found, str)
        assert re.search(why, found)
        robot.send(pack(observation()))
        assert unpack(robot.recv())["actions"][0, 0] == 60
    assert server.counters.refused == 1


def test_the_key_is_asked_for_before_anything_is_read(policy: EchoPolicy, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret\n")
    settings = ServerSettings(**FAST, metrics=True, api_key_file=str(tmp_path / "key"))
    with PolicyServer(policy, settings) as server:
        for key in (None, "wrong", "sécret"):
            with pytest.raises(InputError, match="wants its key"):
                PolicyClient(port=server.port, api_key=key)
        assert server.counters.connections == 0
        assert http(server, "/healthz") == (200, "OK\n")
        assert http(server, "/metrics")[0] == 401
        assert http(server, "/metrics", Authorization="Api-Key secret")[0] == 200
        with PolicyClient(port=server.port, api_key="secret") as client:
            assert client.infer(observation())["actions"][0, 0] == 60


@pytest.mark.parametrize(("content", "why"), [(None, "cannot be read"), (" \n", "is empty")])
def test_a_missing_key_does_not_open_the_server(
    policy: EchoPolicy, tmp_path: Path, content: str | None, why: str
) -> None:
    if content is not None:
        (tmp_path / "key").write_text(content)
    with pytest.raises(InputError, match=why):
        PolicyServer(policy, ServerSettings(api_key_file=str(tmp_path / "key")))


def test_another_version_a_web_page_and_one_robot_too_many_are_refused(policy: EchoPolicy) -> None:
    exceptions = pytest.importorskip("websockets.exceptions")
    with PolicyServer(policy, ServerSettings(**FAST, max_connections=2)) as server:
        address = f"ws://127.0.0.1:{server.port}"
        with pytest.raises(exceptions.InvalidStatus) as refused:
            connect(address, subprotocols=["vw2.7"])
        assert b"speaks vw2.1, the client vw2.7" in refused.value.response.body
        with pytest.raises(exceptions.InvalidStatus, match="403"):
            connect(address, origin="http://a.page")
        with PolicyClient(port=server.port), PolicyClient(port=server.port) as second:
            with pytest.raises(ConnectionError, match="has its 2 connections"):
                PolicyClient(port=server.port, connect_seconds=0)
            second.close()
            with PolicyClient(port=server.port, connect_seconds=5) as third:
                assert third.infer(observation())["actions"][0, 0] == 60


def test_a_message_larger_than_the_limit_closes_its_connection_only(policy: EchoPolicy) -> None:
    with (
        PolicyServer(policy, ServerSettings(**FAST, max_message_mib=0.01)) as server,
        PolicyClient(port=server.port) as other,
        PolicyClient(port=server.port) as client,
    ):
        with pytest.raises(ConnectionError, match="1009"):
            client.infer({"images": {"static": np.zeros((100, 100, 3), np.uint8)}, "prompt": "open"})
        assert other.infer(observation())["actions"][0, 0] == 60


def test_a_robot_that_asks_too_often_waits(policy: EchoPolicy) -> None:
    with (
        PolicyServer(policy, ServerSettings(port=0, max_requests_per_second=50)) as server,
        PolicyClient(port=server.port) as client,
    ):
        begin = time.monotonic()
        for _ in range(6):
            client.infer(observation())
        assert time.monotonic() - begin >= 5 / 50


def test_an_error_of_the_policy_reaches_the_log_and_not_the_robot(
    server: PolicyServer, policy: EchoPolicy, caplog: pytest.LogCaptureFixture
) -> None:
    with PolicyClient(port=server.port) as client:
        policy.errors.append(RuntimeError("secret path"))
        with pytest.raises(InputError, match="the policy failed; the log"):
            client.infer(observation())
        with pytest.raises(ConnectionError, match="1011"):
            client.infer(observation())
    assert "secret path" in caplog.text
    policy.errors.clear()
    with PolicyClient(port=server.port) as client:
        assert client.infer(observation())["actions"][0, 0] == 60


def three_robots(policy: EchoPolicy, drive: Callable[[PolicyServer, list[Any]], None]) -> None:
    """Let three robots ask; two of them wait while the policy computes for the first, so they become a batch."""
    with PolicyServer(policy, ServerSettings(**FAST)) as server, ThreadPoolExecutor(3) as pool:
        clients = [PolicyClient(port=server.port) for _ in range(3)]
        policy.free.clear()
        asked = []
        for number, client in enumerate(clients):
            asked.append(pool.submit(client.infer, observation(number)))
            until(lambda number=number: server.counters.requests == number + 1)
        policy.free.set()
        drive(server, asked)
        for client in clients:
            client.close()


def test_a_batch_that_fails_is_computed_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    class OutOfMemory(EchoPolicy):
        def infer_batch(self, obs: Any) -> Any:
            if len(obs) > 1:
                raise MemoryError("no room for two")
            return super().infer_batch(obs)

    def check(server: PolicyServer, asked: list[Any]) -> None:
        assert [one.result(10)["actions"][0, 0] for one in asked] == [0, 60, 120]
        assert server.counters.failed == 0

    three_robots(OutOfMemory(), check)
    assert "no room for two" in caplog.text


def test_an_error_of_the_server_itself_ends_it_and_reaches_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgets(EchoPolicy):
        def infer_batch(self, obs: Any) -> Any:
            return super().infer_batch(obs)[:1]

    def check(server: PolicyServer, asked: list[Any]) -> None:
        with pytest.raises(ValueError, match="shorter"):
            server.wait()
        with pytest.raises(ConnectionError, match="closed"):
            asked[-1].result(10)

    monkeypatch.setattr("vw2_robot.serving.server.CLOSE_SECONDS", 0.1)
    three_robots(Forgets(), check)


def test_the_request_of_a_robot_that_left_is_dropped(server: PolicyServer, policy: EchoPolicy) -> None:
    policy.free.clear()
    with PolicyClient(port=server.port) as first, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(first.infer, observation(2))
        until(lambda: server.counters.requests == 1)
        with connect(f"ws://127.0.0.1:{server.port}") as leaving:
            leaving.recv()
            leaving.send(pack(observation(3)))
            until(lambda: server.counters.requests == 2)
        policy.free.set()
        assert answer.result(10)["actions"][0, 0] == 120
    until(lambda: server.counters.dropped == 1)
    assert policy.batches == [1]


def test_a_stop_answers_what_is_in_progress_and_says_goodbye(policy: EchoPolicy) -> None:
    with PolicyServer(policy, ServerSettings(**FAST)) as server:
        client, idle = PolicyClient(port=server.port), PolicyClient(port=server.port)
        policy.free.clear()
        threading.Timer(0.2, policy.free.set).start()
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(client.infer, observation())
            until(lambda: server.counters.requests == 1)
            server.__exit__()
            assert answer.result(10)["actions"][0, 0] == 60
    with pytest.raises(ConnectionError, match="1001"):
        idle.infer(observation())
    client.close()


def test_a_port_in_use_and_a_policy_that_cannot_act_are_errors_at_the_start(
    server: PolicyServer, policy: EchoPolicy
) -> None:
    with pytest.raises(InputError, match=f"port={server.port}.*another port"):
        PolicyServer(policy, ServerSettings(port=server.port)).__enter__()
    broken = EchoPolicy()
    broken.errors.append(RuntimeError("cannot act"))
    with pytest.raises(RuntimeError, match="cannot act"):
        PolicyServer(broken, ServerSettings(**FAST)).__enter__()


def test_an_answer_that_is_late_is_not_taken_for_the_next_one(server: PolicyServer, policy: EchoPolicy) -> None:
    client = PolicyClient(port=server.port, answer_seconds=0.05)
    policy.free.clear()
    with pytest.raises(ConnectionError, match=r"no answer within 0.05 s"):
        client.infer(observation())
    policy.free.set()
    with pytest.raises(ConnectionError, match="closed the connection"):
        client.infer(observation(2))


def test_the_client_loads_no_torch() -> None:
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from vw2_robot.serving.client import PolicyClient\n"
        "try: PolicyClient(port=9, connect_seconds=0)\n"
        "except ConnectionError: print(sorted({'transformers', 'PIL', 'hydra'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "[]\n", done.stderr
