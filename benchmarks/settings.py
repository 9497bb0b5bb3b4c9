"""What the words of a job come to: the whole configuration of its program, flat, as the program itself composes it.

The words of a job leave out most of it: defaults are those of the commit at which it ran. So the archive of results
keeps the settings beside the words (`results_archive`), and the page compares rows by what they were made with. This
file also runs as a script in a checkout of another commit and composes what its configurations say:

    python benchmarks/settings.py < JOBS > SETTINGS      # [[program, words], ...] -> [settings, ...] as JSON
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
"""program -> its configuration in configs/, and where its dataclass is"""
PLACES = (
    "run_dir", "out", "data.path", "data.frame_cache", "data.root", "policy", "network.like", "dldm", "labeled",
    "frame_cache",
    "data.splits",
)  # fmt: skip
"""which data, by name; what a data set calls its training split is a name as well"""
SEEDS = ("seed", "label_seed", "sequences")
MACHINE = ("workers", "hardware.threads", "hardware.device", "threads", "device")
_NESTED = re.compile(
    r"(?!hydra\.)[A-Za-z_]\w*(\.\w+)+="
)  # as vw2_robot.command_line.program has it, also at commits before it had


def settings_of(program: str, words: Sequence[str]) -> dict[str, Any] | None:
    """Dotted key -> value; None for a program that has no configuration in configs/."""
    if program not in PROGRAMS:
        return None
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    from vw2_robot.command_line.config_tree import config_from, config_tree

    config_name, module, name = PROGRAMS[program]
    with initialize_config_module("vw2_robot.configs", version_base="1.3"):
        tree = compose(config_name, [f"++{word}" if _NESTED.match(word) else word for word in words])
    values: Any = OmegaConf.to_container(tree, resolve=True, throw_on_missing=True)
    return _flat(config_tree(config_from(getattr(importlib.import_module(module), name), values)))


def default_of(program: str, key: str) -> Any:
    """What the dataclass of a program has for a dotted key that nobody gives; `MISSING` where one must be given."""
    _, module, name = PROGRAMS[program]
    kind: Any = getattr(importlib.import_module(module), name)
    value: Any = MISSING
    for part in key.split("."):
        field = {field.name: field for field in fields(kind)}.get(part) if is_dataclass(kind) else None
        if field is None:
            return MISSING
        made = field.default_factory() if field.default_factory is not MISSING else field.default
        value = getattr(value, part) if is_dataclass(value) else made
        kind = get_type_hints(kind)[part]
    return value


def recipe(program: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without places, seeds and facts of the machine: what makes a row that row."""
    left_out = {*PLACES, *MACHINE, *(() if program == "vw2_robot.envs.recording.record" else SEEDS)}
    return {key: value for key, value in settings.items() if key not in left_out}


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


if __name__ == "__main__":
    json.dump([settings_of(program, words) for program, words in json.load(sys.stdin)], sys.stdout)
