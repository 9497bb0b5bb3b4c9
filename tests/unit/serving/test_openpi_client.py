"""The real openpi-client, in an interpreter of its own since it needs numpy 1, and the examples of the page about it.

OPENPI_PYTHON names an interpreter with openpi-client 0.1.2 and typing_extensions; without it this one is tried.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from vw2_robot.serving.client import PolicyClient
from vw2_robot.serving.server import PolicyServer, ServerSettings

from .echo_policy import EchoPolicy

pytest.importorskip("msgpack", reason="msgpack is not installed (extra serve)")
pytest.importorskip("websockets", reason="websockets is not installed (extra serve)")

PAGE = Path(__file__).resolve().parents[3] / "docs" / "integrations" / "openpi.md"
DRIVE = """
import json, sys
import numpy as np
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy

port = int(sys.argv[1])
client = WebsocketClientPolicy("127.0.0.1", port, api_key="secret")
found = {"metadata": client.get_server_metadata()}
broker = ActionChunkBroker(client, action_horizon=4)
image = np.full((224, 224, 3), 2, np.uint8)
steps = [broker.infer({"observation/image": image, "observation/state": np.zeros(8), "prompt": "go"}) for _ in range(9)]
found["actions"] = [step["actions"].tolist() for step in steps]
found["latent_tokens"] = [step["latent_tokens"] for step in steps]
try:
    client.infer({"observation/image": image.astype(float), "prompt": "go"})
except RuntimeError as error:
    found["refused"] = str(error)
found["after"] = client.infer({"images": {"static": image}, "prompt": "go"})["actions"].tolist()
try:
    WebsocketClientPolicy("127.0.0.1", port, api_key="wrong")
except Exception as error:
    found["wrong_key"] = str(error)
print(json.dumps(found))
"""

# A server as openpi's: its packer, no subprotocol, one answer for each observation.
SERVE = """
import asyncio
import numpy as np, websockets.asyncio.server
from openpi_client import msgpack_numpy

async def talk(robot):
    await robot.send(msgpack_numpy.packb({"name": "pi0"}))
    async for message in robot:
        got = msgpack_numpy.unpackb(message)
        await robot.send(msgpack_numpy.packb({
            "keys": sorted(got), "actions": np.full((50, 7), got["observation/image"].sum() / 3),
            "state": got["observation/state"], "policy_timing": {"infer_ms": np.float64(1.5)},
        }))

async def main():
    async with websockets.asyncio.server.serve(talk, "127.0.0.1", 0, compression=None, max_size=None) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.Future()

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def openpi_python() -> str:
    named = os.environ.get("OPENPI_PYTHON")
    if named is None and importlib.util.find_spec("openpi_client") is None:
        pytest.skip("openpi-client is not installed; OPENPI_PYTHON names an interpreter that has it (numpy 1)")
    return named or sys.executable


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PolicyServer]:
    (tmp_path / "key").write_text("secret")
    with PolicyServer(EchoPolicy(), ServerSettings(port=0, api_key_file=str(tmp_path / "key"))) as running:
        yield running


def run(python: str, script: str, *arguments: str) -> str:
    done = subprocess.run([python, "-c", script, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def examples() -> list[str]:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    return blocks


def test_the_client_and_its_broker_work_as_with_openpis_server(server: PolicyServer, openpi_python: str) -> None:
    found = json.loads(run(openpi_python, DRIVE, str(server.port)))
    total = 2.0 * 224 * 224 * 3
    assert found["metadata"]["action_horizon"] == 2
    # Nine steps of chunks of four: three calls, each action once and in its order.
    assert [[action[0], action[2], action[4]] for action in found["actions"]] == [
        [total, 1 + step // 4, step % 4] for step in range(9)
    ]
    assert found["latent_tokens"] == [[[0, 1, 2, 3]]] * 9
    assert "must be uint8 [height, width, 3]" in found["refused"]
    assert "Traceback" not in found["refused"]
    assert found["after"][0][:3] == [total, 2, 4]
    assert "401" in found["wrong_key"]


def test_our_client_talks_to_a_server_that_packs_as_openpi_does(openpi_python: str) -> None:
    with subprocess.Popen([openpi_python, "-c", SERVE], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            with PolicyClient(port=int(process.stdout.readline())) as client:
                assert client.get_server_metadata() == {"name": "pi0"}
                client.reset()  # nothing that this server would not know
                image, state = np.full((224, 224, 3), 3, np.uint8), np.arange(8.0)
                answer = client.infer({"observation/image": image, "observation/state": state, "prompt": "go"})
        finally:
            process.kill()
    assert answer["keys"] == ["observation/image", "observation/state", "prompt"]
    assert answer["policy_timing"]["infer_ms"] == 1.5
    np.testing.assert_array_equal(answer["state"], state)
    np.testing.assert_array_equal(answer["actions"], np.full((50, 7), image.sum() / 3))
    assert answer["actions"].flags.writeable


@pytest.mark.parametrize("number", [0, 1], ids=["with openpi", "without openpi"])
def test_the_examples_of_the_page_work(number: int, request: pytest.FixtureRequest) -> None:
    code = examples()[number]
    python = request.getfixturevalue("openpi_python") if "openpi_client" in code else sys.executable
    with PolicyServer(EchoPolicy(), ServerSettings(port=0)) as server:
        run(python, code.replace("8000", str(server.port)))
        assert server.counters.requests == (2, 1)[number]
        assert server.counters.refused == 0
