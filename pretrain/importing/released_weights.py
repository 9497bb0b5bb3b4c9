"""Tensors between the published files and our checkpoints, in both directions and without loss.

Place in the flow: `torch.load(weights_only=True)` -> names and shapes compared with the table of `released_names.py` ->
our tensors. No file is unpickled: what is no tensor, number, text or plain container is refused.
"""

# C channels of a patch · n halvings of a patch's sides
from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vw2_robot.errors import InputError

from .released_names import CONSTANTS, WITHOUT_WEIGHTS, WRAPPERS, TensorLink

SHOWN = 5
"""names of each kind in a message"""


def read_published(file: Path) -> Any:
    """Return the content of a file that `torch.save` wrote, run no code from it, and leave large tensors on disk.

    Raises:
        InputError: it is missing or damaged, or holds anything but tensors and plain data.
    """
    if not file.is_file():
        raise InputError(f"{file} does not exist; docs/import.md lists the files and where they come from")
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # of every kind: the file may be anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"{file} cannot be read as tensors and plain data ({reason}); download it again. Files that need anything "
            "else are refused: reading them would run their code"
        ) from error


def read_tensors(file: Path, *, prefix: str, skip: str | None = None) -> dict[str, Tensor]:
    """Return the tensors of a published file by their bare names.

    Args:
        file: of weights, by name; or with them under `model`.
        prefix: that all names have, or none of them.
        skip: names that begin so belong to another file.

    Raises:
        InputError: it cannot be read, or holds no weights.
    """
    content = read_published(file)
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict) or not content:
        raise InputError(f"{file}: expected weights by name, found {type(content).__name__}")
    found = {}
    for name, value in content.items():
        bare = str(name)
        for wrapper in WRAPPERS:
            bare = bare.replace(wrapper, "")
        if skip is not None and bare.startswith(skip):
            continue
        bare = bare.removeprefix(prefix)
        if not re.search(WITHOUT_WEIGHTS, bare):
            found[bare] = value
    if strange := [name for name, value in found.items() if not isinstance(value, Tensor)]:
        raise InputError(f"{file}: {strange[0]} is no tensor; expected weights by name")
    return found


def check_tensors(file: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Compare names and shapes of a file with those of the table.

    Args:
        file: for the message.
        found: in the file, without constants.
        wanted: of the same names and shapes, without values.

    Raises:
        InputError: with the first differences.
    """
    missing = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted]
    shapes = [
        f"{name} {list(found[name].shape)} instead of {list(value.shape)}"
        for name, value in wanted.items()
        if name in found and found[name].shape != value.shape
    ]
    differences = [
        f"{len(names)} {what} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if differences:
        raise InputError(
            f"{file} is not what was published, of {len(wanted)} tensors: {'; '.join(differences)}; `vw2-import "
            "plan=true` prints all names and shapes"
        )


def take_constants(file: Path, found: dict[str, Tensor]) -> None:
    """Remove the constants of the published autoencoder from its tensors, after a comparison of their values.

    Raises:
        InputError: one has another value, so that the weights mean something else.
    """
    for name, values in CONSTANTS.items():
        value = found.pop(name, None)
        # They may have been rounded to bfloat16.
        if value is not None and not torch.allclose(value.flatten().float(), torch.tensor(values).float(), rtol=1e-2):
            raise InputError(f"{file}: {name} is {value.flatten()[:4].tolist()}, expected {list(values)}")


def constants(dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the constants as the published autoencoder stores them."""
    kinds = {"wavelets": dtype, "_arange": torch.int64, "patch_size_buffer": torch.int32}
    return {name: torch.tensor(values, dtype=kinds[name.rpartition(".")[2]]) for name, values in CONSTANTS.items()}


def to_ours(links: Iterable[TensorLink], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our tensors of published ones."""
    ours: dict[str, Tensor] = {}
    for link in links:
        value = _formed(_joined([theirs[name] for name in link.theirs]), link, back=False)
        ours |= zip(link.ours, value.chunk(len(link.ours)), strict=True)
    return ours


def to_theirs(links: Iterable[TensorLink], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return published tensors of ours, or tensors without values of such.

    Raises:
        InputError: one of theirs stands in two places of ours, and they have learned different values.
    """
    theirs: dict[str, Tensor] = {}
    for link in links:
        value = _formed(_joined([ours[name] for name in link.ours]), link, back=True)
        for name, part in zip(link.theirs, value.chunk(len(link.theirs)), strict=True):
            if name in theirs and not (part.is_meta or torch.equal(part, theirs[name])):
                raise InputError(
                    f"{link.ours[0]} was trained apart from the layer that the published {name} is too; no file of "
                    "that layout can hold both"
                )
            theirs[name] = part
    return theirs


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _formed(value: Tensor, link: TensorLink, *, back: bool) -> Tensor:
    """Return a tensor in the other side's form; `back` leads to theirs."""
    if link.form == "flipped":
        return value.flip(0)
    if link.form == "patches":
        return value.flatten(1) if back else value.unflatten(1, (-1, 1, 2, 2))
    if link.form == "matrix" and value.ndim > 1:
        return value[:, :, None, None, None] if back else value.flatten(1)
    if link.form == "patched" and value.ndim > 1:
        order, scale = bands(value.shape[1])
        return value[:, order.argsort()] * scale if back else value[:, order] / scale
    if link.form == "unpatched":
        order, scale = bands(len(value))
        return value[order.argsort()] / scale if back else value[order] * scale
    return value


def bands(channels: int) -> tuple[Tensor, float]:
    """Return the place of each of our wavelet bands among the published ones, and how much larger ours are.

    Both split pixels, then all bands again. Theirs count the last split first, each with time, height and width
    together, and colors last; ours colors first, then time, height and width, each with all splits. Theirs are means
    instead of an orthonormal transform: an eighth at patches of 4, which is exact in floating point.
    """
    halvings = round(math.log2(channels / 3) / 3)
    theirs = torch.arange(channels).view(*[2] * (3 * halvings), 3)
    axes = [3 * split + axis for axis in range(3) for split in range(halvings)]
    return theirs.permute(3 * halvings, *axes).flatten(), math.sqrt(channels / 3)
