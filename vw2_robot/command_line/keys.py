"""The keys of a configuration: their names, types, defaults and meanings, for the terminal and for the documentation.

    COMMAND --keys [PREFIX]     prints the keys of one program, or those that begin with PREFIX

The meaning of a key is the docstring below its field. Defaults are those of the program's yaml file.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from vw2_robot.command_line.config_tree import key_name
from vw2_robot.limits import Limit

WIDTH = 100


@dataclass(frozen=True)
class Key:
    """One key: dotted name, type in words, default as yaml would write it, meaning ("" where its name says it)."""

    name: str
    type: str
    default: str
    meaning: str


def keys_of(config_cls: type, defaults: Mapping[str, Any], *, prefix: str = "") -> Iterator[Key]:
    """Yield the keys of a configuration dataclass and of the dataclasses inside it, in the order of their fields.

    Args:
        config_cls: the dataclass.
        defaults: nested plain values of its yaml file; they win over the defaults of the fields.
        prefix: dotted name of the section that `config_cls` describes, with a dot at the end.
    """
    annotations = get_type_hints(config_cls, include_extras=True)
    meanings = field_docstrings(config_cls)
    for field in fields(config_cls):
        annotation = annotations[field.name]
        key = key_name(field.name)
        name = f"{prefix}{key}"
        meaning = " ".join(meanings.get(field.name, "").split())
        default = field.default if field.default_factory is MISSING else field.default_factory()
        value = defaults.get(key, "???" if default is MISSING else default)
        # `X | None` with a dataclass X is a section too; `list[X]` is not, since its entries have no names.
        kinds = get_args(annotation) if type(None) in get_args(annotation) else (annotation,)
        inner = next((kind for kind in kinds if isinstance(kind, type) and is_dataclass(kind)), None)
        if inner is None:
            yield Key(name, describe_type(annotation), _shown(value), meaning)
            continue
        # A section gets a row only if that says more than the rows of its keys.
        if meaning or value is None:
            yield Key(name, f"section of {inner.__name__}", "null" if value is None else "", meaning)
        # Defaults of a section that no yaml file has come from the dataclass in the field; null leaves those of X.
        values = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        yield from keys_of(inner, values if isinstance(values, Mapping) else {}, prefix=f"{name}.")


@cache
def field_docstrings(config_cls: type) -> dict[str, str]:
    """Return the docstrings below the fields of a dataclass and of its bases, by the name of the field."""
    found: dict[str, str] = {}
    # From the bases down, so that a field that is declared again gets the meaning of the last declaration.
    for cls in reversed(config_cls.__mro__):
        if not is_dataclass(cls):
            continue
        # Python keeps no docstrings of fields, so they are read from the source.
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
        assert isinstance(body, ast.ClassDef)
        for statement, after in zip(body.body, body.body[1:], strict=False):
            if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
                continue
            if (
                isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
                and isinstance(after.value.value, str)
            ):
                found[statement.target.id] = inspect.cleandoc(after.value.value)
    return found


def describe_type(annotation: Any) -> str:
    """Return a type annotation in words, such as `integer of at least 1`, `list of text` or `number or null`."""
    origin = get_origin(annotation)
    if origin is Annotated:
        limits = [part.expected for part in get_args(annotation)[1:] if isinstance(part, Limit)]
        return limits[0].removeprefix("a ") if limits else describe_type(get_args(annotation)[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in get_args(annotation))
    if origin in (list, tuple):
        inner = [part for part in get_args(annotation) if part is not Ellipsis]
        return f"list of {describe_type(inner[0])}" if inner else "list"
    if origin is dict or annotation is dict:
        return "mapping"
    # `Optional[X]` and `X | None` have different origins.
    if origin is Union or origin is type(int | None):
        parts = [describe_type(part) for part in get_args(annotation) if part is not type(None)]
        return " or ".join([*parts, *(["null"] if type(None) in get_args(annotation) else [])])
    names = {int: "integer", float: "number", str: "text", bool: "`true` or `false`", Any: "any value"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def print_keys(config_cls: type, config_name: str, prefix: str) -> bool:
    """Print the keys of a program that begin with `prefix`, one block each.

    Args:
        config_cls: configuration dataclass of the program.
        config_name: name of its yaml file, without the suffix.
        prefix: start of the full names of keys; empty for all keys.

    Returns:
        Whether any key was found.
    """
    found = [key for key in keys_of(config_cls, defaults_of(config_name)) if key.name.startswith(prefix)]
    for key in found:
        print("\n".join(key_lines(key)))
    return bool(found)


def key_lines(key: Key) -> list[str]:
    """Return a key as lines for the terminal: name, type and default, then the meaning."""
    default = ", must be given" if key.default == "???" else f", default {key.default}" if key.default else ""
    head = f"{key.name}  ({key.type.replace('`', '')}{default})"
    return [head, *(f"    {line}" for line in textwrap.wrap(key.meaning, WIDTH))]


def defaults_of(config_name: str, *overrides: str) -> dict[str, Any]:
    """Return the values of a program's yaml file as Hydra composes them, `???` for what must be given.

    Args:
        config_name: of the yaml file.
        overrides: such as `model=paper`.
    """
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.singleton import Singleton
    from omegaconf import OmegaConf

    # Inside a program Hydra is at work already, and has room for one program at a time.
    running = Singleton.get_state()
    GlobalHydra.instance().clear()
    try:
        # Composed, not just read: a yaml file may take values from others.
        with initialize_config_module("vw2_robot.configs", version_base="1.3"):
            tree = compose(config_name, overrides=list(overrides))
    finally:
        Singleton.set_state(running)
    values: Any = OmegaConf.to_container(tree, resolve=True)
    assert isinstance(values, dict)
    return values


def _shown(value: Any) -> str:
    """Return a default as a command line would take it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(_shown(entry) for entry in value)}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_shown(entry)}" for key, entry in value.items()) + "}"
    if is_dataclass(value) and not isinstance(value, type):
        return _shown(asdict(value))
    return f"{value:g}" if isinstance(value, float) else str(value)
