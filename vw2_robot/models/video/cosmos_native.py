"""The weights of Cosmos-Predict2 as NVIDIA releases them: one .pt file with names of its own, in four variants.

Place in the flow: in place of `cosmos_folder.py` where `vdm.weights` names such a file, which the published code begins
with. Variants differ in what they were trained on, not in names, shapes or configuration, so only the name of the
released file tells them apart.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from vw2_robot.errors import InputError

from .cosmos_folder import fill, weight_files

# Parts of a native name and of that in diffusers, replaced in this order.
RENAMED = (
    ("t_embedder.1", "time_embed.t_embedder"),
    ("t_embedding_norm", "time_embed.norm"),
    ("blocks.", "transformer_blocks."),
    ("final_layer.adaln_modulation.", "norm_out."),
    ("adaln_modulation_self_attn.", "norm1."),
    ("adaln_modulation_cross_attn.", "norm2."),
    ("adaln_modulation_mlp.", "norm3."),
    ("self_attn", "attn1"),
    ("cross_attn", "attn2"),
    ("q_proj", "to_q"),
    ("k_proj", "to_k"),
    ("v_proj", "to_v"),
    ("output_proj", "to_out.0"),
    ("q_norm", "norm_q"),
    ("k_norm", "norm_k"),
    ("mlp.layer1", "ff.net.0.proj"),
    ("mlp.layer2", "ff.net.2"),
    ("x_embedder.proj.1", "patch_embed.proj"),
    ("final_layer.linear", "proj_out"),
)
MODULATION = re.compile(r"(norm\w+)\.([12])\.weight$")
# Counters of the training, positions that diffusers computes, and states of another library's layers.
NOT_WEIGHTS = re.compile(r"(^|\.)(accum_|pos_embedder\.)|_extra_state$")
RELEASED = re.compile(r"model-(480|720)p-(10|16)fps\.pt")
WIDTHS = {"480": 832, "720": 1280}
NUM_FRAMES = {"10": 61, "16": 93}


def load_native(module: nn.Module, file: Path) -> None:
    """Copy the weights of a native file into a `CosmosTransformer3DModel`.

    Args:
        module: is changed in place; its adapters stay as they are.
        file: .pt; only tensors are read from it, no other objects.

    Raises:
        InputError: the file cannot be read, or holds a model of another size.
    """
    fill(module, ((file, name, value) for name, value in _native_tensors(file)), file)


def stock_name(name: str) -> str:
    """Return the name in diffusers of a native weight."""
    name = name.removeprefix("net.")
    for native, stock in RENAMED:
        name = name.replace(native, stock)
    return MODULATION.sub(r"\1.linear_\2.weight", name)


def variant_of(path: Path) -> str:
    """Return a sentence that says which of the released variants the weights are, and how that is known.

    Args:
        path: a native file, or a folder in diffusers' layout. A folder is compared with the native files in it: one
            weight of each, bit for bit.
    """
    if path.is_file():
        named = RELEASED.fullmatch(path.name)
        return f"{path}: {_clips(named)}, by its name" if named else f"{path}: the name says no variant of Cosmos"
    last = _last_weight(path / "transformer")
    for file in sorted(path.glob("model-*.pt")):
        named = RELEASED.fullmatch(file.name)
        native = dict(_native_tensors(file))["proj_out.weight"] if named else None
        if named and last is not None and native is not None and torch.equal(native.float(), last.float()):
            return f"{path}: {_clips(named)}, as {file.name} in it"
    return (
        f"{path}: 480p or 720p, 10 or 16 fps; the files in diffusers' layout are the same for all of them but for the "
        "values. Copy model-480p-16fps.pt or the like into the folder, and it is compared"
    )


def _clips(named: re.Match[str]) -> str:
    side, fps = named.groups()
    return f"Cosmos-Predict2 of {NUM_FRAMES[fps]} frames of {side} x {WIDTHS[side]} at {fps} fps"


def _last_weight(folder: Path) -> Tensor | None:
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as opened:
            if "proj_out.weight" in opened.keys():  # noqa: SIM118 - no mapping
                found: Tensor = opened.get_tensor("proj_out.weight")
                return found
    return None


def _native_tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield stock name and value of every weight; pages of the file are read when a value is used.

    Raises:
        InputError: the file is damaged, or holds other objects than tensors.
    """
    try:
        weights = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{file} holds no weights that can be read ({reason}); copy it again") from error
    for name, value in weights.items():
        if not NOT_WEIGHTS.search(name):
            if not isinstance(value, Tensor):
                raise InputError(
                    f"{file} holds {name}, a {type(value).__name__}; expected the weights of Cosmos-Predict2"
                )
            yield stock_name(name), value
