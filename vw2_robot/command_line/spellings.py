"""The other ways in which people type a key and its value, rewritten to `key=value` before Hydra reads them.

--label_fraction 0.1     ->  label_fraction=0.1
--label-fraction=0.1     ->  label_fraction=0.1
--stream                 ->  stream=true              (where the key is a switch)
--stages vdm dldm        ->  stages=[vdm,dldm]        (where the key is a list)
prompt=open the drawer   ->  prompt=open the drawer   (one argument: a sentence without quotes around it)
stages=[vdm, dldm]       ->  stages=[vdm, dldm]       (one argument)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import get_origin

from vw2_robot.errors import InputError

from .overrides import field_types

HYDRA_OPTIONS = {
    **dict.fromkeys(
        ("--help", "--hydra-help", "--version", "--resolve", "--run", "--multirun", "--shell-completion"), 0
    ),
    **dict.fromkeys(("-h", "-r", "-m", "-sc"), 0),
    **dict.fromkeys(("--cfg", "--package", "--config-path", "--config-name", "--config-dir", "--info"), 1),
    **dict.fromkeys(("-c", "-p", "-cp", "-cn", "-cd", "-i", "--experimental-rerun"), 1),
}
"""options of Hydra, with the number of arguments that follow"""
_OPTION = re.compile(r"--([A-Za-z_][\w.-]*)(?:=(.*))?", re.DOTALL)
_OVERRIDE = re.compile(r"[+~]{0,2}([A-Za-z_][\w./@-]*)=.*", re.DOTALL)


def as_overrides(arguments: Sequence[str], config_cls: type, groups: Sequence[str]) -> list[str]:
    """Return the arguments with every key and its value as `key=value`; options of Hydra stay.

    Args:
        arguments: of the command, without its name.
        config_cls: root dataclass of the program.
        groups: names of its groups of yaml files.

    Raises:
        InputError: an argument belongs to no key, or an option has no value.
    """
    overrides: list[str] = []
    waiting = list(arguments)
    open_key: str | None = None  # that of the last override, where more of its value may follow
    while waiting:
        argument = waiting.pop(0)
        option = _OPTION.fullmatch(argument)
        if option is not None:
            key = option[1].replace("-", "_")
            known = bool(field_types(config_cls, key.split(".")[0])) or key in groups
            # A key wins over an option of Hydra with the same name, as `run` of vw2-compare does.
            if known or argument not in HYDRA_OPTIONS:
                value = option[2] if option[2] is not None else _value_of(argument, key, config_cls, waiting)
                overrides.append(f"{key}={value}")
                open_key = key
                continue
        if argument.startswith("-"):
            count = HYDRA_OPTIONS.get(argument, 0)
            overrides += [argument, *waiting[:count]]
            del waiting[:count]
            open_key = None
        elif (found := _OVERRIDE.fullmatch(argument)) is not None:
            overrides.append(argument)
            open_key = found[1]
        elif argument.startswith("~"):  # Hydra deletes that key
            overrides.append(argument)
            open_key = None
        elif open_key is not None and _may_have_spaces(config_cls, open_key, overrides[-1]):
            overrides[-1] += f" {argument}"
        else:
            raise InputError(f"{argument!r} belongs to no key; write key=value (--help lists the keys)")
    return overrides


def _value_of(option: str, key: str, config_cls: type, waiting: list[str]) -> str:
    """Return the value that follows an option, taken from the arguments that wait."""
    types = field_types(config_cls, key)
    if bool in types and (not waiting or waiting[0].lower() not in ("true", "false")):
        return "true"
    if not waiting or waiting[0].startswith("--"):
        raise InputError(f"{option} has no value; write {key}=VALUE (--keys {key} says what it may be)")
    value = waiting.pop(0)
    lists = [kind for kind in types if get_origin(kind) in (list, tuple)]
    if not lists or value.startswith("["):
        return value
    entries = [value]
    while waiting and not waiting[0].startswith("-") and _OVERRIDE.fullmatch(waiting[0]) is None:
        entries.append(waiting.pop(0))
    return f"[{','.join(entries)}]" if len(entries) > 1 or len(lists) == len(types) else value


def _may_have_spaces(config_cls: type, key: str, override: str) -> bool:
    """Return whether the next argument may continue a value: of a text, an open list, or a key of unknown type."""
    types = field_types(config_cls, key)
    is_open = override.count("[") > override.count("]") or override.count("{") > override.count("}")
    return is_open or not types or str in types
