"""The machine of a run: its names and versions, and the rates that bound what it can do, measured in the same run."""

from __future__ import annotations

import gc
import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import median

import torch

from benchmarks.decode_latency import copy_bandwidth
from benchmarks.dldm import PEAK_FLOPS

REPO = Path(__file__).resolve().parents[2]
MATMUL_SIDE = {"cuda": 8192, "cpu": 512}
COPY_BYTES = {"cuda": 2**30, "cpu": 2**26}


@dataclass(frozen=True)
class Machine:
    """Names, versions and rates."""

    device: str
    torch: str
    cuda: str | None
    driver: str | None
    memory_bytes: int | None
    """of the GPU"""
    cpu_cores: int
    python: str
    date: str
    commit: str
    peak_flops: float
    """dense bfloat16, FLOP/s: what MFU is a share of"""
    peak_source: str
    matmul_flops: float
    """of one large bfloat16 product, measured"""
    copy_bytes_per_second: float
    """read and written by a large copy, measured"""


def machine_of(device: torch.device) -> Machine:
    """Measure the rates of a device, and return them with what identifies the machine."""
    is_cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if is_cuda else platform.processor() or platform.machine()
    matmul = matmul_flops(device)
    known = next((flops for card, flops in PEAK_FLOPS.items() if is_cuda and card in name), None)
    return Machine(
        device=name,
        torch=torch.__version__,
        cuda=torch.version.cuda,
        driver=_output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if is_cuda else None,
        memory_bytes=torch.cuda.get_device_properties(device).total_memory if is_cuda else None,
        cpu_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        python=platform.python_version(),
        date=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC"),
        commit=commit(),
        peak_flops=known or matmul,
        peak_source="vendor's table, dense bfloat16" if known else "a bfloat16 matrix product, measured here",
        matmul_flops=matmul,
        copy_bytes_per_second=copy_bandwidth(device, size=COPY_BYTES[device.type]),
    )


def commit() -> str:
    """Return the commit of this checkout, with a + where files differ from it; "unknown" without git."""
    found = _output("git", "-C", str(REPO), "rev-parse", "HEAD")
    if found is None:
        return "unknown"
    return found + ("+" if _output("git", "-C", str(REPO), "status", "--porcelain", "--untracked-files=no") else "")


def _output(*command: str) -> str | None:
    """Return the first line that a command prints; None where there is no such program or it fails."""
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip().split("\n")[0]


def matmul_flops(device: torch.device) -> float:
    """Return the FLOP/s of a bfloat16 product of two large square matrices of random numbers."""
    side = MATMUL_SIDE[device.type]
    # Random, since products of zeros draw less power and run faster.
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / median(seconds_of(lambda: left @ right, device, rounds=10)[3:])


def now(device: torch.device) -> float:
    """Return the wall clock in seconds, when all work of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds_of(run: Callable[[], object], device: torch.device, *, rounds: int) -> list[float]:
    """Return the time of each of some calls, the first ones included."""
    found = []
    for _ in range(rounds):
        begin = now(device)
        run()
        found.append(now(device) - begin)
    return found


def forget_memory(device: torch.device) -> None:
    """Give back what nothing refers to, and begin a new measurement of the largest allocation."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.init()  # a new process has no statistics yet
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int | None:
    """Return the largest allocation since `forget_memory`; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
