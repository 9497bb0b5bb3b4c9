"""Every key of every program is documented: on the terminal, and on a page that is fresh."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from vw2_robot.command_line.configuration_page import configuration_page
from vw2_robot.command_line.entry_points import all_programs, rollout
from vw2_robot.command_line.keys import keys_of
from vw2_robot.limits import Count

PAGE = Path(__file__).resolve().parents[3] / "docs" / "configuration.md"


@dataclass(frozen=True)
class Inner:
    rate: float | None = None
    """Hz; null: as recorded,
    frame by frame"""


@dataclass(frozen=True)
class Base:
    seed: int = 0


@dataclass(frozen=True)
class Outer(Base):
    """A configuration."""

    kind: Literal["a", "b"] = "a"
    """which one"""
    sizes: list[int] = field(default_factory=lambda: [1, 2])
    inner: Inner = field(default_factory=Inner)
    count: Count = 3


def test_keys_have_type_default_and_meaning_of_bases_and_inner_dataclasses_too() -> None:
    keys = {
        key.name: (key.type, key.default, key.meaning) for key in keys_of(Outer, {"sizes": [4], "inner": {"rate": 5.0}})
    }
    assert keys == {
        "seed": ("integer", "0", ""),
        "kind": ("`a` or `b`", "a", "which one"),
        "sizes": ("list of integer", "[4]", ""),
        "inner.rate": ("number or null", "5", "Hz; null: as recorded, frame by frame"),
        "count": ("whole number of at least 1", "3", ""),
    }


def test_a_program_prints_its_keys(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["vw2-rollout", "--keys", "n_action"])
    rollout.main()
    assert capsys.readouterr().out.startswith("n_action_steps  (integer or null, default null)\n    ")
    monkeypatch.setattr(sys, "argv", ["vw2-rollout", "--keys", "nothing"])
    with pytest.raises(SystemExit, match="1"):
        rollout.main()
    assert "no key begins with 'nothing'" in capsys.readouterr().err


def test_the_page_is_what_the_docstrings_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == configuration_page(all_programs()), "run: make configuration"


def test_every_key_has_a_meaning() -> None:
    lacking = [
        f"{config_cls.__name__}: {key.name}"
        for config_cls, _ in set(all_programs().values())
        for key in keys_of(config_cls, {})
        if not key.meaning
    ]
    assert not lacking, "\n".join(["", *sorted(lacking)])
