r"""The arguments of a command as Hydra takes them: a path or an instruction is what was typed, whatever is in it.

Hydra's grammar gives a meaning to , = ( ) [ ] { } ' and knows few letters beyond ASCII. What a field takes says its
type: where that is text, an argument that Hydra would read otherwise (or not at all) is handed on in quotes.

    data.path=videos (old)       ->  ++data.path='videos (old)'
    prompt=don't move           ->  prompt='don\'t move'
    labeled=[Jürgen,2024]      ->  labeled=['Jürgen','2024']
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

_NESTED = re.compile(r"[A-Za-z_]\w*(\.\w+)+")
_ARGUMENT = re.compile(r"([+~]{0,2})([A-Za-z_][\w./@-]*)=(.*)", re.DOTALL)
_PLAIN = r"(?!\s*['\"])[^\[\]{},]*"  # an element without quotes around it
_FLAT_LIST = re.compile(rf"\[{_PLAIN}(,{_PLAIN})*\]")


def as_typed(arguments: Sequence[str], config_cls: type) -> list[str]:
    """Return arguments that Hydra reads as they were meant for the fields of `config_cls`.

    The yaml files show what is changed often, the dataclasses know all keys; a nested key gets the plus signs that
    Hydra asks for where a yaml file does not show it. `config_from` refuses what no dataclass has, and what fits no
    type. Where jobs of a sweep are asked for, their commas stay.
    """
    sweeps = any(argument in ("-m", "--multirun") for argument in arguments)
    return [_one(argument, config_cls, sweeps) for argument in arguments]


def _one(argument: str, config_cls: type, sweeps: bool) -> str:
    found = _ARGUMENT.fullmatch(argument)
    if found is None:  # an option, or a word that Hydra explains
        return argument
    sign, key, value = found.groups()
    if key.startswith("hydra."):
        return argument
    if not sign and _NESTED.fullmatch(key):
        sign = "++"
    if sweeps and _parsed(f"{key}={value}", sweep=True):
        return f"{sign}{key}={value}"
    return f"{sign}{key}={_value(key, value, _kinds(config_cls, key))}"


def _kinds(config_cls: type, key: str) -> tuple[Any, ...]:
    """The types that a field takes, without None; empty where no field is known by that name."""
    kinds: tuple[Any, ...] = (config_cls,)
    for name in key.split("."):
        owner = next((kind for kind in kinds if is_dataclass(kind)), None)
        hint = None if owner is None else get_type_hints(owner).get(name)
        kinds = tuple(kind for kind in get_args(hint) or (hint,) if kind not in (None, type(None)))
        if get_origin(hint) in (list, tuple, dict):
            kinds = (hint,)
    return kinds


def _value(key: str, value: str, kinds: tuple[Any, ...]) -> str:
    """The value as it is, or in quotes."""
    inner = next((get_args(kind)[0] for kind in kinds if get_origin(kind) in (list, tuple)), None)
    parsed = _parsed(f"{key}={value}")
    if parsed is not None:
        read = parsed.value()
        if isinstance(read, list) and (inner is not None or not kinds):
            wrong = inner is str and any(not isinstance(element, str) for element in read)
            return _list(key, value, inner) if wrong else value
        other = not isinstance(read, str) and type(read) not in kinds and value.strip() != "null"
        return _quoted(value) if str in kinds and (other or read == value.strip() != value) else value
    return _list(key, value, inner) if value.startswith("[") and (inner is not None or not kinds) else _quoted(value)


def _list(key: str, value: str, inner: Any) -> str:
    """A list, each element by itself; one that is not flat must be written as Hydra reads it."""
    if not _FLAT_LIST.fullmatch(value.strip()):
        return _quoted(value)
    elements = (element.strip() for element in value.strip()[1:-1].split(","))
    return f"[{','.join(_value(key, element, (inner,) if inner is not None else ()) for element in elements)}]"


def _parsed(argument: str, *, sweep: bool = False) -> Any:
    """Hydra's reading of an argument; None for what it cannot read, or takes for a sweep over several values."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(argument)
    except HydraException:
        return None
    return override if override.is_sweep_override() == sweep else None


def _quoted(value: str) -> str:
    """In single quotes; backslashes count only before a quote."""
    return "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value) + "'"
