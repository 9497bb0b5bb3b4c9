"""The column `latent_tokens`: the codes of the window that begins at each frame, so that others can train on them.

A row holds M latent steps of N codes, one after the other: the codes of the video from this frame on. -1 stands for a
step that reaches beyond the end of the episode, and for frames at which no window begins (`cache_stride` of
`vw2-extract-latents`). With `latents` they come from a latent cache, with `dldm` they are computed for every frame.
"""

# n windows · T frames of an episode · M latent steps · N codes per step
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vw2_robot.data.clips import make_windows, time_base_of
from vw2_robot.data.frame_cache import FrameCache
from vw2_robot.data.images import read_frame
from vw2_robot.data.latents import LatentCache
from vw2_robot.devices import open_device
from vw2_robot.errors import InputError
from vw2_robot.storage.files import read_yaml

from .config import ConvertConfig
from .records import LATENT_COLUMN, Record

if TYPE_CHECKING:
    from vw2_robot.models.dldm.dldm import DLDM

BATCH = 64
"""windows that are encoded at once"""


class LatentColumn(Protocol):
    """The codes of episodes."""

    facts: dict[str, Any]

    def of(self, record: Record) -> NDArray[np.int32]:
        """Return the codes [T, M * N] of an episode."""


def open_latents(config: ConvertConfig) -> LatentColumn | None:
    """Open what the configuration names; None if it asks for no codes.

    Raises:
        InputError: it is no latent cache with its frames, or no dLDM.
    """
    if config.latents is not None:
        return CachedLatents(Path(config.latents))
    return EncodedLatents(config.dldm) if config.dldm is not None else None


def with_latents(record: Record, latents: LatentColumn) -> Record:
    """Return a record with its column of codes."""
    return replace(record, numbers={**record.numbers, LATENT_COLUMN: latents.of(record)})


class CachedLatents:
    """The codes in a run folder of `vw2-extract-latents`, found by the names of the episodes."""

    def __init__(self, run: Path) -> None:
        """Read the latent cache, and the names of the episodes in the frame cache that it was made from."""
        frames = run / "frames"
        if not frames.is_dir() and (run / "config.yaml").is_file():
            tree = read_yaml(run / "config.yaml", cure="restore it")
            frames = Path((tree.get("data") or {}).get("frame_cache") or frames)
        self._folder = run
        frame_cache = FrameCache(frames)
        self._cache = LatentCache(run / "latents", frames_digest=frame_cache.digest)
        self._episodes: dict[tuple[str, int], list[int]] = {}
        names = frame_cache.episodes.texts("episode_id")
        for index, key in enumerate(zip(names, frame_cache.episodes.length.tolist(), strict=True)):
            self._episodes.setdefault(key, []).append(index)
        latent_steps, codes = self._cache.windows.codes.shape[1:]
        about = {name: self._cache.facts[name] for name in ("encoder_hash", "levels", "stride", "cache_stride", "hz")}
        self.facts = _facts(latent_steps, codes, **about)

    def of(self, record: Record) -> NDArray[np.int32]:
        """Return the codes [T, M * N] of an episode.

        Raises:
            InputError: the cache holds no such episode, or several.
        """
        found = self._episodes.get((record.episode.episode_id, len(record)), [])
        if len(found) != 1:
            raise InputError(
                f"{record.where}: latents={self._folder} holds {len(found)} episodes of this name and length, expected "
                "one; name the splits that were encoded (splits=[train]), or compute the codes with dldm=DIR"
            )
        windows = self._cache.of_episodes(np.array(found))
        return _rows(len(record), windows.start, windows.codes, windows.valid)


class EncodedLatents:
    """The codes that a dLDM gives, of every frame that begins a window."""

    def __init__(self, path: str) -> None:
        """Load the dLDM."""
        # torch takes seconds to import, and other conversions do without it.
        from vw2_robot.checkpoint import load_checkpoint
        from vw2_robot.command_line.config_tree import config_from
        from vw2_robot.models.dldm.config import DLDMConfig
        from vw2_robot.models.dldm.dldm import DLDM

        checkpoint = load_checkpoint(path, kind="dldm")
        with checkpoint.building():
            dldm = DLDM(config_from(DLDMConfig, checkpoint.config))
            checkpoint.load_into(dldm=dldm)
        self._device = open_device("auto")
        self._dldm: DLDM = dldm.to(self._device).eval()
        self._time_base = time_base_of(checkpoint.facts)
        config = dldm.config
        about = {"encoder_hash": checkpoint.fact("encoder_hash"), "levels": list(config.fsq_levels)}
        about |= {"stride": config.temporal_stride, "cache_stride": 1, **self._time_base}
        self.facts = _facts(config.latent_steps, config.queries, **about)

    def of(self, record: Record) -> NDArray[np.int32]:
        """Return the codes [T, M * N] of an episode."""
        import torch

        from vw2_robot.models.dldm.shared_windows import lay_out
        from vw2_robot.pixels import to_model_range

        config = self._dldm.config
        pixels = np.empty((len(record), config.height, config.width, 3), np.uint8)
        for index in range(len(record)):
            read_frame(record.episode, index, pixels[index], aspect="stretch", decode="scaled")
        windows = make_windows(
            len(record),
            num_frames=config.num_frames,
            cache_stride=1,
            hz=record.episode.hz,
            temporal_stride=config.temporal_stride,
            **self._time_base,
        )
        codes = np.zeros((len(windows.start), config.latent_steps, config.queries), np.int32)
        for first in range(0, len(codes), BATCH):
            batch = slice(first, first + BATCH)
            layout = lay_out(windows.frame_ids[batch], stride=config.temporal_stride, cache_stride=1)
            video = to_model_range(torch.from_numpy(pixels[layout.frame_ids]).to(self._device))
            with torch.no_grad():
                found = self._dldm.window_indices(video, torch.from_numpy(layout.starts).to(self._device))
            codes[batch] = found.cpu().numpy()
        return _rows(len(record), windows.start, codes, windows.valid)


def _facts(latent_steps: int, codes: int, **about: Any) -> dict[str, Any]:
    """Return the description of the column, as JSON values."""
    text = (
        f"{LATENT_COLUMN}: at each frame the codes of the {latent_steps} latent steps that follow, {codes} codes a "
        f"step, one after the other, from a codebook of {int(np.prod(about['levels']))} codes; -1 where there is none"
    )
    return {"latent_steps": latent_steps, "codes_per_step": codes, **about, "text": text}


def _rows(length: int, start: NDArray[Any], codes: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return the codes [n, M, N] of windows as rows [T, M * N] at the frames where they begin."""
    rows = np.full((length, codes.shape[1] * codes.shape[2]), -1, np.int32)
    rows[start] = np.where(valid[..., None], codes.astype(np.int32), -1).reshape(len(start), -1)
    return rows
