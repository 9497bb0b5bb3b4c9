"""The groups of yaml files that each program takes, such as `env=calvin` or `+experiment=finetune/vw2_10`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import yaml

from vw2_robot.errors import InputError

if TYPE_CHECKING:
    from importlib.abc import Traversable  # elsewhere in later Pythons

EXPERIMENT = "experiment"
"""the group that no program has by default: it is appended, with a plus sign"""
_CHOICE = re.compile(r"[+~]{0,2}([A-Za-z_]\w*)(?:@[\w.]+)?=([\w./,-]+)")


@dataclass(frozen=True)
class Group:
    """One group of a program: its choices, and the one that is taken by default (None: none of them)."""

    choices: tuple[str, ...]
    default: str | None = None


@cache
def program_file(config_name: str) -> dict[str, Any]:
    """Return the content of a program's yaml file as it is, not composed with others."""
    text = resources.files("vw2_robot.configs").joinpath(f"{config_name}.yaml").read_text(encoding="utf-8")
    values: dict[str, Any] = yaml.safe_load(text)
    return values


@cache
def groups_of(config_name: str) -> Mapping[str, Group]:
    """Return the groups of a program by name, its experiments last."""
    configs = resources.files("vw2_robot.configs")
    entries = [entry for entry in program_file(config_name)["defaults"] if isinstance(entry, dict)]
    groups = {
        name: Group(tuple(_file_names(configs.joinpath(name))), default)
        for entry in entries
        for name, default in entry.items()
    }
    # Experiments of pre-training lie in the folder itself, all others in one with the name of their program.
    here = tuple(name for name in _file_names(configs.joinpath(EXPERIMENT)) if _program_of(name) == config_name)
    return {**groups, EXPERIMENT: Group(here)} if here else groups


def _program_of(experiment: str) -> str:
    folder, slash, _ = experiment.partition("/")
    return folder if slash else "pretrain"


def _file_names(folder: Traversable, prefix: str = "") -> Iterator[str]:
    """Yield the names of the yaml files in and below a folder, without their suffix."""
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".yaml"):
            yield prefix + entry.name.removesuffix(".yaml")
        elif entry.is_dir():
            yield from _file_names(entry, f"{prefix}{entry.name}/")


def check_groups(overrides: Sequence[str], config_name: str) -> None:
    """Refuse the choice of a file that a group does not have.

    Args:
        overrides: each `key=value`, or an option of Hydra.
        config_name: of the program's yaml file.

    Raises:
        InputError: names the nearest files, or all.
    """
    if "--config-dir" in overrides or "-cd" in overrides:  # then there are files that we do not know
        return
    for found in filter(None, map(_CHOICE.fullmatch, overrides)):
        group = groups_of(config_name).get(found[1])
        if group is None:
            continue
        for choice in found[2].split(","):
            if choice == "null" or choice in group.choices:
                continue
            near = _nearest(choice, group.choices)
            listed = f"nearest: {', '.join(near)}" if near else f"there are {', '.join(group.choices)}"
            raise InputError(f"{found[0]}: there is no {found[1]} called {choice}; {listed}")


def _nearest(choice: str, known: Sequence[str]) -> list[str]:
    """Return known names that are like a wrong one: with the folder or without, or with a few other letters."""
    last = {name: name.rpartition("/")[2] for name in known}
    same = [name for name in known if last[name] == choice.rpartition("/")[2]]
    near = get_close_matches(choice, known, n=3) or [
        name for match in get_close_matches(choice, list(last.values()), n=3) for name in known if last[name] == match
    ]
    return same or list(dict.fromkeys(near))
