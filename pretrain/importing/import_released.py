"""Program `vw2-import`: the published weights and codes of VideoWorld 2 as folders of this package, and back.

    vw2-import plan=true
    vw2-import path=checkpoints/VideoWorld2_dLDM_2B vae=checkpoints/Cosmos-Predict2-2B-Video2World out=runs/released
    vw2-import reverse=true path=runs/released out=published

Modules are those of the preset `release`, whose shapes are the published ones; docs/import.md names the files. What is
written is a checkpoint of the dLDM stage (with the video model where its file is there) and, of the codes, a latent
cache. Weights keep the precision of their files; those of the autoencoder are held in float32, which holds them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vw2_robot.checkpoint import load_checkpoint, save_checkpoint
from vw2_robot.command_line import entry_points
from vw2_robot.command_line.config_tree import config_from, config_tree
from vw2_robot.command_line.keys import defaults_of
from vw2_robot.data.sources.object_arrays import load_pickle
from vw2_robot.errors import InputError
from vw2_robot.models.dldm.config import DLDMConfig
from vw2_robot.models.dldm.dldm import DLDM
from vw2_robot.models.video.config import CodecConfig, VDMConfig
from vw2_robot.models.video.vdm import VDM
from vw2_robot.models.video.video_codec import WanCodec, build_codec
from vw2_robot.storage.files import atomic_write

from ..config import make_geometry
from ..dldm_modules import dldm_folder, encoder_hash
from .config import ImportConfig
from .released_codes import read_released_codes, write_latents
from .released_names import AUTOENCODER, CODES, NEGATIVE, TRANSFORMER, TensorLink, dldm_links, transformer_links
from .released_weights import (
    check_tensors,
    constants,
    read_tensors,
    take_constants,
    to_ours,
    to_theirs,
)

PREFIX = "network."
"""of all names in the autoencoder's file"""
IN_TRAINING = "ldm_net."
"""before that prefix, in a file that holds everything"""


class ReleasedLayout(NamedTuple):
    """The sizes of the modules that the weights go into."""

    dldm: DLDMConfig
    vdm: VDMConfig
    codec: CodecConfig


class Names(NamedTuple):
    """Our tensors without values, and the links of both files to them."""

    ours: dict[str, Tensor]
    autoencoder: list[TensorLink]
    transformer: list[TensorLink]


def released_layout() -> ReleasedLayout:
    """Return the sizes of the preset `release`."""
    values = defaults_of("pretrain", "model=release")
    return ReleasedLayout(
        config_from(DLDMConfig, values["dldm"]),
        config_from(VDMConfig, values["vdm"]),
        config_from(CodecConfig, values["codec"]),
    )


@cache
def names_of(layout: ReleasedLayout) -> Names:
    """Return names and shapes of all weights on both sides; no memory is taken for values."""
    with torch.device("meta"):
        modules = {"dldm": DLDM(layout.dldm), "vdm": _vdm(layout)}
    ours = {f"{part}.{name}": value for part, module in modules.items() for name, value in module.state_dict().items()}
    return Names(ours, dldm_links(layout.dldm, ours), transformer_links(layout.vdm, ours))


def _vdm(layout: ReleasedLayout) -> VDM:
    return VDM(layout.vdm, make_geometry(layout.dldm, layout.vdm, layout.codec), layout.codec)


def main(config: ImportConfig) -> None:
    """Console script `vw2-import`."""
    if config.plan:
        print("\n".join(plan_lines(released_layout())))
        return
    assert config.path is not None
    assert config.out is not None
    if config.reverse:
        files = write_published(Path(config.path), Path(config.out))
        print(f"{config.out}: {', '.join(file.name for file in files)}")
    else:
        import_released(Path(config.path), Path(config.out), released_layout(), vae=config.vae)


def plan_lines(layout: ReleasedLayout) -> Iterator[str]:
    """Yield a line for each tensor of an import, and the sums; nothing is read or allocated."""
    names = names_of(layout)
    for file, prefix, links in ((AUTOENCODER, PREFIX, names.autoencoder), (TRANSFORMER, "", names.transformer)):
        theirs = to_theirs(links, names.ours)
        targets: dict[str, list[str]] = {}
        for link in links:
            for name in link.theirs:
                targets.setdefault(name, []).extend(link.ours)
        for name, value in theirs.items():
            yield f"{file}  {prefix}{name}  {list(value.shape)}  {2 * value.numel()} B  -> {', '.join(targets[name])}"
        count = sum(value.numel() for value in theirs.values())
        yield f"{file}: {len(theirs)} tensors, {count:,} numbers, {2 * count / 2**30:.2f} GiB in bfloat16"
    dldm = sum(value.numel() for name, value in names.ours.items() if name.startswith("dldm."))
    vdm = sum(value.numel() for name, value in names.ours.items() if name.startswith("vdm."))
    yield (
        f"written: dldm {dldm:,} numbers, {4 * dldm / 2**30:.2f} GiB in float32; vdm {vdm:,} numbers, "
        f"{2 * vdm / 2**30:.2f} GiB in bfloat16; and the VAE"
    )


def import_released(path: Path, out: Path, layout: ReleasedLayout, *, vae: str | None = None) -> None:
    """Write the checkpoint `out`/dldm and, where codes are there, the latent cache `out`/latents.

    Args:
        path: folder with the published files; the autoencoder's must be there.
        out: the run folder.
        layout: sizes of the modules.
        vae: folder in diffusers' layout; needed where the transformer's file is there.

    Raises:
        InputError: a file is missing or damaged, or holds other weights than the table; nothing is written then.
    """
    names = names_of(layout)
    # 1. Everything is read and compared before anything is written.
    autoencoder = _published(path / AUTOENCODER, names.autoencoder, names.ours, prefix=PREFIX)
    codes = read_released_codes(path / CODES, layout.dldm) if (path / CODES).is_file() else None
    transformer = None
    if (path / TRANSFORMER).is_file():
        if vae is None:
            raise InputError(
                f"{path / TRANSFORMER} is the video model, which renders with a VAE: give vae=DIR, a folder in "
                "diffusers' layout with vae/ in it, such as nvidia/Cosmos-Predict2-2B-Video2World"
            )
        transformer = _published(path / TRANSFORMER, names.transformer, names.ours, prefix="")
    # 2. The dLDM in float32, as every program builds it: its identity is that of these values.
    ours = to_ours(names.autoencoder, autoencoder)
    dldm = DLDM(layout.dldm)
    dldm.load_state_dict(_part(ours, "dldm."))
    modules: dict[str, nn.Module] = {"dldm": dldm}
    precision = {AUTOENCODER: _precision(autoencoder)}
    # 3. The video model in the precision of its file, without a second copy in memory.
    if transformer is not None:
        assert vae is not None
        ours |= to_ours(names.transformer, transformer)
        ours["vdm.projection.null"] = _negative(path / NEGATIVE, names.ours["vdm.projection.null"])
        with torch.device("meta"):
            vdm = _vdm(layout)
        vdm.load_state_dict(_part(ours, "vdm."), assign=True)
        codec = build_codec(layout.codec)
        assert isinstance(codec, WanCodec)
        codec.load_folder(vae)
        modules |= {"vdm": vdm, "codec": codec}
        precision[TRANSFORMER] = _precision(transformer)
    identity = encoder_hash(dldm)
    save_checkpoint(
        out / "dldm",
        kind="dldm",
        config=config_tree(layout.dldm),
        modules=modules,
        facts={
            "encoder_hash": identity,
            "vdm": None if transformer is None else config_tree(layout.vdm),
            "codec": None if transformer is None else config_tree(layout.codec),
            "time_base": {"target_hz": None, "gap_seconds": None},
            "aids": [],
            "control_grayscale": True,
            "published_precision": precision,
        },
    )
    print(f"{out / 'dldm'}: encoder {identity[:8]}, {'with' if transformer is not None else 'without'} video model")
    if codes is not None:
        write_latents(out / "latents", codes, config=layout.dldm, encoder_hash=identity)
        print(f"{out / 'latents'}: {len(codes)} videos, {sum(map(len, codes.values()))} clips")


def _published(file: Path, links: list[TensorLink], ours: Mapping[str, Tensor], *, prefix: str) -> dict[str, Tensor]:
    """Return the tensors of a published file after all comparisons."""
    whole = bool(prefix)
    found = read_tensors(file, prefix=prefix, skip=None if whole else IN_TRAINING)
    if whole:
        take_constants(file, found)
    check_tensors(file, found, to_theirs(links, ours))
    return found


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _precision(tensors: Mapping[str, Tensor]) -> str:
    """Return the widest precision of these tensors, as a name."""
    return str(max((value.dtype for value in tensors.values()), key=lambda dtype: dtype.itemsize)).rpartition(".")[2]


def _negative(file: Path, null: Tensor) -> Tensor:
    """Return the context in place of dropped codes: the embedding of the negative prompt, or zeros without its file.

    Args:
        file: `default_neg.pickle`, a list with one array [tokens, width].
        null: of the shape of the context, which the embedding is padded to.

    Raises:
        InputError: the file holds anything but plain data, or an embedding of another shape.
    """
    context = torch.zeros(null.shape)
    if not file.is_file():
        return context
    content = load_pickle(file)
    first = content[0] if isinstance(content, list | tuple) and content else content
    tokens, width = null.shape
    if not isinstance(first, np.ndarray) or first.dtype.kind != "f" or first.ndim != 2 or first.shape[1] != width:
        kind = f"{first.dtype} {first.shape}" if isinstance(first, np.ndarray) else type(first).__name__
        raise InputError(f"{file}: expected a list with an array of numbers [tokens, {width}], found {kind}")
    if len(first) > tokens:
        raise InputError(f"{file}: {len(first)} tokens, the context has {tokens}")
    context[: len(first)] = torch.from_numpy(np.array(first, dtype=np.float32))
    return context


def write_published(path: Path, out: Path) -> list[Path]:
    """Write a checkpoint of the dLDM stage under the published names, and return the files.

    Args:
        path: the checkpoint or its run folder.
        out: the folder for the files.

    Raises:
        InputError: it has another layout than the published one, or weights that no published file holds.
    """
    checkpoint = load_checkpoint(dldm_folder(path), kind="dldm")
    if checkpoint.facts.get("vdm") is None:
        raise InputError(f"{checkpoint.path} has no video model, and the published autoencoder holds its projection")
    with checkpoint.building():
        layout = ReleasedLayout(
            config_from(DLDMConfig, checkpoint.config),
            config_from(VDMConfig, checkpoint.facts["vdm"]),
            config_from(CodecConfig, checkpoint.facts["codec"]),
        )
        _check_layout(checkpoint.path, layout)
        names = names_of(layout)
    precision: dict[str, Any] = dict(checkpoint.facts.get("published_precision", {}))
    files = []
    for file, prefix, links in ((AUTOENCODER, PREFIX, names.autoencoder), (TRANSFORMER, "", names.transformer)):
        dtype = getattr(torch, str(precision.get(file, "bfloat16")))
        theirs = {name: value.to(dtype) for name, value in to_theirs(links, checkpoint.weights).items()}
        if file == AUTOENCODER:
            theirs |= constants(dtype)
        out.mkdir(parents=True, exist_ok=True)
        with atomic_write(out / file) as temporary:
            torch.save({f"{prefix}{name}": value.contiguous() for name, value in theirs.items()}, temporary)
        files.append(out / file)
    return files


def _check_layout(path: Path, layout: ReleasedLayout) -> None:
    """Refuse a checkpoint whose modules are of other kinds than the published ones; sizes may differ."""
    kinds: dict[str, dict[str, bool | str]] = {
        "dldm": {"released_decoder": True, "post_quant": "conv", "code_attention": "lowest", "z_norm": "none"},
        "dldm.stem": {"factorized": True, "patch": "haar"},
        "vdm": {"projection": "convolution", "control": "released"},
    }
    different = [
        f"{part}.{name}={found}"
        for part, fields in kinds.items()
        for name, wanted in fields.items()
        if (found := attrgetter(f"{part}.{name}")(layout)) != wanted
    ]
    if different:
        raise InputError(
            f"{path} has another layout than the published weights ({', '.join(different)}); only what was imported, "
            "or trained with model=release, can be written under their names"
        )


if __name__ == "__main__":
    entry_points.import_.main()
