"""The checkpoint format of all stages: a folder of JSON and safetensors, never a pickle.

    config.json             format_version, kind (one of `KINDS`), the model's config, and facts worth keeping
    model.safetensors       weights; names are "<module>.<parameter>"
    stats.json, tokens.json policies only: action statistics, latent vocabulary
    backbone.json           policies on a pretrained language model: the description that rebuilds it
    dldm/                   exported policies only (`vw2_robot.hub`): the dLDM of the codes as a checkpoint of its kind,
                            which acting does not need; elsewhere it is among the policy's weights
    optimizer.safetensors, training.json   only while a run can be resumed; sharded runs have a folder optimizer/
    manifest.json           SHA-256 of all of these, compared when the checkpoint is loaded

Of several ranks rank 0 writes, of sharded weights the whole; every rank writes its shards of the optimizer. So a
checkpoint is read by any number of ranks, also by a single process.

A folder is written under a temporary name, synced and renamed, so a folder that exists is complete. A checkpoint alone
rebuilds its model. A run directory may be given wherever a checkpoint is expected: its file `selected` names the one
that `vw2-select` chose, else `latest` the last one. Every damaged file ends in an InputError with its name, before
memory is allocated for the sizes in it.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vw2_robot.aliases import first_name, with_new_keys, with_new_names
from vw2_robot.distributed.optimizer_shards import read_shards, shapes_of, write_shards
from vw2_robot.distributed.ranks import from_main, is_main
from vw2_robot.distributed.sharding import full, full_state, is_sharded_tensor, like, on_cpu
from vw2_robot.errors import InputError
from vw2_robot.storage.allocation import AllocationLimit
from vw2_robot.storage.files import MANIFEST, atomic_folder, read_json, read_text, write_json, write_manifest
from vw2_robot.storage.files import verify as compare_with_manifest

FORMAT_VERSION = 1
KINDS = ("vdm", "dldm", "policy", "judge")
CURE = "copy the checkpoint again"
STEP_FOLDER = re.compile(r"step_(0|[1-9]\d{0,17})")
CHECKPOINTS = "checkpoints"
KEPT = "kept"
DLDM_PART = "dldm"
SELECTED = "selected"
"""file of a run folder with the place of a checkpoint in it, such as kept/step_200"""
_OPTIMIZER = "optimizer"
_FURTHER = ("stats", "tokens", "backbone")
"""further files `<name>.json` that are read with a checkpoint, where they are there"""
INFERENCE_FILES = ("config.json", "model.safetensors", *(f"{name}.json" for name in _FURTHER), MANIFEST)
"""all that `load_checkpoint` reads"""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory. `weights` are on the CPU; `files` holds the further JSON files by name."""

    path: Path
    kind: str
    config: dict[str, Any]
    facts: dict[str, Any]
    weights: dict[str, Tensor]
    files: dict[str, dict[str, Any]]

    def load_into(self, **modules: nn.Module) -> None:
        """Copy the weights of each named module, exactly.

        Raises:
            InputError: names missing, unexpected and wrongly shaped or typed parameters.
        """
        for name, module in modules.items():
            # Compared before loading, since `load_state_dict` has changed a part of the module when it fails.
            found = {key[len(name) + 1 :]: value for key, value in self.weights.items() if key.startswith(name + ".")}
            wanted = module.state_dict()
            missing = sorted(wanted.keys() - found.keys())
            unexpected = sorted(found.keys() - wanted.keys())
            shapes = [k for k in wanted.keys() & found.keys() if not _fits(found[k], wanted[k])]
            if missing or unexpected or shapes:
                raise InputError(
                    f"checkpoint {self.path} does not fit the module '{name}' that its config describes: "
                    f"missing {missing[:5]}, unexpected {unexpected[:5]}, other shape {sorted(shapes)[:5]}"
                )
            load_weights(module, found)

    @contextmanager
    def building(self) -> Iterator[None]:
        """Build modules from `config` and `files` inside the `with`: memory is limited, and errors name the file.

        Raises:
            InputError: for any exception inside. The values come from a file, and libraries raise exceptions of every
                kind for wrong sizes, names and tokenizers.
        """
        try:
            with AllocationLimit.like(self.weights, what=f"{self.path}/config.json"):
                yield
        except InputError as error:
            if str(self.path) in str(error):
                raise
            raise InputError(f"{self.path}/config.json: {error}; {CURE}") from error
        except MemoryError:  # the file is right, and this machine too small
            raise
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise InputError(
                f"{self.path}: no model of kind {self.kind!r} can be built from its config.json ({reason}); {CURE}"
            ) from error

    def fact(self, name: str) -> Any:
        """Return a fact of the checkpoint.

        Raises:
            InputError: it has no such fact.
        """
        if name not in self.facts:
            raise InputError(f'{self.path}/config.json lacks the fact "{name}"; {CURE}')
        return self.facts[name]


def _fits(found: Tensor, wanted: Tensor) -> bool:
    """Return whether shapes are equal and types alike: float16 may become float32, integers may not."""
    return found.shape == wanted.shape and (
        found.dtype == wanted.dtype or (found.is_floating_point() and wanted.is_floating_point())
    )


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
    """Write a complete checkpoint folder, replacing one that is there.

    Args:
        path: the folder.
        kind: "vdm", "dldm", "policy" or "judge".
        config: nested plain values from which the modules can be built.
        modules: by the name that their weights get as a prefix.
        facts: further values worth keeping, such as hashes.
        files: contents of further files `<name>.json`.
        optimizer: its state, for a run that can be resumed.
        training: content of training.json, written with the optimizer.
    """
    # On the CPU, tied embeddings twice: safetensors refuses tensors that share memory. All ranks gather.
    weights = {f"{name}.{key}": value for name, module in modules.items() for key, value in full_state(module).items()}
    state = {} if optimizer is None else _optimizer_state(optimizer)
    sharded = any(is_sharded_tensor(value) for value in state.values())
    with ExitStack() as closing:
        folder = Path(from_main(str(closing.enter_context(atomic_folder(path)) if is_main() else "")))
        if sharded:
            write_shards(state, folder / _OPTIMIZER)
        if is_main():
            write_description(folder, kind=kind, config=config, facts=facts or {}, files=files or {})
            save_tensors(weights, folder / "model.safetensors")
            if optimizer is not None:
                if not sharded:
                    save_tensors(on_cpu(state), folder / "optimizer.safetensors")
                write_json(folder / "training.json", dict(training or {}), sync=False)
            write_manifest(folder, sync=False)  # `atomic_folder` syncs the whole folder
    from_main(None)  # the folder has its name when any rank goes on


def write_description(
    folder: Path,
    *,
    kind: str,
    config: Mapping[str, Any],
    facts: Mapping[str, Any],
    files: Mapping[str, Mapping[str, Any]],
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write the JSON files of a checkpoint, without syncing them.

    Args:
        folder: of the checkpoint.
        kind: as in `save_checkpoint`, like the next three.
        config: see there.
        facts: see there.
        files: see there.
        more: further keys of config.json, for other programs; not read here.
    """
    description = {"format_version": FORMAT_VERSION, "kind": kind, "config": dict(config), "facts": dict(facts)}
    write_json(folder / "config.json", {**(more or {}), **description}, sync=False)
    for name, content in files.items():
        write_json(folder / f"{name}.json", content, sync=False)


def _optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{index}.{key}": torch.as_tensor(value)
        for index, entry in optimizer.state_dict()["state"].items()
        for key, value in entry.items()
    }


def load_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy whole weights into a module, which may be sharded: every rank keeps its shards of them."""
    state = module.state_dict()
    module.load_state_dict({key: like(value, state[key]) for key, value in weights.items()})


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file; its metadata name PyTorch's layout, which other libraries check."""
    path.touch()
    usual_mode = path.stat().st_mode  # as the umask has it
    save_file(dict(tensors), path, metadata={"format": "pt"})
    # safetensors 0.8 makes files that only their owner may read, so nobody could use a colleague's checkpoint.
    path.chmod(usual_mode)


def load_optimizer(path: Path, optimizer: torch.optim.Optimizer, *, verify: bool = True) -> dict[str, Any]:
    """Restore the optimizer that was saved with a checkpoint, and return the content of `training.json`.

    Args:
        path: the checkpoint folder.
        optimizer: of the same parameters in the same order; changed in place.
        verify: compare the files with the manifest first.

    Raises:
        InputError: a file is missing, damaged, or of an optimizer of other parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    shards = path / _OPTIMIZER
    sharded = shards.is_dir()
    if verify:
        names = [f"{_OPTIMIZER}/{file.name}" for file in sorted(shards.iterdir())] if sharded else []
        compare_with_manifest(path, cure=CURE, names=[*(names or ["optimizer.safetensors"]), "training.json"])
    state: dict[int, dict[str, Tensor]] = {}
    if sharded:
        shapes = shapes_of(shards, cure=CURE)
        for name, shape in shapes.items():
            number, key = _place(name, shape, parameters, file=shards)
            # Shards like those of the parameter, whatever they were when they were written.
            scalar = key == "step"
            state.setdefault(number, {})[key] = torch.zeros(1) if scalar else torch.zeros_like(parameters[number])
        flat = {f"{number}.{key}": value for number, entry in state.items() for key, value in entry.items()}
        read_shards(flat, shards, cure=CURE)
        state = {n: {k: v.reshape(()) if k == "step" else v for k, v in entry.items()} for n, entry in state.items()}
    else:
        file = path / "optimizer.safetensors"
        for name, value in _read_tensors(file).items():
            number, key = _place(name, value.shape, parameters, file=file)
            state.setdefault(number, {})[key] = value if value.ndim == 0 else like(value, parameters[number])
    # AdamW has the same keys for every parameter that was ever updated.
    if len({frozenset(entry) for entry in state.values()}) > 1:
        raise InputError(f"{shards if sharded else file} lacks numbers of some parameters; {CURE}")
    # The groups are those of this run: their learning rate follows from the step and is not stored.
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    return read_json(path / "training.json", cure=CURE)


def _place(name: str, shape: torch.Size, parameters: list[nn.Parameter], *, file: Path) -> tuple[int, str]:
    """Return parameter number and key of "<number of the parameter>.<key of AdamW>".

    Raises:
        InputError: there is no such parameter, or it has another shape; AdamW itself would fail in its first step.
    """
    index, _, key = name.partition(".")
    number = int(index) if re.fullmatch(r"\d{1,9}", index) else len(parameters)
    if number >= len(parameters) or not (shape in ((), (1,)) or shape == parameters[number].shape):
        raise InputError(f"{file}: {name} {list(shape)} belongs to no parameter of this run; {CURE}")
    return number, key


def resolve(path: str | Path) -> Path:
    """Return the checkpoint folder of a path: itself, or the one that a run directory's `selected` or `latest` names.

    Raises:
        InputError: the path is neither.
    """
    folder = Path(path)
    if (folder / "config.json").is_file():
        return folder
    if (found := selected_checkpoint(folder) or last_checkpoint(folder)) is not None:
        return found
    what = "does not exist" if not folder.exists() else "holds neither config.json nor a file 'latest'"
    below = sorted(str(latest.parent) for latest in folder.glob("*/latest"))  # the run_dir of several stages
    stages = f"one of its stages ({', '.join(below)})"
    give = stages if below else "a checkpoint folder or the run folder of a training stage"
    raise InputError(f"{folder} is no checkpoint: it {what}; give {give}")


def last_checkpoint(run: Path) -> Path | None:
    """Return the checkpoint that the file `latest` of a run folder names; None where there is no such file.

    Raises:
        InputError: the file does not hold the name of a folder `step_N`, or there is no such checkpoint in the run
            folder itself; links out of it are refused.
    """
    latest = run / "latest"
    cure = f"write the name of a folder in {run}/checkpoints into it, or delete {run}"
    return _named_checkpoint(latest, CHECKPOINTS, cure=cure) if latest.exists() else None


def selected_checkpoint(run: Path) -> Path | None:
    """Return the checkpoint that the file `selected` of a run folder names; None where there is no such file.

    Raises:
        InputError: as `last_checkpoint`.
    """
    selected = run / SELECTED
    return (
        _named_checkpoint(selected, "", cure=f"delete {selected} to take the last one") if selected.exists() else None
    )


def _named_checkpoint(file: Path, place: str, *, cure: str) -> Path:
    """Return the checkpoint that a file in a run folder names, below `place` in that folder."""
    run = file.parent
    name = read_text(file, cure=cure, most=1000).removesuffix("\n")
    allowed = STEP_FOLDER.pattern if place else rf"({CHECKPOINTS}|{KEPT})/{STEP_FOLDER.pattern}"
    if not re.fullmatch(allowed, name):
        raise InputError(f"{file} must hold the name of a checkpoint (step_N), found {name[:40]!r}; {cure}")
    folder = run / place / name
    if not (folder / "config.json").is_file():
        raise InputError(
            f"{file} names {name}, but {folder}/config.json is missing; restore the checkpoint, or delete {run} to "
            "train again"
        )
    if folder.resolve() != run.resolve() / place / name:
        raise InputError(f"{folder} is a link that leads out of {run}; replace it by the folder itself")
    return folder


def step_folders(folder: Path) -> list[Path]:
    """Return the folders named step_N in a folder, by their steps; none where there is no such folder."""
    found = list(folder.iterdir()) if folder.is_dir() else []
    return sorted((entry for entry in found if STEP_FOLDER.fullmatch(entry.name)), key=step_of)


def step_of(folder: Path) -> int:
    """Return N of a folder named step_N."""
    return int(folder.name.removeprefix("step_"))


def kept_checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints among which one of a run folder can be selected: those kept and the last one, by steps."""
    kept = {step_of(folder): folder for folder in step_folders(run / KEPT)}
    if (last := last_checkpoint(run)) is not None:
        kept.setdefault(step_of(last), last)
    return [kept[step] for step in sorted(kept)]


def is_our_checkpoint(folder: Path) -> bool:
    """Return whether everything in `folder` was written by `save_checkpoint`: nothing else may ever be deleted."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    # Without a manifest, these are all that a checkpoint may hold.
    usual = (*INFERENCE_FILES, "optimizer.safetensors", "training.json")
    try:
        description = read_json(folder / "config.json", cure=CURE)
        manifest = read_json(folder / MANIFEST, cure=CURE) if (folder / MANIFEST).exists() else {"sha256": usual}
    except InputError:
        return False
    files = manifest.get("sha256")
    listed = {MANIFEST, *(files if isinstance(files, dict | tuple) else ())}
    entries = [entry for entry in folder.rglob("*") if entry.is_symlink() or not entry.is_dir()]
    folders = [entry for entry in folder.iterdir() if entry.is_dir() and entry.name not in (_OPTIMIZER, DLDM_PART)]
    others = [e for e in entries if e.relative_to(folder).as_posix() not in listed or e.is_symlink()] + folders
    return "format_version" in description and description.get("kind") in KINDS and not others


def load_checkpoint(path: str | Path, *, kind: str, verify: bool = True) -> Checkpoint:
    """Read a checkpoint of that kind, under today's names of keys and weights.

    Args:
        path: a checkpoint folder, or a run folder.
        kind: "vdm", "dldm", "policy" or "judge".
        verify: compare all files with the manifest first, which reads the weights twice.

    Raises:
        InputError: not a checkpoint, another kind, another format version, or a damaged file.
    """
    folder = resolve(path)
    # 1. Integrity: all files that this function reads against the manifest.
    further = [name for name in _FURTHER if (folder / f"{name}.json").exists()]
    if verify:
        # Not the optimizer: it is not read here, and `load_optimizer` compares its files.
        names = ["config.json", "model.safetensors", *(f"{name}.json" for name in further)]
        if not compare_with_manifest(folder, cure=CURE, names=names):
            _LOG.warning("%s has no %s: whether its files are whole is not checked", folder, MANIFEST)
    # 2. Format and kind, before the weights take memory.
    description = read_json(folder / "config.json", cure=CURE)
    version = description.get("format_version")
    if version != FORMAT_VERSION:
        raise InputError(
            f"{folder}/config.json has format_version {version!r}, this release reads {FORMAT_VERSION}; "
            "use the release that wrote it, or train again"
        )
    if description.get("kind") != kind:
        raise InputError(f"{folder} is a checkpoint of kind {description.get('kind')!r}, expected {kind!r}")
    config = description.get("config")
    facts = description.get("facts", {})
    if not isinstance(config, dict) or not isinstance(facts, dict):
        raise InputError(f'{folder}/config.json lacks "config" or "facts"; {CURE}')
    # 3. Weights and further files, under today's names.
    weights = with_new_names(_read_tensors(folder / "model.safetensors"))
    files = {name: read_json(folder / f"{name}.json", cure=CURE) for name in further}
    return Checkpoint(folder, kind, with_new_keys(config), with_new_keys(facts), weights, files)


def weights_digest(*modules: nn.Module) -> str:
    """Return the SHA-256 over names, shapes and bytes of all weights: the identity of an encoder or a policy.

    Names are those of the first release (`aliases.first_name`): a renamed module keeps its digest.
    """
    digest = hashlib.sha256()
    for module in modules:
        # Sorted by the same names, since the order of the weights is part of the digest.
        for name, value in sorted({first_name(n): v for n, v in module.state_dict().items()}.items()):
            array = full(value.detach()).cpu().contiguous()
            digest.update(f"{name}:{tuple(array.shape)}:{array.dtype}".encode())
            # Seen as bytes in torch, since NumPy has no bfloat16; flat, since a scalar has no axis for `view`.
            digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file; a damaged one ends in an InputError."""
    try:
        return load_file(path)
    except (OSError, SafetensorError, RuntimeError, ValueError, TypeError, OverflowError) as error:
        # Beside its own error safetensors lets those of PyTorch (a shape) and Python (a number) pass.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path} cannot be read ({reason}); {CURE}") from error
