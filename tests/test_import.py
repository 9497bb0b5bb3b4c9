"""What an import costs: neither the package nor the agent pulls in frameworks or the simulator, and both are quick."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

HEAVY = (
    "tensorflow",
    "tensorflow_datasets",
    "reverb",
    "rlds",
    "pybullet",
    "hydra",
    "diffusers",
    "lerobot",
    "transformers",
)
FOR_THE_AGENT = tuple(name for name in HEAVY if name != "transformers")  # the backbone may need it

PROBE = """
import json, sys, time
def timed(statement):
    begin = time.perf_counter()
    exec(statement)
    return time.perf_counter() - begin
print(json.dumps([{statements}, sorted(name for name in sys.modules if "." not in name)]))
"""
TRIES = 6  # on a busy machine a time is too long by chance, never too short


def probe(*statements: str) -> list[Any]:
    """Seconds for each statement in one fresh interpreter, then the top-level modules that are loaded afterwards."""
    script = PROBE.replace("{statements}", ", ".join(f"timed({statement!r})" for statement in statements))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


ACT = """
import sys
for name in {absent!r}:
    sys.modules[name] = None  # as if it were not installed
import numpy
from vw2_robot import VW2Agent
agent = VW2Agent.from_pretrained("builtin:calvin-tiny", device="cpu")
agent.reset("open the drawer")
out = agent.infer({{"images": {{"static": numpy.zeros((200, 200, 3), numpy.uint8)}}, "prompt": "open the drawer"}})
print(out["actions"].shape)
"""


@pytest.mark.slow
def test_a_policy_acts_where_no_extra_is_installed() -> None:
    """`pip install .` alone; transformers and torch take what they find, so everything that extras bring is hidden."""
    # Not TensorFlow: einops imports it as soon as its name is among the modules, and the test above sees it come.
    absent = ("hydra", "omegaconf", "diffusers", "accelerate", "gymnasium", "pybullet", "peft", "matplotlib", "av")
    script = ACT.format(absent=absent)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout.split("\n")[0]) == (0, "(4, 7)"), done.stderr


@pytest.mark.sim
def test_the_simulator_package_loads_no_torch() -> None:
    _, loaded = probe("import vw2_robot.envs.calvin")
    assert "gymnasium" in loaded
    assert not set(loaded) & {"torch", "tensorflow", "diffusers", "transformers"}


def test_the_package_alone_loads_nothing_heavy_and_not_even_torch_in_a_tenth_of_a_second() -> None:
    times = []
    for _ in range(TRIES):
        seconds, loaded = probe("import vw2_robot")
        assert "vw2_robot" in loaded
        assert not set(loaded) & {*HEAVY, "torch", "numpy"}
        times.append(seconds)
        if seconds < 0.1:
            return
    raise AssertionError(f"import vw2_robot took {times} s")


def test_the_agent_loads_no_framework_and_no_simulator_and_adds_little_to_importing_torch() -> None:
    times = []
    for _ in range(TRIES):
        torch, agent, loaded = probe("import torch", "from vw2_robot import VW2Agent")
        assert not set(loaded) & set(FOR_THE_AGENT)
        times.append((torch, agent))
        if agent < max(0.3, 0.2 * torch):  # a slow disk slows both
            return
    raise AssertionError(f"seconds for torch and for the agent on top: {times}")


def test_an_unknown_name_is_refused_by_name() -> None:
    import vw2_robot

    with pytest.raises(AttributeError, match="VW3Agent"):
        vw2_robot.VW3Agent  # noqa: B018
