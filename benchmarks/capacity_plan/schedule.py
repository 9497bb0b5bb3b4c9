"""What a stage needs on some GPUs: memory of each, clips at once, time of a step, and what limits it.

Arithmetic alone, on the counts of `stages.py` and the assumptions below. Data parallelism divides the batch. FSDP also
divides weights, gradients and AdamW's moments of the models that learn; it gathers the weights of a block in the
forward pass and again in the backward pass, one block ahead. Micro-batches that follow each other fill the batch of a
GPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from benchmarks.dldm import PEAK_FLOPS
from benchmarks.memory_plan import CARDS, GB, HEADROOM

from .stages import Stage

Sharding = Literal["none", "ddp", "fsdp"]
GPUS_PER_NODE = 8


@dataclass(frozen=True)
class Cluster:
    """The machines, and what is assumed of them. Defaults: nodes of eight H200."""

    mfu: float = 0.4
    """share of the peak that the arithmetic of a step reaches, recomputation included"""
    peak: float = PEAK_FLOPS["H200"]
    """dense bfloat16, FLOP/s"""
    memory: float = CARDS[-1] * GB
    """bytes of a GPU"""
    headroom: float = HEADROOM
    """share of the memory that can be planned with"""
    node_link: float = 450e9
    """bytes/s that a GPU sends to others of its node (NVLink, one direction)"""
    network_link: float = 50e9
    """bytes/s that a GPU sends to other nodes (one port of 400 Gbit/s for each GPU)"""
    cores_per_gpu: float = 14
    """CPU cores (112 for eight GPUs in a DGX H200)"""

    def link(self, gpus: int) -> float:
        """Return the bytes/s of the slowest link between that many GPUs."""
        return self.node_link if gpus <= GPUS_PER_NODE else self.network_link


def states_per_gpu(stage: Stage, sharding: Sharding, gpus: int) -> float:
    """Return the bytes of weights, gradients and moments on each GPU, with the blocks that FSDP has gathered.

    Args:
        stage: what is trained.
        sharding: of the models that learn.
        gpus: all of them.
    """
    if sharding != "fsdp":
        return stage.replicated + stage.sharded + stage.learning
    # The block that runs, and the one after it.
    return stage.replicated + (stage.sharded + stage.learning) / gpus + 2 * stage.block


def clips_that_fit(stage: Stage, cluster: Cluster, sharding: Sharding, gpus: int, *, recompute: bool) -> int:
    """Return how many samples a GPU can train on at once; 0: not one.

    Args:
        stage: what is trained.
        cluster: the memory of a GPU.
        sharding: of the models that learn.
        gpus: all of them.
        recompute: keep the inputs of blocks alone.
    """
    free = cluster.headroom * cluster.memory - states_per_gpu(stage, sharding, gpus)
    return max(0, math.floor(free / (stage.kept_recomputing if recompute else stage.kept)))


def bytes_sent(stage: Stage, sharding: Sharding, gpus: int, *, micro_steps: int) -> float:
    """Return the bytes that each GPU sends in a step.

    Args:
        stage: what is trained.
        sharding: ddp sends gradients twice around a ring, once a step; fsdp gathers weights twice and reduces
            gradients once, for each micro-batch.
        gpus: all of them.
        micro_steps: micro-batches of a step.
    """
    share = (gpus - 1) / gpus
    if sharding == "fsdp":
        return micro_steps * share * (2 * stage.sharded + stage.gradients)
    return 2 * share * stage.gradients


@dataclass(frozen=True)
class Row:
    """One stage on some GPUs. Seconds are of a step; they overlap, so the largest is the time of the step."""

    stage: Stage
    gpus: int
    sharding: Sharding
    recompute: bool
    micro_batch: int
    """samples at once on a GPU; 0 where one does not fit"""
    clips: int
    """samples of a step, over all GPUs"""
    compute_seconds: float
    decode_seconds: float
    network_seconds: float
    network_bytes: float

    @property
    def seconds(self) -> float:
        """Return the time of a step."""
        return max(self.compute_seconds, self.decode_seconds, self.network_seconds)

    @property
    def clips_per_second(self) -> float:
        """Return the rate at which the GPUs compute, whether or not they can be fed."""
        return self.clips / self.compute_seconds

    @property
    def hours(self) -> float:
        """Return the time of the whole stage."""
        return self.stage.samples / self.clips * self.seconds / 3600

    @property
    def bottleneck(self) -> str:
        """Return what limits the stage."""
        if self.micro_batch == 0:
            return "memory"
        limits = {
            "compute": self.compute_seconds,
            "decoding": self.decode_seconds,
            "network": self.network_seconds,
        }
        return max(limits, key=lambda name: limits[name])


def best_row(stage: Stage, gpus: int, cluster: Cluster, *, decode_ms: float) -> Row | None:
    """Return the fastest way to run a stage on some GPUs; where nothing fits, one whose bottleneck is memory.

    Args:
        stage: what is trained.
        gpus: all of them.
        cluster: the machines.
        decode_ms: milliseconds in which a core decodes a frame.

    Returns:
        The row; None where the batch has fewer samples than there are GPUs.
    """
    if stage.batch < gpus and not stage.batch_is_per_gpu:
        return None
    rows = list(rows_of(stage, gpus, cluster, decode_ms=decode_ms))
    # Of equal ones the first: the simplest.
    return min(rows, key=lambda row: (row.micro_batch == 0, row.seconds))


def rows_of(stage: Stage, gpus: int, cluster: Cluster, *, decode_ms: float) -> Iterator[Row]:
    """Yield a row for each sharding, with and without recomputation; arguments as in `best_row`."""
    shardings: tuple[Sharding, ...] = ("none",) if gpus == 1 or not stage.learning else ("ddp", "fsdp")
    for sharding in shardings:
        for recompute in (False, True) if stage.kept_recomputing else (False,):
            share = stage.batch if stage.batch_is_per_gpu else math.ceil(stage.batch / gpus)
            # Without a backward pass the batch of the configuration fits.
            fits = clips_that_fit(stage, cluster, sharding, gpus, recompute=recompute) if stage.kept else share
            micro_batch = min(fits, share)
            sent = bytes_sent(stage, sharding, gpus, micro_steps=math.ceil(share / max(1, micro_batch)))
            yield Row(
                stage,
                gpus,
                sharding,
                recompute,
                micro_batch,
                gpus * share if stage.batch_is_per_gpu else stage.batch,
                share * stage.flops(recompute=recompute) / (cluster.mfu * cluster.peak),
                share * stage.num_frames * decode_ms / 1000 / cluster.cores_per_gpu,
                sent / cluster.link(gpus),
                sent,
            )
