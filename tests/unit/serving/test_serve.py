"""`vw2-serve` with the policy of the package: many robots at once, and the program from start to SIGTERM."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vw2_robot.agent import VW2Agent
from vw2_robot.serving.client import PolicyClient
from vw2_robot.serving.server import PolicyServer, ServerSettings

pytest.importorskip("msgpack", reason="msgpack is not installed (extra serve)")
pytest.importorskip("websockets", reason="websockets is not installed (extra serve)")

torch.set_num_threads(1)
NAME = "builtin:calvin-tiny"
PROMPTS = ("open the drawer", "push the red block to the left", "turn on the led", "lift the pink block from the table")
ROBOTS, REQUESTS = 32, 200


def observations() -> list[dict[str, Any]]:
    """One for each robot and remainder of a request: no two with the same answer."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (ROBOTS * 8, 40, 40, 3), dtype=np.uint8)
    return [{"images": {"static": image}, "prompt": PROMPTS[number % 4]} for number, image in enumerate(images)]


@pytest.mark.slow
def test_no_answer_of_32_robots_is_lost_or_mixed_up() -> None:
    agent = VW2Agent.from_pretrained(NAME)
    asked = observations()
    direct = [agent.infer(observation)["actions"] for observation in asked]
    answers = np.stack(direct).reshape(len(direct), -1)
    distances = np.abs(answers[:, None] - answers[None]).max(axis=-1) + np.eye(len(direct))
    assert distances.min() > 1e-3  # so that a wrong answer shows

    def drive(robot: int) -> int:
        with PolicyClient(port=server.port) as client:
            for number in range(REQUESTS):
                place = 8 * robot + number % 8
                np.testing.assert_allclose(client.infer(asked[place])["actions"], direct[place], atol=1e-5)
        return REQUESTS

    with (
        PolicyServer(agent, ServerSettings(port=0, max_requests_per_second=float("inf"))) as server,
        ThreadPoolExecutor(ROBOTS) as robots,
    ):
        assert sum(robots.map(drive, range(ROBOTS))) == ROBOTS * REQUESTS
        counters = server.counters
    assert (counters.requests, counters.refused, counters.failed, counters.dropped) == (ROBOTS * REQUESTS, 0, 0, 0)
    assert counters.batches < ROBOTS * REQUESTS / 4


@pytest.mark.slow
def test_the_program_serves_until_sigterm_and_refuses_what_it_cannot_serve(tmp_path: Path) -> None:
    start = [sys.executable, "-m", "vw2_robot.serving.serve", f"policy={NAME}", "port=0", "device=cpu"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path}
    with subprocess.Popen(start, **options) as program:
        assert program.stdout is not None
        first = program.stdout.readline()
        port = int(re.fullmatch(rf"serving {NAME} on ws://127\.0\.0\.1:(\d+)\n", first)[1])
        with PolicyClient(port=port) as client:
            out = client.infer({"images": {"static": np.zeros((200, 200, 3), np.uint8)}, "prompt": PROMPTS[0]})
            assert out["actions"].shape == (client.metadata["chunk_size"], 7)
            taken = subprocess.run([*start, f"port={port}"], capture_output=True, text=True, timeout=60, check=False)
            assert taken.returncode == 1
            assert "choose another port" in taken.stderr
            assert "Traceback" not in taken.stderr
            program.send_signal(signal.SIGTERM)
            rest, error = program.communicate(timeout=20)
    assert (program.returncode, rest, error) == (0, "server: stopped\n", "")
    assert list(tmp_path.iterdir()) == []
