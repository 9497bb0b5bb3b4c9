"""The state of an optimizer of sharded weights on disk: each rank writes its shards, any number of ranks reads them.

The format is that of PyTorch's distributed checkpoints in safetensors files, never its default, a pickle. Names are
"<number of the parameter>.<key of AdamW>", as in the optimizer.safetensors of unsharded runs.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vw2_robot.errors import InputError


def _library() -> Any:
    """Return PyTorch's module of distributed checkpoints, whose import takes seconds."""
    from torch.distributed import checkpoint

    return checkpoint


def write_shards(state: Mapping[str, Tensor], folder: Path) -> None:
    """Write the shards of all ranks into a folder; all ranks must call it.

    Args:
        state: sharded tensors by name; a scalar counts as equal on all ranks.
        folder: empty or not there.
    """
    # The format has no tensors without an axis.
    shaped = {name: value.reshape(1) if value.ndim == 0 else value for name, value in state.items()}
    with _quiet():
        library = _library()
        library.save(shaped, storage_writer=library.HuggingFaceStorageWriter(str(folder), save_distributed=True))
    dist.barrier()


def shapes_of(folder: Path, *, cure: str) -> dict[str, torch.Size]:
    """Return the shape of every tensor that a folder of shards holds.

    Raises:
        InputError: a file is damaged.
    """
    with _reading(folder, cure=cure):
        metadata = _library().HuggingFaceStorageReader(str(folder)).read_metadata()
        return {name: value.size for name, value in metadata.state_dict_metadata.items()}


def read_shards(into: dict[str, Tensor], folder: Path, *, cure: str) -> None:
    """Fill tensors, sharded or not, from a folder of shards; all ranks must call it.

    Args:
        into: tensors of the stored shapes by name; changed in place.
        folder: from `write_shards`, whatever the number of ranks was.
        cure: what to do, for the message.

    Raises:
        InputError: a file is missing or damaged.
    """
    with _reading(folder, cure=cure), _quiet():
        library = _library()
        library.load(into, storage_reader=library.HuggingFaceStorageReader(str(folder)))


@contextmanager
def _reading(folder: Path, *, cure: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # of safetensors, json, and the planner of PyTorch
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise InputError(f"{folder} cannot be read ({reason}); {cure}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out that a single process reads by itself, which is what is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        logger = logging.getLogger("torch.distributed.checkpoint")
        before = logger.level
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(before)
