r"""Quoting of command-line overrides for Hydra, so that a path or an instruction may contain any character.

Hydra's grammar gives a meaning to , = ( ) [ ] { } ' and accepts few letters beyond ASCII. The type of the field
decides: where it is text, an argument that Hydra would parse as something else (or not at all) is put in quotes.

    data.path=videos (old)       ->  ++data.path='videos (old)'
    prompt=don't move           ->  prompt='don\'t move'
    labeled=[Jürgen,2024]      ->  labeled=['Jürgen','2024']
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from vw2_robot.command_line.config_tree import check_keys, field_name, key_name
from vw2_robot.errors import InputError

from .config_groups import EXPERIMENT

_NESTED = re.compile(r"[A-Za-z_]\w*(\.\w+)+")
_ARGUMENT = re.compile(r"([+~]{0,2})([A-Za-z_][\w./@-]*)=(.*)", re.DOTALL)
_PLAIN = r"(?!\s*['\"])[^\[\]{},]*"  # an element without quotes around it
_FLAT_LIST = re.compile(rf"\[{_PLAIN}(,{_PLAIN})*\]")


def as_typed(arguments: Sequence[str], config_cls: type, groups: Sequence[str] = ()) -> list[str]:
    """Return arguments that Hydra parses as the fields of `config_cls` need them.

    The yaml files show only what is often changed, so a nested key gets the plus signs with which Hydra accepts a key
    that no yaml file has. An unknown key at the top gets them too, since Hydra's message suggests no other key.
    `config_from` refuses unknown keys and wrong types later. A single plus sign becomes two, or none for a group, since
    Hydra appends nothing that is there already. An experiment gets the one with which Hydra appends it. The commas of a
    sweep stay.

    Args:
        arguments: of the command, without its name.
        config_cls: root dataclass of the program.
        groups: names of its groups of yaml files.
    """
    sweeps = any(argument in ("-m", "--multirun") for argument in arguments)
    known = {key_name(field.name) for field in fields(config_cls)} | {*groups}
    typed = []
    for argument in arguments:
        found = _ARGUMENT.fullmatch(argument)
        if found is None:  # an option, or something that Hydra explains
            typed.append(argument)
            continue
        sign, key, value = found.groups()
        # An option of Hydra itself has no type in `config_cls`.
        if key.startswith("hydra."):
            typed.append(argument)
            continue
        if not sign and (_NESTED.fullmatch(key) or (key.isidentifier() and key not in known)):
            sign = "++"
        if sign == "+" and "/" not in key:
            sign = "" if key in groups else "++"
        if not sign and key == EXPERIMENT:
            sign = "+"
        # In quotes, the commas of a sweep would become part of a single value.
        if not (sweeps and _parsed(f"{key}={value}", sweep=True)):
            value = _value(key, value, field_types(config_cls, key))
        typed.append(f"{sign}{key}={value}")
    return typed


def check_removals(arguments: Sequence[str], config_cls: type, groups: Sequence[str] = ()) -> None:
    """Refuse `~key` of a key that there is not.

    Args:
        arguments: of the command, without its name.
        config_cls: root dataclass of the program.
        groups: names of its groups of yaml files.

    Raises:
        InputError: names the nearest key.
    """
    for argument in arguments:
        key = re.split(r"[.=@/]", argument.removeprefix("~"))[0]
        if argument.startswith("~") and key not in (*groups, "hydra"):
            check_keys(config_cls, {key: None}, where=argument)


def check_sweep(arguments: Sequence[str], config_cls: type) -> None:
    """Refuse a sweep whose runs would all write into one run_dir; the shards of a rollout are meant to.

    Raises:
        InputError: run_dir is the same for all of them.
    """
    names = {field.name for field in fields(config_cls)}
    if (
        not any(argument in ("-m", "--multirun") for argument in arguments)
        or "run_dir" not in names
        or "shard" in names
    ):
        return
    values = {found[2]: found[3] for argument in arguments if (found := _ARGUMENT.fullmatch(argument)) is not None}
    swept = [
        key for key, value in values.items() if not key.startswith("hydra.") and _parsed(f"{key}={value}", sweep=True)
    ]
    run_dir = values.get("run_dir", "${")
    if swept and "run_dir" not in swept and "${" not in run_dir:
        raise InputError(
            f"run_dir={run_dir} is the folder of all runs of this sweep over {', '.join(swept)}, and each needs its "
            f"own: write 'run_dir={run_dir}/{swept[0]}_${{{swept[0]}}}' in quotes"
        )


def field_types(config_cls: type, key: str) -> tuple[Any, ...]:
    """Return the types of a field by its dotted name, without None; empty for an unknown field."""
    kinds: tuple[Any, ...] = (config_cls,)
    for name in key.split("."):
        owner = next((kind for kind in kinds if is_dataclass(kind)), None)
        annotation = None if owner is None else get_type_hints(owner).get(field_name(name))
        kinds = tuple(kind for kind in get_args(annotation) or (annotation,) if kind not in (None, type(None)))
        # Not taken apart like a union: `_value` has to know that it is a list.
        if get_origin(annotation) in (list, tuple, dict):
            kinds = (annotation,)
    return kinds


def _value(key: str, value: str, kinds: tuple[Any, ...]) -> str:
    """Return the value as it is, or in quotes."""
    inner = next((get_args(kind)[0] for kind in kinds if get_origin(kind) in (list, tuple)), None)
    parsed = _parsed(f"{key}={value}")
    if parsed is not None:
        read = parsed.value()
        if isinstance(read, list) and (inner is not None or not kinds):
            wrong = inner is str and any(not isinstance(element, str) for element in read)
            return _list(key, value, inner) if wrong else value
        # A text field: quote what Hydra would parse as a number or a list, or whose spaces it would strip.
        other = not isinstance(read, str) and type(read) not in kinds and value.strip() != "null"
        return _quoted(value) if str in kinds and (other or read == value.strip() != value) else value
    return _list(key, value, inner) if value.startswith("[") and (inner is not None or not kinds) else _quoted(value)


def _list(key: str, value: str, inner: Any) -> str:
    """Return a list with each element quoted as needed; a nested list must be written in Hydra's syntax."""
    if not _FLAT_LIST.fullmatch(value.strip()):
        return _quoted(value)
    elements = (element.strip() for element in value.strip()[1:-1].split(","))
    return f"[{','.join(_value(key, element, (inner,) if inner is not None else ()) for element in elements)}]"


def _parsed(argument: str, *, sweep: bool = False) -> Any:
    """Return Hydra's parse of an argument; None where it fails, or where it is (not) a sweep, against `sweep`."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(argument)
    except HydraException:
        return None
    return override if override.is_sweep_override() == sweep else None


def _quoted(value: str) -> str:
    """Return the value in single quotes; Hydra reads backslashes only before a quote."""
    return "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value) + "'"
