"""The settings of a job: the whole configuration of its program as flat dotted keys.

The arguments of a job hold only what differs from the defaults of its commit. So the archive keeps the settings beside
the arguments, and the page compares rows by their settings. This file also runs as a script with another commit's
package on its path, and composes the settings that the arguments had there:

    python benchmarks/results/settings.py < JOBS > SETTINGS      # [[program, arguments], ...] -> [settings, ...], JSON
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints

PROGRAMS = {
    "vw2_robot.envs.recording.record": ("record", "vw2_robot.envs.recording.record", "RecordConfig"),
    "vw2_robot.pretrain.pretrain_on_openx": ("pretrain", "vw2_robot.pretrain.config", "PretrainConfig"),
    "vw2_robot.pretrain.probing.probe_latents": (
        "probe_latents",
        "vw2_robot.pretrain.probing.probe_latents",
        "ProbeLatentsConfig",
    ),
    "vw2_robot.finetune.train_head": ("finetune", "vw2_robot.finetune.config", "FinetuneConfig"),
    "vw2_robot.rollouts": ("rollout", "vw2_robot.rollouts.config", "RolloutConfig"),
}
"""program -> its file in configs/, and module and name of its dataclass"""
PLACES = (
    "run_dir", "out", "data.path", "data.frame_cache", "data.root", "policy", "network.like", "dldm", "labeled",
    "frame_cache", "data.splits",
)  # fmt: skip
"""names of files and of data; a data set's name for its training split is one too"""
SEEDS = ("seed", "label_seed", "sequences")
MACHINE = ("workers", "hardware.threads", "hardware.device", "threads", "device")
_NESTED = re.compile(r"(?!hydra\.)[A-Za-z_]\w*(\.\w+)+=")
"""as in vw2_robot.command_line.program; here too, since the script runs with commits that did not have it yet"""


def settings_of(program: str, arguments: Sequence[str]) -> dict[str, Any] | None:
    """Return dotted key -> value as the program composes it; None for a program without a file in configs/."""
    if program not in PROGRAMS:
        return None
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    from vw2_robot.command_line.config_tree import config_from, config_tree

    config_name, module, name = PROGRAMS[program]
    # Keys of nested options are overridden with ++, as the programs do for their users.
    with initialize_config_module("vw2_robot.configs", version_base="1.3"):
        tree = compose(config_name, [f"++{item}" if _NESTED.match(item) else item for item in arguments])
    values: Any = OmegaConf.to_container(tree, resolve=True, throw_on_missing=True)
    return flat(config_tree(config_from(getattr(importlib.import_module(module), name), values)))


def default_of(program: str, key: str) -> Any:
    """Return the default of a dotted key in the dataclass of a program; `MISSING` where there is none."""
    _, module, name = PROGRAMS[program]
    kind: Any = getattr(importlib.import_module(module), name)
    value: Any = MISSING
    for part in key.split("."):
        field = {field.name: field for field in fields(kind)}.get(part) if is_dataclass(kind) else None
        if field is None:
            return MISSING
        # The default of the parent wins: it may set the field of a nested dataclass.
        made = field.default_factory() if field.default_factory is not MISSING else field.default
        value = getattr(value, part) if is_dataclass(value) else made
        # `field.type` would be a string, as annotations are not evaluated in those files.
        kind = get_type_hints(kind)[part]
    return list(value) if isinstance(value, tuple) else value  # as in yaml


def recipe(program: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that define a row of the page: without places, seeds and facts of the machine.

    And without the aids of pre-training: the keys of the modules that they set say the same, also in older archives.
    """
    left_out = {*PLACES, *MACHINE, *(() if program == "vw2_robot.envs.recording.record" else SEEDS)}
    copied = "aids." if program == "vw2_robot.pretrain.pretrain_on_openx" else ()
    return {key: value for key, value in settings.items() if key not in left_out and not key.startswith(copied)}


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values under dotted keys."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def nested(settings: dict[str, Any]) -> dict[str, Any]:
    """Return dotted keys as nested values, the inverse of `flat`."""
    tree: dict[str, Any] = {}
    for key, value in settings.items():
        *parents, last = key.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = value
    return tree


if __name__ == "__main__":
    json.dump([settings_of(program, arguments) for program, arguments in json.load(sys.stdin)], sys.stdout)
