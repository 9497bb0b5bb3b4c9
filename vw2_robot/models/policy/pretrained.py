"""Loading of a language model or vision-language model of transformers, and rebuilding it from a checkpoint.

Place in the flow: under `backbone.py`. `read_pretrained` loads weights, tokenizer and (for a VLM) image processor from
a folder or a hub id and describes them in plain JSON. That description is saved in the policy's checkpoint as
backbone.json, and `rebuild_pretrained` makes the same network from it, without the folder and without weights. Only
safetensors weights are read, and no code that comes with a model is ever run.

Not used for the embedded default, a small Llama that is built from its sizes.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from vw2_robot.errors import InputError

Kind = Literal["causal", "image_text"]
# Attention of PyTorch itself. Flash attention is left out: where it is not installed, transformers fetches a kernel.
KERNELS = ("eager", "sdpa", "flex_attention")
MAX_LAYERS = 10_000


class LibraryTokenizer:
    """A tokenizer.json with the interface of `Tokenizer`; special strings in an instruction count as plain text.

    Args:
        content: of tokenizer.json.
        bos: token that begins every sequence; None where the model has none.
        pad: token for padding.
    """

    def __init__(self, content: str, *, bos: int | None, pad: int) -> None:
        from tokenizers import Tokenizer

        self.content = content
        self.bos = bos
        self.pad = pad
        self.start: tuple[int, ...] = () if bos is None else (bos,)
        self._tokenizer = Tokenizer.from_str(content)
        self._tokenizer.encode_special_tokens = True

    @classmethod
    def from_transformers(cls, tokenizer: Any, weights: str) -> LibraryTokenizer:
        """Take over the tokenizer that transformers loaded for the model `weights`.

        Raises:
            InputError: it has no tokenizer.json.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise InputError(
                f"policy.backbone.weights={weights} has no tokenizer.json; convert its tokenizer to a fast one"
            )
        # Padding is masked out, so any token will do for a model without one of its own.
        known = [tokenizer.pad_token_id, tokenizer.eos_token_id, 0]
        pad = next(int(token) for token in known if token is not None)
        bos = tokenizer.bos_token_id
        return cls(tokenizer.backend_tokenizer.to_str(), bos=None if bos is None else int(bos), pad=pad)

    def encode(self, text: str, *, limit: int) -> list[int]:
        """Return the first `limit` tokens of the lower-cased, stripped text."""
        ids: list[int] = self._tokenizer.encode(text.strip().lower(), add_special_tokens=False).ids
        return ids[:limit]

    def describe(self) -> dict[str, Any]:
        """Return the arguments that rebuild it, for backbone.json."""
        return {"tokenizer_json": self.content, "bos": self.bos, "pad": self.pad}


@dataclass(frozen=True)
class Pretrained:
    """A transformers model, its tokenizer, its image processor (VLM only), and the description that rebuilds them."""

    model: nn.Module
    tokenizer: LibraryTokenizer
    image_processor: Any | None
    description: dict[str, Any]


def read_pretrained(weights: str, *, kind: Kind) -> Pretrained:
    """Load a model in float32, with the class that transformers has for it.

    Args:
        weights: a folder or a hub id.
        kind: "causal" for a language model, "image_text" for a vision-language model.

    Raises:
        InputError: there is no such model, it is not of this kind, or a file is missing or unreadable.
    """
    import transformers

    loader = transformers.AutoModelForCausalLM if kind == "causal" else transformers.AutoModelForImageTextToText
    folder = str(Path(weights).expanduser()) if Path(weights).expanduser().exists() else weights
    try:
        values, _ = transformers.PretrainedConfig.get_config_dict(folder)
        _refuse_kernels(values, where=f"policy.backbone.weights={weights}")
        # False, not None: with None transformers asks on standard input, and runs the code after a "y".
        model = loader.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False)
        processor = None if kind == "causal" else _image_processor(folder)
    except (OSError, ValueError, ImportError) as error:  # absent, private, unreachable, of another kind, a bad file
        wanted = "language model" if kind == "causal" else "vision-language model"
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"policy.backbone.weights={weights} cannot be loaded as a {wanted} ({reason}); give a folder with "
            "config.json, model.safetensors and tokenizer.json, or a hub id"
        ) from error
    library_tokenizer = LibraryTokenizer.from_transformers(tokenizer, weights)
    description = {
        "kind": kind,
        "transformers": transformers.__version__,
        "config": {k: v for k, v in model.config.to_dict().items() if k not in ("_name_or_path", "auto_map")},
        "tokenizer": library_tokenizer.describe(),
        "image_processor": None if processor is None else json.loads(processor.to_json_string()),
    }
    # Through JSON at once, so that the description is the same as the one in a checkpoint.
    return Pretrained(model, library_tokenizer, processor, json.loads(json.dumps(description, default=str)))


def rebuild_pretrained(description: dict[str, Any]) -> Pretrained:
    """Build the network of a description with arbitrary weights, which the checkpoint's weights then replace.

    Raises:
        InputError: the description was written by a later major version of transformers than is installed, or names
            code that is not part of it.
    """
    import transformers

    # The description may come from a downloaded file, so it is checked before transformers gets it.
    for key, value in _entries(description):
        if key == "auto_map":
            raise InputError(
                "backbone.json names code of its own (auto_map), which is never run; use a model that transformers "
                "knows without it"
            )
        if "layer" in key and isinstance(value, int) and value > MAX_LAYERS:  # transformers lists them by name first
            raise InputError(f"backbone.json: {key}={value}, expected at most {MAX_LAYERS}")
    _refuse_kernels(description, where="backbone.json")
    here = transformers.__version__
    there = str(description["transformers"])
    if int(here.split(".")[0]) < int(there.split(".")[0]):
        raise InputError(
            f"the policy's language model was described by transformers {there}, whose configurations transformers "
            f'{here} misreads; pip install "transformers>={there.split(".")[0]}"'
        )
    values = {key: value for key, value in description["config"].items() if key not in ("model_type", "dtype")}
    config = transformers.AutoConfig.for_model(description["config"]["model_type"], **values)
    causal = description["kind"] == "causal"
    loader: Any = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForImageTextToText
    model = loader.from_config(config, dtype=torch.float32, trust_remote_code=False)
    stored = description["tokenizer"]
    tokenizer = LibraryTokenizer(stored["tokenizer_json"], bos=stored["bos"], pad=stored["pad"])
    processor = None
    if not causal:
        # transformers builds image processors from files alone.
        with tempfile.TemporaryDirectory() as folder:
            for name, content in (("preprocessor_config", description["image_processor"]), ("config", values)):
                content = content | ({"model_type": config.model_type} if name == "config" else {})
                (Path(folder) / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
            processor = _image_processor(folder)
    return Pretrained(model, tokenizer, processor, description)


def _image_processor(folder: str) -> Any:
    """Load the model's image processor, in its version without torchvision, which needs one exact release of torch."""
    import transformers

    loader: Any = transformers.AutoImageProcessor
    processor = loader.from_pretrained(folder, use_fast=False, trust_remote_code=False)
    if hasattr(processor, "do_image_splitting"):
        processor.do_image_splitting = False  # one view of one image; crops would multiply the prompt's length
    return processor


def _refuse_kernels(values: Any, *, where: str) -> None:
    """Refuse a configuration that names an attention (or other) kernel to be fetched from a hub and run.

    Raises:
        InputError: an implementation that is not part of PyTorch.
    """
    for key, value in _entries(values):
        if key.removesuffix("_internal").endswith("_implementation"):
            names = value.values() if isinstance(value, dict) else [value]
            if strange := [name for name in names if name is not None and name not in KERNELS]:
                raise InputError(
                    f"{where} asks for {key}={strange[0]!r}; code from elsewhere is never run, so only "
                    f"{', '.join(KERNELS)} are possible: take {key} out of its config.json"
                )


def _entries(values: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key with its value, at any depth."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield str(key), value
            yield from _entries(value)
    elif isinstance(values, list):
        for value in values:
            yield from _entries(value)
