"""Configuration dataclasses <-> plain nested values: how checkpoint, run folder and command line speak of a config."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any, TypeVar

import dacite

from vw2_robot.errors import InputError

ConfigT = TypeVar("ConfigT")


def config_from(cls: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
    """Build the dataclass `cls` from nested plain values, refusing unknown keys and wrong types.

    Integers are accepted for floats and lists for tuples; nothing else is converted.

    Raises:
        InputError: names the key, what was expected and what was found.
    """
    config = dacite.Config(strict=True, cast=[tuple], type_hooks={float: _float})
    try:
        return dacite.from_dict(cls, values, config=config)
    except dacite.DaciteError as error:
        raise InputError(f"configuration of {cls.__name__}: {error}") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"configuration of {cls.__name__}: {error}") from error


def _float(value: Any) -> Any:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def config_tree(config: Any) -> dict[str, Any]:
    """A dataclass as plain nested values, lists for tuples."""
    assert is_dataclass(config)
    tree: dict[str, Any] = json.loads(json.dumps(asdict(config), default=str))  # type: ignore[arg-type]
    return tree


def differing_keys(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Dotted names at which two nested values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        return [name for key in keys for name in differing_keys(old.get(key), new.get(key), f"{prefix}{key}.")]
    return [] if old == new else [f"{prefix[:-1]} ({old!r} -> {new!r})"]
