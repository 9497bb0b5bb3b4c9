"""Conversion between configuration dataclasses and plain nested values, as in checkpoints, yaml and command lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from difflib import get_close_matches
from keyword import iskeyword
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import dacite

from vw2_robot.aliases import new_key
from vw2_robot.errors import InputError
from vw2_robot.limits import check_number

ConfigT = TypeVar("ConfigT")


def config_from(cls: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
    """Build a configuration dataclass from nested plain values, refusing unknown keys and wrong types.

    Integers are accepted for floats and lists for tuples; nothing else is converted. Numbers must be as in `limits`.

    Args:
        cls: the dataclass.
        values: nested plain values by key.

    Raises:
        InputError: with the key, what was expected and what was found.
    """

    def to_float(value: Any) -> Any:
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

    config = dacite.Config(strict=True, type_hooks={float: to_float})
    where = f"configuration of {cls.__name__}"
    try:
        # dacite compares types and converts nothing, so lists become tuples before it sees them.
        return dacite.from_dict(cls, _with_tuples(cls, values, where=where, prefix=""), config=config)
    except InputError:
        raise
    except dacite.WrongTypeError as error:
        choices = [str(choice) for choice in get_args(error.field_type) if get_origin(error.field_type) is Literal]
        wanted = str(error.field_type if get_args(error.field_type) else error.field_type.__name__)
        wanted = " or ".join(choices) or wanted.replace("typing.", "")
        near = "".join(f"; nearest: {name}" for name in get_close_matches(str(error.value), choices, n=1))
        old = str(error.field_path)
        # A key of two meanings that now has one key for each.
        moved = f"; this is now {new}={error.value}" if (new := new_key(old, error.value)) != old else ""
        raise InputError(
            f"{where}: {old} must be {wanted}, found {error.value!r}{near}{_quoting(error.value)}{moved}"
        ) from error
    except (dacite.DaciteError, ValueError, TypeError) as error:
        raise InputError(f"{where}: {error}") from error


def check_keys(cls: type, values: Mapping[str, Any], *, where: str = "", prefix: str = "") -> None:
    """Raise an InputError with a suggestion for a key that `cls` does not have; nested keys are not checked.

    Args:
        cls: a dataclass.
        values: by key.
        where: the configuration, for the message; default: that of `cls`.
        prefix: of the keys, for the message.
    """
    known = [field.name for field in fields(cls)]
    for key, value in values.items():
        if field_name(key) not in known:
            where = where or f"configuration of {cls.__name__}"
            raise InputError(f"{where}: there is no key {prefix}{key}; {_suggestion(cls, str(key), value, prefix)}")


def field_name(key: str) -> str:
    """Return the name of the field of a key: `in_` for `in`, since no field can have the name of a Python keyword."""
    return f"{key}_" if iskeyword(key) else key


def key_name(field: str) -> str:
    """Return the key of a field, as a command line has it; the inverse of `field_name`."""
    return field[:-1] if iskeyword(field[:-1]) else field


def _with_tuples(cls: type, values: Mapping[str, Any], *, where: str, prefix: str) -> dict[str, Any]:
    """Return the values with a tuple for every list where `cls`, or a dataclass inside it, has a tuple."""
    if not isinstance(values, Mapping):
        raise InputError(f"{where}: {prefix[:-1] or 'it'} must hold keys and values, found {values!r}")
    annotations = get_type_hints(cls, include_extras=True)
    check_keys(cls, values, where=where, prefix=prefix)
    prepared: dict[str, Any] = {}
    for key, value in ((field_name(key), value) for key, value in values.items()):
        annotation = annotations[key]
        path = f"{prefix}{key}."
        # `X | None` with a value is X.
        if value is not None and type(None) in get_args(annotation) and len(get_args(annotation)) == 2:
            annotation = next(kind for kind in get_args(annotation) if kind is not type(None))
        if (kind := get_origin(annotation)) in (list, tuple):
            if not isinstance(value, list | tuple):
                advice = _quoting(value) or f"; write {prefix}{key}=[{value}]"
                raise InputError(f"{where}: {prefix}{key} must be a list, found {value!r}{advice}")
            inner = get_args(annotation)[0]
            prepared[key] = kind(_nested(inner, entry, where=where, prefix=path) for entry in value)
            for entry in value:
                check_number(inner, entry, f"{where}: {prefix}{key}")
        else:
            check_number(annotation, value, f"{where}: {prefix}{key}")
            prepared[key] = _nested(annotation, value, where=where, prefix=path)
    return prepared


def _suggestion(cls: type, key: str, value: Any, prefix: str) -> str:
    """Return which keys of `cls` may be meant by an unknown one: its present name, similar ones, or all."""
    known = [key_name(field.name) for field in fields(cls)]
    if (new := new_key(key, value)) in known:
        return f"it is now called {prefix}{new}"
    if near := get_close_matches(key, known, n=3):
        return f"nearest: {', '.join(prefix + name for name in near)}"
    if below := [path for name in (key, new) for path in _paths_to(cls, name, prefix)]:
        return f"nearest: {', '.join(dict.fromkeys(below))}"
    return f"known: {', '.join(prefix + name for name in known)}"


def _paths_to(cls: type, key: str, prefix: str) -> Iterator[str]:
    """Yield the dotted names of keys called `key` in the dataclasses inside `cls`."""
    for name, annotation in get_type_hints(cls).items():
        if name == key:
            yield f"{prefix}{name}"
        for kind in (annotation, *get_args(annotation)):
            if isinstance(kind, type) and is_dataclass(kind):
                yield from _paths_to(kind, key, f"{prefix}{name}.")


def _nested(annotation: Any, value: Any, *, where: str, prefix: str) -> Any:
    """Return a value, or the prepared values of a nested dataclass."""
    if isinstance(annotation, type) and is_dataclass(annotation) and isinstance(value, Mapping):
        return _with_tuples(annotation, value, where=where, prefix=prefix)
    if annotation in (int, float) and isinstance(value, bool):  # a bool is an int in Python
        raise InputError(f"{where}: {prefix[:-1]} must be {annotation.__name__}, found {value!r}")
    return value


def _quoting(value: Any) -> str:
    """Return advice for a list or dictionary that the command line could not parse, or nothing."""
    if not isinstance(value, str) or not value.startswith(("[", "{")):
        return ""
    return "; put texts in it with one of , = ( ) [ ] { } ' or letters beyond ASCII in quotes, as in '[\"Jürgen\"]'"


def config_tree(config: Any) -> dict[str, Any]:
    """Return a dataclass as plain nested values, with lists for tuples."""
    assert is_dataclass(config)
    # Through JSON, so that what is compared with a stored configuration has passed the same conversion.
    tree: dict[str, Any] = json.loads(json.dumps(asdict(config), default=str))  # type: ignore[arg-type]
    return tree


def differing_keys(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Return the dotted names at which two nested values differ, each with both values.

    Two spellings of one path are equal.

    Args:
        old: nested plain values.
        new: nested plain values.
        prefix: of the names, in the recursion.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        return [name for key in keys for name in differing_keys(old.get(key), new.get(key), f"{prefix}{key}.")]
    return [] if _same(old, new) else [f"{prefix[:-1]} ({old!r} -> {new!r})"]


def _same(old: Any, new: Any) -> bool:
    """Return whether two values are equal, with paths compared as paths."""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return all(_same(*pair) for pair in zip(old, new, strict=True))
    if isinstance(old, str) and isinstance(new, str) and old != new:  # data, data/, ./data, or the absolute path
        return "/" in old + new and Path(old).resolve() == Path(new).resolve()
    return bool(old == new)
