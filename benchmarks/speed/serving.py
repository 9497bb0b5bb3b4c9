"""A policy call over `vw2-serve` against a direct one, and what eight robots get together against one.

    python -m benchmarks.speed --part benchmarks.speed.serving --seconds 60

The policy is `builtin:calvin-tiny` on the CPU with one thread, images have 200 x 200 pixels. Server and direct calls
are in this process, each robot is a process of its own, all on this machine. A served call may take 1.5 ms or 20 % more
than a direct one, whichever is larger; CPU time is that of the server's process alone.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from vw2_robot.errors import install_command
from vw2_robot.serving.client import PolicyClient
from vw2_robot.serving.server import PolicyServer, ServerSettings

from .row import SpeedRow, interleaved, not_measured, timed

POLICY = "builtin:calvin-tiny"
ROBOTS = 8
CALLS = 20
"""of each robot in a round"""
ALLOWED_MS, ALLOWED_SHARE = 1.5, 0.2
GAIN = 2.0
"""planned: calls per second of eight robots over those of one"""
CALL, CPU, TOGETHER = "served policy call", "served policy call, CPU", f"served call, {ROBOTS} robots"
DIRECT, ONE = "direct infer", "one robot"


def speed_rows(seconds: float) -> list[SpeedRow]:
    """Return the rows of one policy call by wall clock and CPU time, and of eight robots."""
    if importlib.util.find_spec("websockets") is None or importlib.util.find_spec("msgpack") is None:
        why = install_command("serve")
        wanted = {CALL: (DIRECT, math.nan), CPU: (DIRECT, math.nan), TOGETHER: (ONE, GAIN)}
        return [
            not_measured(name, unit="ms/call", against=against, wanted=ratio, why=why)
            for name, (against, ratio) in wanted.items()
        ]
    import torch

    from vw2_robot.agent import VW2Agent

    torch.set_num_threads(1)
    agent = VW2Agent.from_pretrained(POLICY)
    image = observation()

    def direct() -> None:
        for _ in range(CALLS):
            agent.infer(image)

    settings = ServerSettings(port=0, max_requests_per_second=math.inf)
    with PolicyServer(agent, settings) as server, robots_at(server.port) as robots:

        def one() -> None:
            drive(robots[:1])

        def together() -> None:
            drive(robots)

        ms = CALLS / 1000
        rounds = interleaved(
            {
                DIRECT: timed(direct, unit=ms),
                ONE: timed(one, unit=ms),
                TOGETHER: timed(together, unit=ROBOTS * ms),
                "direct CPU": cpu_ms(direct),
                CPU: cpu_ms(one),
            },
            seconds=seconds,
        )
    call = rounds.row(CALL, ours=ONE, other=DIRECT, against=DIRECT, unit="ms/call", wanted=0)
    cpu = rounds.row(CPU, ours=CPU, other="direct CPU", against=DIRECT, unit="ms/call", wanted=0)
    gain = rounds.row(TOGETHER, ours=TOGETHER, other=ONE, against=ONE, unit="ms/call", wanted=GAIN)
    return [with_limit(call), with_limit(cpu), gain]


def with_limit(row: SpeedRow) -> SpeedRow:
    """Return the row with the ratio that the allowed overhead would give."""
    allowed = row.other + max(ALLOWED_MS, ALLOWED_SHARE * row.other)
    return replace(row, wanted=row.other / allowed, why=f"{row.ours - row.other:.2f} ms more")


def cpu_ms(work: Callable[[], None]) -> Callable[[], float]:
    """Return a function that does `CALLS` calls and returns the CPU milliseconds of one in this process."""

    def run() -> float:
        begin = time.process_time()
        work()
        return 1000 * (time.process_time() - begin) / CALLS

    return run


@contextlib.contextmanager
def robots_at(port: int) -> Iterator[list[Connection]]:
    """Start robots, each connected to the server and waiting for `drive`."""
    spawn = multiprocessing.get_context("spawn")
    pairs = [spawn.Pipe() for _ in range(ROBOTS)]
    processes = [spawn.Process(target=robot, args=(port, there), daemon=True) for _, there in pairs]
    for process in processes:
        process.start()
    try:
        yield [here for here, _ in pairs]
    finally:
        for process in processes:
            process.kill()
            process.join()


def drive(robots: list[Connection]) -> None:
    """Let each of the robots make its calls, all at the same time, and wait for the last."""
    for one in robots:
        one.send(CALLS)
    for one in robots:
        one.recv()


def robot(port: int, commands: Connection) -> None:
    """Call the policy as often as the other end of the pipe says, again and again."""
    image = observation()
    with PolicyClient(port=port) as client:
        while True:
            for _ in range(commands.recv()):
                client.infer(image)
            commands.send(None)


def observation() -> dict[str, Any]:
    """Return an observation of the usual size."""
    image = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    return {"images": {"static": image}, "prompt": "open the drawer"}
