"""What one control step of the simulator costs, with and without a picture: one table.

Run: python -m benchmarks.environment_steps

CPU seconds of one process, so a busy machine changes little. A policy that looks every fourth step pays a quarter of
the difference; rollouts therefore call `step_physics` and render only when the policy looks.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from vw2_robot.envs.calvin import CalvinEnv

SECONDS = 3.0
LOOK_EVERY = 4


def steps_per_second(step: Callable[[int], object]) -> float:
    """Call `step(number)` for about `SECONDS` of CPU time."""
    step(0)
    begin, count = time.process_time(), 0
    while time.process_time() - begin < SECONDS:
        count += 1
        step(count)
    return count / (time.process_time() - begin)


def main() -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (512, 7))
    actions[:, 6] = np.sign(actions[:, 6])
    print(f"{'scene':<8}{'what':<32}{'steps/s':>10}")
    for scene in "AD":
        env = CalvinEnv(scene=scene, cameras=())
        env.reset(seed=0)

        def physics(number: int, env: CalvinEnv = env) -> None:
            env.step_physics(actions[number % len(actions)])

        def look_sometimes(number: int, env: CalvinEnv = env) -> None:
            env.step_physics(actions[number % len(actions)])
            if number % LOOK_EVERY == 0:
                env.render_camera("static")

        def look_always(number: int, env: CalvinEnv = env) -> None:
            env.step_physics(actions[number % len(actions)])
            env.render_camera("static")

        cases = {
            "physics": physics,
            f"static camera every {LOOK_EVERY}th step": look_sometimes,
            "static camera every step": look_always,
        }
        for name, step in cases.items():
            print(f"{scene:<8}{name:<32}{steps_per_second(step):>10.0f}")
        env.close()


if __name__ == "__main__":
    main()
