"""The published codes of the craft videos: by name of a video, one row of codes for each clip.

Place in the flow: `VideoCraft-dLDM-codes.pt` -> a latent cache (`vw2-import`), or the codes that `vw2-imagine` decodes.
An index means the same in both: dimension 0 of FSQ varies fastest; a row is step-major, slot-minor.
"""

# C clips of a video · M latent steps · N codes per step
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vw2_robot.data.latents import LatentWindows, finish, write_shard
from vw2_robot.errors import InputError
from vw2_robot.models.dldm.config import DLDMConfig

from .released_names import CODES
from .released_weights import read_published


def read_released_codes(file: Path, config: DLDMConfig) -> dict[str, NDArray[np.int64]]:
    """Return the codes [C, M, N] of every video.

    Args:
        file: `VideoCraft-dLDM-codes.pt`.
        config: of the dLDM that they are codes of.

    Raises:
        InputError: it cannot be read, holds no codes of this dLDM, or is what the published callback writes.
    """
    content = read_published(file)
    if _is_damaged(content):
        raise InputError(
            f"{file} was written by the published training code, which pairs the clips of a video with the letters of "
            f"its name: the first entry is named {content[0][1]!r}, and clips beyond the length of a "
            f"name are lost. Use {CODES}, or encode the videos again (vw2-extract-latents)"
        )
    if not isinstance(content, dict) or not content:
        raise InputError(f"{file}: expected codes by the name of a video, found {type(content).__name__}")
    return {str(name): _codes_of(f"{file}, {name}", rows, config) for name, rows in content.items()}


def _is_damaged(content: Any) -> bool:
    """Return whether a list pairs rows of codes with single letters instead of with names."""
    return (
        isinstance(content, list | tuple)
        and len(content) > 0
        and all(
            isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[1], str) and len(entry[1]) == 1
            for entry in content
        )
    )


def _codes_of(where: str, rows: Any, config: DLDMConfig) -> NDArray[np.int64]:
    """Return the codes of a video as [C, M, N]; `where` names it in messages."""
    length = config.latent_steps * config.queries
    try:
        values = torch.as_tensor(rows).numpy()
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{where}: no rows of {length} codes ({error})") from error
    if values.dtype.kind not in "iu" or values.ndim != 2 or values.shape[1] != length or not len(values):
        raise InputError(f"{where}: expected integers [clips, {length}], found {values.dtype} {list(values.shape)}")
    if values.min() < 0 or values.max() >= config.vocabulary:
        raise InputError(f"{where}: codes lie in 0 .. {config.vocabulary - 1}, found {values.min()} .. {values.max()}")
    return values.astype(np.int64).reshape(len(values), config.latent_steps, config.queries)


def write_latents(folder: Path, codes: dict[str, NDArray[np.int64]], *, config: DLDMConfig, encoder_hash: str) -> None:
    """Write the codes as a latent cache: video k, by name, is episode k; neighboring clips share a frame.

    Args:
        folder: of the cache.
        codes: of every video, [C, M, N].
        config: of their dLDM.
        encoder_hash: its identity.
    """
    names = sorted(codes)
    span = config.latent_steps * config.temporal_stride
    clips = [len(codes[name]) for name in names]
    values = np.concatenate([codes[name] for name in names])
    windows = LatentWindows(
        np.repeat(np.arange(len(names), dtype=np.int32), clips),
        np.concatenate([np.arange(count, dtype=np.int32) * span for count in clips]),
        values.astype(np.uint16),
        np.ones(values.shape[:2], dtype=np.bool_),
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_shard(folder, 0, windows)
    facts = {
        "encoder_hash": encoder_hash,
        "levels": list(config.fsq_levels),
        "latent_steps": config.latent_steps,
        "cache_stride": span,
        "episodes": names,
    }
    finish(folder, shards=1, facts=facts)
