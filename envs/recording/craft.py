"""Block building as recordings of `vw2-record`: training worlds as training split, test worlds as validation split.

The patterns take turns; everything else about recording number i is a function of (seed, split, i). No action is kept.
"""

from __future__ import annotations

from typing import Any, get_args

import numpy as np

from vw2_robot.data.calvin_writer import Label
from vw2_robot.limits import Count, Rate, number

from ..craft.building import build, check_craft
from ..craft.layout import World
from .config import RecordConfig
from .demonstrations import RecordedDemonstration

WORLDS: tuple[World, ...] = get_args(World)
TRACK_DECIMALS = 4


class CraftDemonstrations:
    """Episodes of block building.

    Args:
        config: of the recording.

    Raises:
        InputError: numbers, patterns or embodiments that cannot work.
    """

    def __init__(self, config: RecordConfig) -> None:
        self._seed = config.seed
        self._patterns = config.task_names()
        self._hz = number(Rate, config.env["hz"], "env.hz")
        self._image_size = number(Count, config.env["image_size"], "env.image_size")
        self._embodiments = tuple(config.env["embodiments"])
        check_craft(self._hz, self._image_size, self._embodiments)

    def make(self, split: int, number: int) -> RecordedDemonstration:
        """Return recording `number` of split number `split`."""
        episode = build(
            seed=self._seed,
            split=split,
            number=number,
            pattern=self._patterns[number % len(self._patterns)],
            world=WORLDS[split],
            embodiments=self._embodiments,
            hz=self._hz,
            image_size=self._image_size,
        )
        frames = len(episode.images)
        arrays: dict[str, Any] = {"rgb_static": episode.images, "commanded_actions": np.zeros((frames, 0))}
        return RecordedDemonstration(
            "craft",
            (Label(episode.pattern, episode.instruction, 0, frames - 1),),
            arrays,
            failed=(episode.pattern,) * episode.num_failed_attempts,
            hz=episode.hz,
            annotations={
                "embodiment": episode.embodiment,
                "world": WORLDS[split],
                "key_frames": list(episode.key_frames),
                "track": np.round(episode.track, TRACK_DECIMALS).tolist(),
            },
        )

    def close(self) -> None:
        """Do nothing: each episode frees its simulator."""
