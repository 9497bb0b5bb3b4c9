"""Reading and writing of weight folders in the layout of diffusers, such as the one of Cosmos-Predict2-2B.

    transformer/  config.json, *.safetensors      CosmosTransformer3DModel
    vae/          config.json, *.safetensors      AutoencoderKLWan
    scheduler/    scheduler_config.json           FlowMatchEulerDiscreteScheduler

Place in the flow: before the first step of a run that starts from pretrained weights, and after the last. Nothing is
downloaded and no pickle is read; further parts of a folder (text encoder, tokenizer) are ignored. The folder must have
the size that the configuration describes, so that a checkpoint alone can rebuild its model without the folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vw2_robot.errors import InputError, require
from vw2_robot.storage.allocation import AllocationLimit
from vw2_robot.storage.files import atomic_folder

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
        MissingExtraError: accelerate is not installed.
    """
    folder = Path(path) / part
    if not (folder / "config.json").is_file():
        raise InputError(
            f"{folder} holds no config.json; {section}.weights must name a folder in diffusers' layout, such as a copy "
            f"of nvidia/Cosmos-Predict2-2B-Video2World, with {part}/ in it"
        )
    kind: Any = type(module)
    facts = _same_size(module, kind, folder, section=section)
    # With accelerate diffusers fills an empty model, so the weights are held twice and not three times. The Cosmos
    # transformer, which keeps a part in float32, is not loaded at all without it.
    require("accelerate", extra="cosmos")
    try:
        loaded, report = kind.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # of many kinds: those of diffusers, accelerate and safetensors
        raise InputError(f"the weights in {folder} cannot be read ({error}); copy the folder again") from error
    found = loaded.state_dict()
    # A tensor that no file of a sharded folder holds stays on the meta device without being reported as missing.
    lost = {*report["missing_keys"], *(name for name, value in found.items() if value.is_meta)}
    if wrong := sorted({*lost, *report["unexpected_keys"]}):
        raise InputError(f"{folder} does not hold exactly the weights that its config.json describes: {wrong[:5]}")
    with torch.no_grad():
        for name, value in plain_state(module).items():
            value.copy_(found[name])
    return facts


def _same_size(module: Any, kind: Any, folder: Path, *, section: str) -> dict[str, Any]:
    """Return the configuration in `folder`; refuse one that describes other weights than those of `module`."""
    limit = AllocationLimit.like(plain_state(module), what=f"{folder}/config.json")
    try:
        with limit, torch.device("meta"):
            stock = kind.from_config(kind.load_config(str(folder), local_files_only=True))
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
                "here; configs/model/paper.yaml has the numbers of Cosmos-Predict2-2B"
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


def save_scheduler(path: str | Path) -> None:
    """Write scheduler/ with the noise levels of Cosmos-Predict2: 80 to 0.002, Karras spacing."""
    scheduler = build_scheduler()
    scheduler.register_to_config(
        sigma_max=80.0, sigma_min=0.002, sigma_data=1.0, use_karras_sigmas=True, final_sigmas_type="sigma_min"
    )
    with atomic_folder(Path(path) / "scheduler") as folder:
        scheduler.save_pretrained(str(folder))
