from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from vw2_robot.command_line.spellings import as_overrides
from vw2_robot.errors import InputError


@dataclass(frozen=True)
class Data:
    path: str | None = None
    stream: bool = False


@dataclass(frozen=True)
class Root:
    prompt: str = ""
    run: str = ""
    seed: int = 0
    label_fraction: float = 1.0
    mode: Literal["chain", "single"] = "chain"
    stages: tuple[str, ...] = ()
    tasks: str | list[str] = "all"
    env: dict[str, Any] = field(default_factory=dict)
    data: Data = field(default_factory=Data)


def read(line: str) -> list[str]:
    return as_overrides(line.split(), Root, ["env", "model"])


@pytest.mark.parametrize(
    ("line", "overrides"),
    [
        ("--label_fraction 0.1", ["label_fraction=0.1"]),
        ("--label-fraction=0.1 --seed 3", ["label_fraction=0.1", "seed=3"]),
        ("--seed -1", ["seed=-1"]),
        ("--data.path x --model tiny", ["data.path=x", "model=tiny"]),
        ("--data.stream seed=1", ["data.stream=true", "seed=1"]),
        ("--data.stream false", ["data.stream=false"]),
        ("--run runs/a", ["run=runs/a"]),  # also an option of Hydra
        ("--stages vdm dldm seed=1", ["stages=[vdm,dldm]", "seed=1"]),
        ("--tasks open close", ["tasks=[open,close]"]),
        ("--tasks open seed=1", ["tasks=open", "seed=1"]),
        ("--stages [vdm, dldm]", ["stages=[vdm, dldm]"]),
        ("stages=[vdm, dldm] seed=1", ["stages=[vdm, dldm]", "seed=1"]),
        ("prompt=open the drawer, then stop seed=1", ["prompt=open the drawer, then stop", "seed=1"]),
        ("--prompt open the drawer", ["prompt=open the drawer"]),
        ("env.instructions=a b", ["env.instructions=a b"]),
        ("--label_fracton 0.1", ["label_fracton=0.1"]),  # the nearest key is named when keys are checked
        ("-m seed=1,2 --cfg job ~data +env=a", ["-m", "seed=1,2", "--cfg", "job", "~data", "+env=a"]),
        ("--config-dir x --multirun", ["--config-dir", "x", "--multirun"]),
    ],
)
def test_what_people_type_becomes_keys_and_values(line: str, overrides: list[str]) -> None:
    assert read(line) == overrides


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--seed", "--seed has no value; write seed=VALUE"),
        ("--seed --prompt x", "--seed has no value"),
        ("seed=1 x", "'x' belongs to no key"),
        ("mode=single x", "'x' belongs to no key"),
        ("prompt", "'prompt' belongs to no key; write key=value"),
        ("--cfg job x", "'x' belongs to no key"),
    ],
)
def test_an_argument_of_no_key_is_refused(line: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(line)
