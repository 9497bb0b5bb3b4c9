"""Requests of many robots as batches of one policy, in a thread of their own, so that the event loop never waits.

While the policy computes, requests gather; what waits when it is done is the next batch. Nobody waits for a batch to
become full.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vw2_robot.contracts import Observation, Policy, PolicyOutput

_LOG = logging.getLogger(__name__)


class ServedPolicy(Policy, Protocol):
    """What a server needs of a policy beside `Policy`; `VW2Agent` has it."""

    @property
    def is_stateless(self) -> bool:
        """Return whether an output depends on its observation alone, so that episodes may share a batch."""

    def clone(self) -> ServedPolicy:
        """Return a policy with the same weights and a state of its own."""


@dataclass
class Counters:
    """What happened since the start of a server."""

    connections: int = 0
    requests: int = 0
    refused: int = 0
    failed: int = 0
    dropped: int = 0
    batches: int = 0
    inference_seconds: float = 0.0


@dataclass(frozen=True)
class Waiting:
    """A request in the queue: the policy with the state of its connection, and where its output goes."""

    policy: ServedPolicy
    observation: Observation
    is_wanted: Callable[[], bool]
    output: asyncio.Future[PolicyOutput | None]


class Batcher:
    """The queue in front of a policy. Belongs to the event loop that calls `run`.

    Args:
        policy: whose weights all connections share.
        max_batch_size: requests in one call of the policy.
        counters: `batches`, `dropped` and `inference_seconds` are counted here.
    """

    def __init__(self, policy: ServedPolicy, *, max_batch_size: int, counters: Counters) -> None:
        self._policy = policy
        self._max_batch_size = max_batch_size if policy.is_stateless else 1
        self._counters = counters
        self._queue: asyncio.Queue[Waiting] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="policy")

    async def infer(
        self, policy: ServedPolicy, observation: Observation, is_wanted: Callable[[], bool]
    ) -> PolicyOutput | None:
        """Return the policy's output for an observation; None if nobody wanted it any more when the policy was free.

        Args:
            policy: the clone of the connection.
            observation: a checked one.
            is_wanted: asked then.

        Raises:
            Exception: of the policy.
        """
        output: asyncio.Future[PolicyOutput | None] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait(Waiting(policy, observation, is_wanted, output))
        return await output

    async def warm_up(self) -> None:
        """Compute once, since the first call takes longer; what a policy raises that cannot act is raised here."""
        images = {camera: np.zeros((64, 64, 3), np.uint8) for camera in self._policy.metadata["cameras"]}
        observation: Observation = {"images": images, "prompt": "wait"}
        await asyncio.get_running_loop().run_in_executor(self._thread, self._policy.clone().infer, observation)

    async def run(self) -> None:
        """Compute batches until the event loop ends it."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                batch = await self._next_batch()
                begin = time.perf_counter()
                outputs = await loop.run_in_executor(self._thread, self._compute, batch)
                self._counters.inference_seconds += time.perf_counter() - begin
                self._counters.batches += 1
                for waiting, output in zip(batch, outputs, strict=True):
                    if isinstance(output, Exception):
                        waiting.output.set_exception(output)
                    else:
                        waiting.output.set_result(output)
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _next_batch(self) -> list[Waiting]:
        batch: list[Waiting] = []
        while not batch or (len(batch) < self._max_batch_size and not self._queue.empty()):
            waiting = await self._queue.get()
            if waiting.is_wanted():
                batch.append(waiting)
            else:
                self._counters.dropped += 1
                waiting.output.set_result(None)
        return batch

    def _compute(self, batch: Sequence[Waiting]) -> Sequence[PolicyOutput | Exception]:
        """Return an output for each request, or its error: one that fails does not take the others with it."""
        if len(batch) > 1:
            try:
                return self._policy.infer_batch([waiting.observation for waiting in batch])
            except Exception:
                _LOG.exception("a batch of %d requests failed, they are computed one by one", len(batch))
        outputs: list[PolicyOutput | Exception] = []
        for waiting in batch:
            try:
                outputs.append(waiting.policy.infer(waiting.observation))
            except Exception as error:  # goes to its connection
                outputs.append(error)
        return outputs
