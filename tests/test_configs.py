"""Every yaml in configs/ is a configuration that a program accepts, and every example in a --help works as printed."""

from __future__ import annotations

import configparser
import copy
import functools
import math
import re
import shlex
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import yaml
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from vw2_robot.command_line.config_tree import config_from, config_tree
from vw2_robot.command_line.entry_points import REPLAY_COMMANDS, all_programs
from vw2_robot.errors import InputError

REPO = Path(__file__).resolve().parents[1]
CONFIGS = REPO / "configs"
# Groups that no defaults list names, since they are left out as a rule: given as `+group=choice` to this program.
APPENDED = {"experiment": "pretrain"}
# Choices of a shared group that one of its programs has no use for -> what it says.
REFUSED = {("record", f"env={name}"): "records no demonstrations" for name in ("calvin_reference", "gymnasium")}


def root_names() -> list[str]:
    """The yaml files that belong to a program: those at the top of configs/, but for the shared fragments."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem != "quiet")


@functools.cache
def dataclass_of(config_name: str) -> Any:
    """Return the dataclass of the program that is configured by `config_name`."""
    return {name: config_cls for config_cls, name in all_programs().values()}[config_name]


def help_of(config_name: str) -> dict[str, str]:
    return yaml.safe_load((CONFIGS / f"{config_name}.yaml").read_text(encoding="utf-8"))["hydra"]["help"]


def examples(config_name: str) -> list[list[str]]:
    """The overrides of every example in the --help text."""
    help_text = help_of(config_name)
    lines = re.findall(rf"^\s*{re.escape(help_text['app_name'])} (\S.*)$", help_text["footer"], re.MULTILINE)
    assert lines, f"configs/{config_name}.yaml: the footer has no example that begins with {help_text['app_name']}"
    return [shlex.split(line) for line in lines]


def with_choice(config_name: str, choice: str) -> list[str]:
    """Overrides that make `choice` (group=file): an example of the help if one makes it, else the first, changed."""
    shown = [overrides for overrides in examples(config_name) if choice in overrides]
    group = choice.split("=")[0]
    return (
        shown[0]
        if shown
        else [
            choice,
            *WEIGHTS.get(choice, []),
            # Another choice of the group may not have the keys of the one in the example.
            *(word for word in examples(config_name)[0] if re.split(r"[.=]", word)[0] != group),
        ]
    )


# What has no default, since a random one must be asked for by name.
WEIGHTS = {
    f"model={name}": ["vdm.weights=DIR", "codec.weights=DIR"]
    for name in ("paper", "release", "cosmos25", "wan21", "wan22")
}


def composed(config_name: str, overrides: list[str]) -> dict[str, Any]:
    with initialize_config_module("vw2_robot.configs", version_base="1.3"):
        tree = compose(config_name, overrides=overrides)
    values = OmegaConf.to_container(tree, resolve=True, throw_on_missing=True)
    assert isinstance(values, dict)
    return values


def group_choices() -> list[tuple[str, str]]:
    """(program, override) for every file of every group that the program's defaults list names, and of `APPENDED`."""
    pairs = [
        (name, f"+{group}={file.stem}") for group, name in APPENDED.items() for file in (CONFIGS / group).glob("*.yaml")
    ]
    for name in root_names():
        defaults = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))["defaults"]
        groups = {next(iter(entry)).removeprefix("optional ") for entry in defaults if isinstance(entry, dict)}
        pairs += [
            (name, f"{group}={file.stem}") for group in sorted(groups) for file in (CONFIGS / group).glob("*.yaml")
        ]
    return pairs


@pytest.mark.parametrize("config_name", root_names())
def test_examples_of_the_help_compose_and_become_the_dataclass(config_name: str) -> None:
    dataclass = dataclass_of(config_name)
    for overrides in examples(config_name):
        assert isinstance(config_from(dataclass, composed(config_name, overrides)), dataclass)


def test_commands_of_the_demo_become_configurations_and_read_what_was_written_before() -> None:
    makefile = (REPO / "Makefile").read_text(encoding="utf-8").replace("\\\n", "")
    starts = re.search(r"^DEMO_STARTS := (.*)$", makefile, re.MULTILINE)
    recipe = re.search(r"^demo: .*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert starts is not None
    assert recipe is not None
    text = (
        recipe[1].replace("$(DEMO_STARTS)", starts[1]).replace("$(DEMO)", "demo").replace("stages=$$1", "stages=[vdm]")
    )
    written: set[str] = set()
    programs = []
    for program, words in re.findall(r"[;{\t]\s*\$\(BIN\)/(\S+) ([^;]*)", text):
        config_cls, config_name = all_programs()[program]
        overrides = shlex.split(words)
        assert isinstance(config_from(config_cls, composed(config_name, overrides)), config_cls)
        keys = dict(word.split("=", 1) for word in overrides)
        written |= {keys[key] for key in ("run_dir", "out") if key in keys}
        # The functions of the recipe come before what they read.
        read = {keys[key] for key in ("policy", "data.path") if keys.get(key, "").startswith("demo/")}
        assert program == "pretrain-on-openx" or read <= written, program
        programs.append(program)
    assert programs.count("vw2-rollout") == 2
    assert set(programs) >= {"vw2-record", "pretrain-on-openx", "vw2-finetune", "vw2-report"}


@pytest.mark.parametrize(("config_name", "override"), sorted(set(group_choices()) - REFUSED.keys()))
def test_every_choice_of_every_group_becomes_the_dataclass(config_name: str, override: str) -> None:
    dataclass = dataclass_of(config_name)
    assert isinstance(config_from(dataclass, composed(config_name, with_choice(config_name, override))), dataclass)


@pytest.mark.parametrize(("config_name", "override"), sorted(REFUSED))
def test_a_choice_that_a_program_cannot_use_is_refused(config_name: str, override: str) -> None:
    assert (config_name, override) in group_choices()
    with pytest.raises(ValueError, match=REFUSED[config_name, override]):
        config_from(dataclass_of(config_name), composed(config_name, with_choice(config_name, override)))


@pytest.mark.parametrize("config_name", root_names())
def test_a_misspelt_key_is_refused(config_name: str) -> None:
    values = composed(config_name, examples(config_name)[0])
    with pytest.raises(ValueError, match="sede"):
        config_from(dataclass_of(config_name), {**values, "sede": 1})


def numbers_of(cls: type, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """(dotted key, whether it is a whole number) of every number in a dataclass and in those inside it."""
    for name, annotation in get_type_hints(cls).items():
        for kind in (annotation, *get_args(annotation)):
            if is_dataclass(kind) and isinstance(kind, type) and get_origin(annotation) is None:
                yield from numbers_of(kind, f"{prefix}{name}.")
            elif kind in (int, float) and get_origin(annotation) not in (list, tuple):
                yield f"{prefix}{name}", kind is int
                break


@pytest.mark.parametrize("config_name", root_names())
def test_no_number_may_be_negative_where_it_counts_or_not_a_number(config_name: str) -> None:
    """The rule of `vw2_robot.limits`: the same for seeds, rates and sizes of all programs."""
    dataclass = dataclass_of(config_name)
    values = config_tree(config_from(dataclass, composed(config_name, examples(config_name)[0])))
    for key, is_whole in numbers_of(dataclass):
        *above, last = key.split(".")
        tree = copy.deepcopy(values)
        functools.reduce(lambda node, name: node[name], above, tree)[last] = -1 if is_whole else math.nan
        with pytest.raises(InputError, match=rf"{re.escape(last)}\b"):
            config_from(dataclass, tree)


def test_doctor_and_replay_cut_clips_as_training_does() -> None:
    training = config_from(dataclass_of("pretrain"), composed("pretrain", examples("pretrain")[0]))
    wanted = (
        training.dldm.num_frames,
        training.dldm.temporal_stride,
        training.data.target_hz,
        training.data.gap_seconds,
    )
    doctor = config_from(dataclass_of("doctor"), composed("doctor", [])).clips
    windows = config_from(dataclass_of("replay_fill"), composed("replay_fill", ["address=HOST:1"])).data.windows
    for cut in (doctor, windows):
        assert (cut.num_frames, cut.temporal_stride, cut.target_hz, cut.gap_seconds) == wanted
    with pytest.raises(InputError, match="target_hz or gap_seconds, not both"):
        config_from(type(training.data), {"target_hz": 5.0, "gap_seconds": 0.6})


@pytest.mark.parametrize("config_name", root_names())
def test_the_help_belongs_to_a_console_script(config_name: str) -> None:
    setup = configparser.ConfigParser()
    setup.read(REPO / "setup.cfg", encoding="utf-8")
    scripts = {row.split("=")[0].strip() for row in setup["options.entry_points"]["console_scripts"].splitlines()}
    command, *subcommand = help_of(config_name)["app_name"].split()
    assert command in scripts
    assert not subcommand or (command == "vw2-replay" and subcommand[0] in REPLAY_COMMANDS)
    assert help_of(config_name)["header"].strip()


def test_every_group_is_used_by_a_program() -> None:
    used = {override.split("=")[0].removeprefix("+") for _, override in group_choices()}
    assert {path.name for path in CONFIGS.iterdir() if path.is_dir() and path.name != "__pycache__"} == used
