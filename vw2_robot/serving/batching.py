"""Requests of many robots as batches of one policy, in a thread of their own, so that the event loop never waits.

While the policy computes, requests gather; what waits when it is done is the next batch. Nobody waits for a batch to
become full.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

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
    """The queue in front of a policy, and the thread that computes. Belongs to the event loop that makes it.

    Args:
        policy: whose weights all connections share.
        max_batch_size: requests in one call of the policy.
        counters: `batches`, `dropped` and `inference_seconds` are counted here.

    Attributes:
        ended: done when the thread is, with its error if there was one.
    """

    def __init__(self, policy: ServedPolicy, *, max_batch_size: int, counters: Counters) -> None:
        self._policy = policy
        self._max_batch_size = max_batch_size if policy.is_stateless else 1
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._queue: queue.SimpleQueue[Waiting | None] = queue.SimpleQueue()
        # A daemon: a call of the policy that takes forever does not keep a program from its end.
        threading.Thread(target=self._run, name="policy", daemon=True).start()

    async def infer(
        self, policy: ServedPolicy, observation: Observation, is_wanted: Callable[[], bool] = lambda: True
    ) -> PolicyOutput | None:
        """Return the policy's output for an observation; None if nobody wanted it any more when the policy was free.

        Args:
            policy: the clone of the connection.
            observation: a checked one.
            is_wanted: asked then, in the thread of the policy.

        Raises:
            Exception: of the policy.
        """
        output: asyncio.Future[PolicyOutput | None] = self._loop.create_future()
        self._queue.put(Waiting(policy, observation, is_wanted, output))
        return await output

    def stop(self) -> None:
        """End the thread after what waits."""
        self._queue.put(None)

    def _run(self) -> None:
        error: Exception | None = None
        try:
            while batch := self._next_batch():
                begin = time.perf_counter()
                outputs = self._compute(batch)
                self._counters.inference_seconds += time.perf_counter() - begin
                self._counters.batches += 1
                # The next batch begins while the event loop sends this one.
                self._deliver(batch, outputs)
        except Exception as found:  # handed to whoever waits for `ended`
            error = found
        with suppress(RuntimeError):  # the event loop did not wait for a call that took too long
            self._loop.call_soon_threadsafe(_settle, self.ended, error)

    def _next_batch(self) -> list[Waiting]:
        """Wait for a request, and return it with those behind it; an empty list at the end."""
        batch: list[Waiting] = []
        while not batch or (len(batch) < self._max_batch_size and not self._queue.empty()):
            waiting = self._queue.get()
            if waiting is None:
                if batch:
                    self._queue.put(None)  # seen again after this batch
                break
            if waiting.is_wanted():
                batch.append(waiting)
            else:
                self._counters.dropped += 1
                self._deliver([waiting], [None])
        return batch

    def _deliver(self, batch: Sequence[Waiting], outputs: Sequence[PolicyOutput | Exception | None]) -> None:
        for waiting, output in zip(batch, outputs, strict=True):
            self._loop.call_soon_threadsafe(_settle, waiting.output, output)

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


def _settle(future: asyncio.Future[Any], result: Any) -> None:
    """Give a future its result or error, unless the event loop has given it up."""
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
