"""One checkpoint format for all stages: a folder of JSON and safetensors, never a pickle.

    config.json             format_version, kind ("vdm", "dldm", "policy"), the model's config, and facts worth keeping
    model.safetensors       weights; names are "<module>.<parameter>"
    stats.json, tokens.json policies only: action statistics, latent vocabulary (interfaces specification section 7)
    optimizer.safetensors, training.json   only while a run can be resumed

A folder is written under a temporary name and renamed, so a folder that exists is complete. A checkpoint alone rebuilds
its model. A run directory may be given wherever a checkpoint is expected: its file `latest` names the last one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vw2_robot.errors import InputError

FORMAT_VERSION = 1
TORCH_TENSORS = {"format": "pt"}
"""metadata of a safetensors file: transformers, diffusers and the Hub refuse or misread one without it"""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read from disk. `weights` are on the CPU; `files` holds the further JSON files by name."""

    path: Path
    kind: str
    config: dict[str, Any]
    facts: dict[str, Any]
    weights: dict[str, Tensor]
    files: dict[str, dict[str, Any]]

    def load_into(self, **modules: nn.Module) -> None:
        """Copy the weights of each named module, exactly.

        Raises:
            InputError: names missing, unexpected and wrongly shaped parameters.
        """
        for name, module in modules.items():
            found = {key[len(name) + 1 :]: value for key, value in self.weights.items() if key.startswith(name + ".")}
            wanted = module.state_dict()
            missing, unexpected = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
            shapes = [k for k in wanted.keys() & found.keys() if wanted[k].shape != found[k].shape]
            if missing or unexpected or shapes:
                raise InputError(
                    f"checkpoint {self.path} does not fit the module '{name}' that its config describes: "
                    f"missing {missing[:5]}, unexpected {unexpected[:5]}, other shape {sorted(shapes)[:5]}"
                )
            module.load_state_dict(found)


def save_checkpoint(
    path: Path,
    *,
    kind: str,
    config: Mapping[str, Any],
    modules: Mapping[str, nn.Module],
    facts: Mapping[str, Any] | None = None,
    files: Mapping[str, Mapping[str, Any]] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write a complete checkpoint folder at `path`, replacing one that is there. `files` become `<name>.json`."""
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    weights = {
        f"{name}.{key}": value.detach().cpu().contiguous().clone()
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    save_file(weights, temporary / "model.safetensors", TORCH_TENSORS)
    description = {"format_version": FORMAT_VERSION, "kind": kind, "config": dict(config), "facts": dict(facts or {})}
    _write_json(temporary / "config.json", description)
    for name, content in (files or {}).items():
        _write_json(temporary / f"{name}.json", content)
    if optimizer is not None:
        save_file(_optimizer_tensors(optimizer), temporary / "optimizer.safetensors", TORCH_TENSORS)
        _write_json(temporary / "training.json", dict(training or {}))
    if path.exists():
        old = path.with_name(f".{path.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
        temporary.rename(path)
        shutil.rmtree(old)
    else:
        temporary.rename(path)


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{key}": torch.as_tensor(value).detach().cpu().clone()
        for index, entry in state.items()
        for key, value in entry.items()
    }


def load_optimizer(path: Path, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore the optimiser written beside a checkpoint; returns the content of `training.json`.

    Raises:
        InputError: a file is missing or unreadable.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in _read_tensors(path / "optimizer.safetensors").items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    return _read_json(path / "training.json")


def resolve(path: str | Path) -> Path:
    """The checkpoint folder meant by `path`: itself, or the one that a run directory's file `latest` names.

    Raises:
        InputError: if it is neither.
    """
    folder = Path(path)
    if (folder / "config.json").is_file():
        return folder
    if (folder / "latest").is_file():
        return folder / "checkpoints" / (folder / "latest").read_text(encoding="utf-8").strip()
    what = "does not exist" if not folder.exists() else "holds neither config.json nor a file 'latest'"
    raise InputError(
        f"{folder} is no checkpoint: it {what}; give a checkpoint folder or the run folder of a training stage"
    )


def load_checkpoint(path: str | Path, *, kind: str) -> Checkpoint:
    """Read a checkpoint of that kind.

    Raises:
        InputError: not a checkpoint, another kind, another format version, or an unreadable file.
    """
    folder = resolve(path)
    description = _read_json(folder / "config.json")
    version = description.get("format_version")
    if version != FORMAT_VERSION:
        raise InputError(
            f"{folder}/config.json has format_version {version!r}, this release reads {FORMAT_VERSION}; "
            "use the release that wrote it, or train again"
        )
    if description.get("kind") != kind:
        raise InputError(f"{folder} is a checkpoint of kind {description.get('kind')!r}, expected {kind!r}")
    if not isinstance(description.get("config"), dict):
        raise InputError(f'{folder}/config.json lacks "config"; copy the checkpoint again')
    weights = _read_tensors(folder / "model.safetensors")
    reserved = {"config.json", "training.json"}
    files = {p.stem: _read_json(p) for p in sorted(folder.glob("*.json")) if p.name not in reserved}
    return Checkpoint(folder, kind, description["config"], description.get("facts", {}), weights, files)


def weights_digest(*modules: nn.Module) -> str:
    """sha256 over names, shapes and bytes of all weights: the identity of an encoder or a policy."""
    digest = hashlib.sha256()
    for module in modules:
        for name, value in sorted(module.state_dict().items()):
            array = value.detach().cpu().contiguous()
            digest.update(f"{name}:{tuple(array.shape)}:{array.dtype}".encode())
            digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({error}); copy the checkpoint again") from error


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; the checkpoint is incomplete, copy it again") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}); copy the checkpoint again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object; copy the checkpoint again")
    return content


def write_text(path: Path, text: str) -> None:
    """Write a small file so that it is either the old one or the whole new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
