"""Overfit a policy to ten demonstrations: does it reproduce the actions, and does it solve the tasks in closed loop?

    python -m benchmarks.overfit_ten out=runs/overfit_ten

Records ten demonstrations (scene D, built-in assets), trains a tiny policy on them from scratch with vw2-finetune and
evaluates it through `VW2Agent.infer` only:

- on the recorded images: mean absolute difference to the recorded actions in normalized units, over every action of
  every chunk (the gripper counts 0 or 2);
- in the simulator, from the same start states and with the same instructions: how often the task oracle confirms
  the task within 360 steps. No recorded action is replayed.

Prints a table and writes overfit.json. A stopped run continues. Further arguments are overrides of vw2-finetune.
"""

# L time steps of a trajectory · H actions of a chunk · A action dims
from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from vw2_robot.agent import VW2Agent
from vw2_robot.checkpoint import load_checkpoint
from vw2_robot.chunks import ChunkQueue
from vw2_robot.command_line.config_tree import config_from
from vw2_robot.contracts import GRIPPER_INDEX
from vw2_robot.data.sources.calvin import CalvinDataset, Trajectory
from vw2_robot.data.statistics import ActionStatistics
from vw2_robot.envs.calvin import CalvinEnv
from vw2_robot.envs.experts.start_states import Start, go_to_start
from vw2_robot.envs.oracle import TaskOracle
from vw2_robot.envs.recording.config import RecordConfig
from vw2_robot.envs.recording.demonstrations import MAX_ATTEMPTS
from vw2_robot.envs.recording.record import record
from vw2_robot.finetune.config import FinetuneConfig
from vw2_robot.finetune.train_head import finetune

MAX_STEPS = 360
RECORDING = ["episodes=10", "validation_episodes=2", "tasks=basic", "seed=0"]
# To memorize, not to generalize: neither image shift nor weight decay.
TRAINING = [
    "policy=scratch",
    "acting=none",
    "lambda_ce=0",
    "data.validation_split=validation",
    "image_shift_px=0",
    "head_lr_mult=1",
    "loop={train_steps: 3000, batch_size: 32, log_every: 200, save_every: 200, "
    "optim: {lr: 1.5e-3, beta2: 0.98, weight_decay: 0.0, warmup_steps: 50}}",
    "hardware={device: cpu, precision: float32, threads: 1}",
]


def configured(cls: type[Any], program: str, overrides: list[str]) -> Any:
    """Return the configuration that a program composes from overrides."""
    with initialize_config_module("vw2_robot.configs", version_base="1.3"):
        return config_from(cls, OmegaConf.to_container(compose(program, overrides), resolve=True))  # type: ignore[arg-type]


def reproduction(agent: VW2Agent, statistics: ActionStatistics, dataset: CalvinDataset) -> dict[str, float]:
    """Return the differences between the agent's chunks and the recorded actions, in normalized units."""
    arm_errors = []
    gripper_errors = []
    for trajectory in dataset.trajectories:
        recorded = dataset.read_actions(trajectory)
        for start, image in enumerate(dataset.read_images(trajectory)[:-1]):
            # Every image is treated as the first of an episode, so no chunk is left over.
            agent.reset(trajectory.instruction)
            found = agent.infer({"images": {"static": image}, "prompt": trajectory.instruction})["actions"]
            # At the end of a trajectory a chunk is longer than what was recorded.
            real = recorded[start : start + len(found)]
            off = np.abs(statistics.normalize(found[: len(real)]) - statistics.normalize(real))
            gripper_errors.append(off[:, GRIPPER_INDEX])
            arm_errors.append(np.delete(off, GRIPPER_INDEX, axis=1))
    arm = np.concatenate(arm_errors)
    gripper = np.concatenate(gripper_errors)
    every = np.concatenate([arm, gripper[:, None]], axis=1)
    return {
        "mean_error": round(float(every.mean()), 4),
        "arm_error": round(float(arm.mean()), 4),
        "arm_error_p99": round(float(np.quantile(arm, 0.99)), 4),
        "gripper_wrong": round(float((gripper > 0).mean()), 4),
    }


def start_of(env: CalvinEnv, dataset: CalvinDataset, number: int, trajectory: Trajectory, seed: int) -> Start:
    """Return the start state of recording `number`, sampled from its seed and compared with the recorded one."""
    recorded = [dataset.read(trajectory, key, [0])[0] for key in ("robot_obs", "scene_obs")]
    for attempt in range(MAX_ATTEMPTS):  # the recorder sampled again when the expert failed
        rng = np.random.default_rng([seed, 0, number, attempt])
        start = go_to_start(env, trajectory.task, TaskOracle(), rng)
        if all(np.array_equal(a, b) for a, b in zip(recorded, (env.robot_obs(), env.scene_obs()), strict=True)):
            return start
    raise AssertionError(f"no sample of recording {number} begins where it was recorded")


def replay(agent: VW2Agent, dataset: CalvinDataset, *, seed: int, n_action_steps: int) -> list[dict[str, Any]]:
    """Run the policy from every recorded start; return task, steps, and whether the oracle confirmed it."""
    env = CalvinEnv(cameras=(), reset_mode="exact")
    oracle = TaskOracle()
    rows = []
    for number, trajectory in enumerate(dataset.trajectories):
        # Exactly the recorded start, so that a failure is one of the policy.
        start_of(env, dataset, number, trajectory, seed).restore(env)
        before = env.task_info()
        queue = ChunkQueue(agent, n_action_steps=n_action_steps)
        queue.reset(trajectory.instruction)
        solved = steps = 0
        while not solved and steps < MAX_STEPS:
            images = {"static": env.render_camera("static")} if queue.needs_observation else {}
            env.step_physics(queue.action({"images": images, "prompt": trajectory.instruction}).astype(np.float64))
            steps += 1
            solved = trajectory.task in oracle.get_task_info_for_set(before, env.task_info(), (trajectory.task,))
        rows.append({"task": trajectory.task, "recorded": trajectory.length, "steps": steps, "solved": bool(solved)})
    env.close()
    return rows


def main() -> None:
    """Record, train, compare actions, run in closed loop."""
    torch.set_num_threads(1)
    given = dict(item.split("=", 1) for item in sys.argv[1:] if item.startswith("out="))
    out = Path(given.get("out", "runs/overfit_ten"))
    begin = time.process_time()
    recording = configured(RecordConfig, "record", [*RECORDING, f"out={out}/demonstrations"])
    record(recording)
    recorded = time.process_time()
    more = [item for item in sys.argv[1:] if not item.startswith("out=")]
    places = [f"data.path={out}/demonstrations", f"run_dir={out}/policy"]
    finetune(configured(FinetuneConfig, "finetune", [*TRAINING, *places, *more]))
    trained = time.process_time()
    dataset = CalvinDataset(out / "demonstrations")
    agent = VW2Agent.from_pretrained(out / "policy")
    statistics = ActionStatistics.from_json(load_checkpoint(out / "policy", kind="policy").files["stats"]["calvin"])
    found: dict[str, Any] = {"reproduction": reproduction(agent, statistics, dataset), "closed_loop": {}}
    print(found["reproduction"], flush=True)
    # From the trained number of executed actions down to one.
    for every in sorted({agent.metadata["n_action_steps"], 1, 2}, reverse=True):
        rows = replay(agent, dataset, seed=recording.seed, n_action_steps=every)
        found["closed_loop"][str(every)] = {"success": sum(row["solved"] for row in rows) / len(rows), "rows": rows}
        print(f"policy call every {every} steps: {sum(row['solved'] for row in rows)} of {len(rows)} solved")
        for row in rows:
            print(
                f"  {row['task']:<24}{row['steps']:>5} steps, recorded in {row['recorded']:>3}, solved: {row['solved']}"
            )
    found["cpu_seconds"] = {"recording": round(recorded - begin, 1), "training": round(trained - recorded, 1)}
    print(f"processor seconds: {found['cpu_seconds']}")
    (out / "overfit.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
