"""Reading and writing of weight folders in the layout of diffusers, such as those of Cosmos-Predict2-2B and Wan.

    transformer/  config.json, *.safetensors      CosmosTransformer3DModel or WanTransformer3DModel
    vae/          config.json, *.safetensors      AutoencoderKLWan
    scheduler/    scheduler_config.json           FlowMatchEulerDiscreteScheduler

Place in the flow: before the first step of a run that starts from pretrained weights, and after the last. Nothing is
downloaded and no pickle is read; further parts of a folder (text encoder, tokenizer) are ignored. The folder must have
the size that the configuration describes, so that a checkpoint alone can rebuild its model without the folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vw2_robot.errors import InputError
from vw2_robot.storage.allocation import AllocationLimit
from vw2_robot.storage.files import atomic_folder, read_json

from .cosmos import build_scheduler, plain_state


def load_weights(module: nn.Module, path: str | Path, part: str, *, section: str) -> dict[str, Any]:
    """Copy the weights of the stock model in `path`/`part` into `module`.

    Adapters of `module` stay as they are. Weights are converted to the precision of `module`.

    Args:
        module: a model of diffusers, changed in place.
        path: the folder.
        part: its sub-folder, "transformer" or "vae".
        section: section of the configuration that describes the size, for messages.

    Returns:
        The stock model's configuration.

    Raises:
        InputError: no such folder, a model of another size, weights missing or unreadable.
    """
    folder = Path(path) / part
    if not (folder / "config.json").is_file():
        raise InputError(
            f"{folder} holds no config.json; {section}.weights must name a folder in diffusers' layout, such as a copy "
            f"of nvidia/Cosmos-Predict2-2B-Video2World or Wan-AI/Wan2.1-T2V-1.3B-Diffusers, with {part}/ in it"
        )
    kind: Any = type(module)
    facts = _same_size(module, kind, folder, section=section)
    # Read here and not by `from_pretrained`, which builds a second model, in float32 by default: with this the weights
    # are in memory once, beside pages of the files that the system may drop.
    fill(module, ((file, *named) for file in weight_files(folder) for named in _tensors(file, folder)), folder)
    return facts


def fill(module: nn.Module, tensors: Iterable[tuple[Path, str, Tensor]], source: Path) -> None:
    """Copy tensors into the weights of a model, all but adapters.

    Args:
        module: a model of diffusers, changed in place.
        tensors: file, stock name and value of each.
        source: folder or file of all of them, for messages.

    Raises:
        InputError: a tensor is unknown or of another size, or one is missing.
    """
    wanted = plain_state(module)
    missing = set(wanted)
    for file, name, value in tensors:
        if name not in missing or value.shape != wanted[name].shape:
            raise InputError(f"{file} holds {name} {list(value.shape)}, which does not fit the model that is described")
        with torch.no_grad():
            wanted[name].copy_(value)
        missing.remove(name)
    if missing:
        raise InputError(f"{source} does not hold all weights of the model: {sorted(missing)[:5]} are missing")


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a model of diffusers: one, or those that its index names.

    Raises:
        InputError: there is neither, or the index is damaged.
    """
    whole = folder / "diffusion_pytorch_model.safetensors"
    index = folder / f"{whole.name}.index.json"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        raise InputError(
            f"{folder} cannot be read: it holds neither {whole.name} nor {index.name}; copy the folder again"
        )
    places = read_json(index, cure="copy the folder again").get("weight_map")
    names = sorted(map(str, set(places.values()))) if isinstance(places, dict) else []
    # Files of this folder alone: an index may come from anywhere.
    if not names or any(Path(name).name != name or not (folder / name).is_file() for name in names):
        raise InputError(f"{index} names no files of this folder: {names[:3]}; copy the folder again")
    return [folder / name for name in names]


def _tensors(file: Path, folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield name and value of every tensor of a file, one after the other.

    Raises:
        InputError: the file is damaged.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - no mapping
                yield name, opened.get_tensor(name)
    except (OSError, SafetensorError, RuntimeError, ValueError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"the weights in {folder} cannot be read ({reason}); copy the folder again") from error


def _same_size(module: Any, kind: Any, folder: Path, *, section: str) -> dict[str, Any]:
    """Return the configuration in `folder`; refuse one that describes other weights than those of `module`."""
    limit = AllocationLimit.like(plain_state(module), what=f"{folder}/config.json")
    try:
        described = kind.load_config(str(folder), local_files_only=True)
        if (named := described.get("_class_name", kind.__name__)) != kind.__name__:
            raise InputError(
                f"{folder} holds a {named}, the configuration describes a {kind.__name__}; vdm.family decides which, "
                "configs/model has a preset for each"
            )
        with limit, torch.device("meta"):
            stock = kind.from_config(described)
    except InputError:
        raise
    except Exception as error:  # of many kinds: the library gets unchecked values
        raise InputError(f"{folder}/config.json describes no {kind.__name__}: {error}") from error
    facts = dict(stock.config)
    # rope_scale changes no shape, so it is compared by its value.
    scales = tuple(module.config.get("rope_scale") or ())
    stock_scales = tuple(facts.get("rope_scale") or ())
    found, wanted = ({k: tuple(v.shape) for k, v in s.items()} for s in (stock.state_dict(), plain_state(module)))
    for name, mine, theirs in (
        *((k, wanted.get(k), found.get(k)) for k in sorted(found.keys() | wanted.keys())),
        ("rope_scale", scales, stock_scales),
    ):
        if mine != theirs:
            raise InputError(
                f"{folder} holds a model of another size than {section} describes: {name} is {theirs} there, {mine} "
                "here; configs/model has the numbers of the released models: paper.yaml (Cosmos-Predict2-2B), "
                "cosmos25.yaml, wan21.yaml, wan22.yaml"
            )
    return facts


def save_weights(
    module: nn.Module, path: str | Path, part: str, *, options: Mapping[str, Any] | None = None, merged: bool = True
) -> None:
    """Write `module` as `path`/`part`, readable by stock `from_pretrained`, under a temporary name first.

    Args:
        module: a model of diffusers.
        path: the folder.
        part: its sub-folder.
        options: replace entries of the configuration that is written.
        merged: add adapters to the weights; else the base weights are written, and the adapters beside them as stock
            `load_lora_adapter` reads them.
    """
    kind: Any = type(module)
    with torch.device("meta"):
        stock = kind.from_config({**module.config, **(options or {})})  # type: ignore[dict-item]
    stock.load_state_dict(plain_state(module, merged=merged), assign=True)
    with atomic_folder(Path(path) / part) as folder:
        stock.save_pretrained(str(folder))
        if not merged and hasattr(module, "peft_config"):
            module.save_lora_adapter(str(folder))  # type: ignore[operator]


def save_scheduler(path: str | Path, *, shift: float | None) -> None:
    """Write scheduler/ with the noise levels of Cosmos-Predict2, 80 to 0.002 in Karras spacing, or Wan's shifted ones.

    Args:
        path: the folder.
        shift: `VDMConfig.sampling_shift`.
    """
    scheduler = build_scheduler()
    if shift is None:
        scheduler.register_to_config(
            sigma_max=80.0, sigma_min=0.002, sigma_data=1.0, use_karras_sigmas=True, final_sigmas_type="sigma_min"
        )
    else:
        scheduler.register_to_config(shift=shift)
    with atomic_folder(Path(path) / "scheduler") as folder:
        scheduler.save_pretrained(str(folder))
