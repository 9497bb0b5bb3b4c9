from dataclasses import dataclass, field
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from vw2_robot.command_line.overrides import as_typed


@dataclass(frozen=True)
class Data:
    path: str | list[str] | None = None
    splits: tuple[str, ...] = ()


@dataclass(frozen=True)
class Root:
    prompt: str = ""
    seed: int = 0
    env: dict[str, Any] = field(default_factory=dict)
    data: Data | None = None
    sequences: list[Any] | str | int | None = None


def read(argument: str) -> Any:
    """What Hydra makes of an argument once it is prepared."""
    override = OverridesParser.create().parse_override(as_typed([argument], Root)[0])
    assert not override.is_sweep_override()
    return override.value()


@pytest.mark.parametrize(
    "text",
    ["lr=1e-4", "a,b", "videos (old)", "Jürgen", "it's", "x#1", "2024", "true", "1e-4", "\\", "\\'", "a\nb", "x ", "?"],
)
def test_text_is_taken_as_it_was_typed(text: str) -> None:
    assert read(f"prompt={text}") == text
    assert read(f"data.path={text}") == text
    assert read(f"++data.path={text}") == text


@given(st.text(max_size=12))
def test_any_text_is_taken_as_it_was_typed_unless_it_is_quoted_null_or_escaped(text: str) -> None:
    said = read(f"prompt={text}")
    if text.strip() == "null":
        assert said is None
    elif "\\" not in text and text.strip()[:1] not in ("'", '"'):
        assert said == text
    assert isinstance(said, str | None)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("seed=3", 3),
        ("data={path: a}", {"path": "a"}),
        ("data.path=[a,b]", ["a", "b"]),
        ("data.path=[Jürgen, 2024,it's]", ["Jürgen", "2024", "it's"]),
        ("data.splits=[train[:5%]]", "[train[:5%]]"),  # no list: `config_from` says what to quote
        ("data.path=null", None),
        ("prompt='open the drawer, then stop'", "open the drawer, then stop"),
        ('prompt="it\'s"', "it's"),
        ("env.max_steps=5", 5),
        ("env.instructions=Jürgen.yaml", "Jürgen.yaml"),
        ("sequences=7", 7),
        ("sequences=0:100", "0:100"),
        ("sequences=[0:50,704]", ["0:50", 704]),
        ("seed=1,2", "1,2"),  # no sweeps: the dataclass says what is wrong with it
        ("+experiment=3a_vdm", "3a_vdm"),
    ],
)
def test_other_values_stay_what_they_are(argument: str, value: Any) -> None:
    assert read(argument) == value


def test_options_of_hydra_and_its_own_keys_pass() -> None:
    for words in ("--cfg job prompt=a", "--help", "hydra.verbose=true", "~data", "-m seed=1,2", "prompt"):
        assert as_typed(words.split(), Root) == words.split()
    assert as_typed(["--multirun", "data.path=a,b"], Root) == ["--multirun", "++data.path=a,b"]
