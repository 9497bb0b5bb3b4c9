"""Actions of one checkpoint on several Python versions, compared: one row per interpreter.

Run: python -m benchmarks.same_actions [--policy DIR] /path/to/python3.10 /path/to/python3.13 ...

Each interpreter needs what setup.cfg asks for without extras. It loads the policy (by default one of random weights,
saved by this program, with an action head), is called with three seeded images and an instruction each, one by one and
as a batch, and prints versions, the hash of the loaded weights, and the actions. The first row is the interpreter that
runs this program; the others are compared with it. Ends with status 1 if weights differ, if actions differ by more than
float32 rounding, or if an interpreter loaded TensorFlow.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from vw2_robot.agent import VW2Agent
from vw2_robot.checkpoint import save_checkpoint
from vw2_robot.command_line.config_tree import config_tree
from vw2_robot.contracts import Observation
from vw2_robot.data.statistics import ActionStatistics
from vw2_robot.models.policy.action_head import ActionHead
from vw2_robot.models.policy.ar_policy import LatentPolicy
from vw2_robot.models.policy.config import ActionHeadConfig, PolicyConfig

ROOT = Path(__file__).resolve().parents[1]
INSTRUCTIONS = ("open the drawer", "push the red block to the left", "Größe egal: 打开抽屉")  # not only ASCII
MOST = 1e-5
"""largest difference of an action that rounding can cause"""


def save_policy(folder: Path) -> None:
    """Save a policy of the default size, two latent steps, random weights from a seed."""
    settings = ActionHeadConfig()
    config = PolicyConfig()
    torch.manual_seed(0)
    policy = LatentPolicy(config, generator=torch.Generator().manual_seed(0))
    head = ActionHead(settings, width=policy.backbone.width, queries=config.queries, stride=4, action_size=7)
    actions = np.random.default_rng(0).uniform(-1, 1, (1000, 7))
    actions[:, -1] = np.sign(actions[:, -1])
    tree: dict[str, Any] = {"policy": config_tree(config), "head": config_tree(settings), "stride": 4}
    save_checkpoint(
        folder,
        kind="policy",
        config=tree | {"acting": "expected", "latent_steps": 2, "n_action_steps": 4},
        modules={"policy": policy, "head": head},
        facts={"control_hz": 30.0, "label_fraction": 1.0},
        files=policy.files() | {"stats": {"calvin": ActionStatistics.from_actions(actions).to_json()}},
    )


def act(folder: Path) -> dict[str, Any]:
    """Return versions and the policy's outputs in this interpreter. JSON keeps every bit of a float."""
    torch.set_num_threads(1)
    agent = VW2Agent.from_pretrained(folder)
    images = np.random.default_rng(0).integers(0, 256, (len(INSTRUCTIONS), 200, 200, 3), dtype=np.uint8)
    observations: list[Observation] = [
        {"images": {"static": image}, "prompt": text} for image, text in zip(images, INSTRUCTIONS, strict=True)
    ]
    # No randomness in control; the seed is set for policies that sample.
    agent.reset(seed=0)
    outputs = [agent.infer(observation) for observation in observations] + agent.infer_batch(observations)
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "tensorflow": "tensorflow" in sys.modules,
        "hash": agent.metadata["policy_hash"],
        # A policy with acting=none decodes none.
        "codes": [output["latent_tokens"].tolist() for output in outputs if "latent_tokens" in output],
        "actions": [output["actions"].tolist() for output in outputs],
    }


def ask(python: str, folder: Path) -> dict[str, Any]:
    """Run `act` in another interpreter.

    Raises:
        RuntimeError: it failed; with its output.
    """
    command = [python, "-m", "benchmarks.same_actions", "--act", "--policy", str(folder)]
    # Another interpreter must not import packages of this one.
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=600, check=False)
    if done.returncode:
        raise RuntimeError(f"{python} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    # The last line: libraries may print before it.
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def compare(pythons: list[str], folder: Path) -> bool:
    """Print the table; return whether all agree."""
    first = ask(sys.executable, folder)
    all_agree = True
    print(f"{'python':<10}{'numpy':<10}{'torch':<16}{'weights':<10}{'codes':<8}{'largest difference of an action':<34}")
    for answer in [first, *(ask(python, folder) for python in pythons)]:
        weights = answer["hash"] == first["hash"]
        codes = answer["codes"] == first["codes"]
        most = float(np.abs(np.subtract(answer["actions"], first["actions"])).max())
        all_agree &= weights and codes and most <= MOST and not answer["tensorflow"]
        difference = "bit-equal" if answer["actions"] == first["actions"] else f"{most:.1e}"
        difference += ", loaded TensorFlow" if answer["tensorflow"] else ""
        same = ("same" if weights else "OTHER", "same" if codes else "OTHER")
        print(f"{answer['python']:<10}{answer['numpy']:<10}{answer['torch']:<16}{same[0]:<10}{same[1]:<8}{difference}")
    return all_agree


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pythons", nargs="*", help="interpreters beside this one")
    parser.add_argument("--policy", type=Path, help="a fine-tuned policy; default: random weights")
    parser.add_argument("--act", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.act:
        print(json.dumps(act(options.policy)))
        return 0
    with TemporaryDirectory() as folder:
        policy = options.policy
        if policy is None:
            policy = Path(folder) / "policy"
            save_policy(policy)
        return 0 if compare(options.pythons, policy.resolve()) else 1


if __name__ == "__main__":
    sys.exit(main())
