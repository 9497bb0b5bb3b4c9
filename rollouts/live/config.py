"""The configuration of `vw2-live`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vw2_robot.limits import Count


@dataclass(frozen=True)
class LiveDataConfig:
    """Recorded episodes to play."""

    path: str | None = None
    """run_dir of a rollout (its chains are run again, as they went), or a data set: of CALVIN with the 3-D scene, any
    other format as video; null: none"""
    split: str | None = None
    """of a data set; null: its training split"""


@dataclass(frozen=True)
class LiveConfig:
    """The root of `vw2-live`."""

    env: dict[str, Any]
    """the simulator, env=calvin with its `scene`, `assets` and `renderer`; the scene can be changed on the page"""
    policy: str = "builtin:calvin-tiny"
    """builtin:NAME, a checkpoint or fine-tuning run folder, a Hub id, demonstrator, random or "package.module:Name"; it
    can be changed on the page"""
    seed: int = 0
    """of the start states and of the policy; it can be changed on the page"""
    data: LiveDataConfig = field(default_factory=LiveDataConfig)
    out: str = "runs/live"
    """folder of the episodes that are saved: videos, and a CALVIN data set of those that were solved"""
    host: str = "127.0.0.1"
    """address to listen on. Whoever reaches it can command the page, and with it name folders and models to load"""
    port: int = 8080
    """0 to 65535; the next free one where it is in use, 0: any that is free"""
    device: str = "auto"
    """of the policy: auto (CUDA where there is one), cpu, cuda, cuda:0, ..."""
    threads: Count = 1
    """of the policy, on a CPU"""

    def __post_init__(self) -> None:
        """Reject what cannot work."""
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port={self.port}, expected 0 to 65535")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}, expected at least 0")
