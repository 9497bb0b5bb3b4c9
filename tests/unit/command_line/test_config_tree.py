from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest
import yaml

from vw2_robot.command_line.config_tree import config_from, config_tree, differing_keys
from vw2_robot.errors import InputError


@dataclass(frozen=True)
class Level:
    width: int
    rate: float = 0.5


@dataclass(frozen=True)
class Root:
    name: str
    levels: tuple[Level, ...] = (Level(1),)
    pair: tuple[int, ...] = (1, 2)
    words: list[str] = field(default_factory=list)
    mode: Literal["causal", "none"] = "causal"
    inner: Level = field(default_factory=lambda: Level(8))
    limit: float | None = None

    def __post_init__(self) -> None:
        if len(self.pair) != 2:
            raise ValueError(f"pair must hold two numbers, found {self.pair}")


def test_lists_become_tuples_and_integers_floats():
    values = {"name": "a", "levels": [{"width": 3, "rate": 1}], "pair": [4, 5], "words": ["x"], "inner": {"width": 2}}
    root = config_from(Root, values)
    assert root == Root("a", (Level(3, 1.0),), (4, 5), ["x"], inner=Level(2))
    assert isinstance(root.levels[0].rate, float)


def test_a_configuration_survives_json_and_yaml():
    root = Root("a", (Level(3, 1e-5), Level(4)), (4, 5), ["x"], "none", limit=2.5)
    assert config_from(Root, config_tree(root)) == root
    assert config_from(Root, yaml.safe_load(yaml.safe_dump(config_tree(root)))) == root


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nmae": "a"}, r"there is no key nmae; nearest: name"),
        ({"inner": {"width": 1, "rat": 2}}, r"there is no key inner\.rat; nearest: inner\.rate"),
        (
            {"levels": [{"width": 1, "whatever": 2}]},
            r"there is no key levels\.whatever; known: levels\.width, levels\.rate",
        ),
        ({"width": 1}, r"there is no key width; nearest: levels\.width, inner\.width"),
        ({"rte": 1}, r"there is no key rte; known: name, levels, pair"),
        ({"inner": {"width": "8"}}, r"inner\.width must be int, found '8'"),
        ({"levels": [3]}, r"levels must be tuple\[.*Level.*found \(3,\)"),
        ({"words": "one"}, r"words must be a list, found 'one'; write words=\[one\]"),
        ({"pair": "12"}, r"pair must be a list, found '12'"),
        ({"mode": "casual"}, "mode must be causal or none, found 'casual'; nearest: causal"),
        ({"limit": "high"}, r"limit"),
        ({"inner": {"rate": 1.0}}, r'missing value for field "inner.width"'),
        ({"pair": [1, 2, 3]}, r"pair must hold two numbers, found \(1, 2, 3\)"),
    ],
)
def test_what_does_not_fit_is_named_with_what_was_expected(change, message):
    with pytest.raises(InputError, match=f"configuration of Root: .*{message}"):
        config_from(Root, {"name": "a", **change})


def test_differing_keys_are_named_with_both_values():
    old = {"a": 1, "b": {"c": 2, "d": [1, 2]}, "gone": 5}
    new = {"a": 1, "b": {"c": 3, "d": [1, 2]}, "new": 6}
    assert differing_keys(old, new) == ["b.c (2 -> 3)", "gone (5 -> None)", "new (None -> 6)"]
    assert differing_keys(old, old) == []


def test_two_spellings_of_one_path_do_not_differ(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    monkeypatch.chdir(tmp_path)
    for other in ("data/", "./data", str(tmp_path / "data"), "data/../data", "link/"):
        assert differing_keys({"path": "data"}, {"path": other}) == []
        assert differing_keys({"path": ["data", "b"]}, {"path": [other, "b"]}) == []
    for other in ("data2/", "../data", "gs://data", "Data/"):
        assert differing_keys({"path": "data"}, {"path": other}) == [f"path ('data' -> {other!r})"]
    assert differing_keys({"path": "gs://a/b"}, {"path": "gs://a/b/"}) == []
