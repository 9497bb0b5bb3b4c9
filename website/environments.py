"""The pages docs/environments/ from the code that they describe: spaces, tasks, scene tables and moving images.

python -m website.environments                 # pages and images, half a minute
python -m website.environments --pages-only    # without rendering
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

import vw2_robot.envs.meta_world as meta_world
from vw2_robot.contracts import ACTION_NAMES, POSITION_UNIT_M, ROTATION_UNIT_RAD, Benchmark
from vw2_robot.envs.benchmark import CalvinBenchmark
from vw2_robot.envs.calvin import CONTROL_HZ, MAX_STATE
from vw2_robot.envs.cameras import INTRINSICS
from vw2_robot.envs.experts.demonstrator import DemonstratorPolicy
from vw2_robot.envs.instructions import load_instructions
from vw2_robot.envs.meta_world.benchmark import ExpertPolicy, MetaWorldBenchmark
from vw2_robot.envs.meta_world.environment import STATE_SIZE
from vw2_robot.envs.oracle import ROTATE_MAX_SHIFT_M, load_tasks
from vw2_robot.envs.other_robots.environment import COMMAND_HZ, EMBODIMENTS, solved_episodes
from vw2_robot.envs.other_robots.world import COLORS, SHAPES
from vw2_robot.envs.robot import ROBOT_OBS_SIZE
from vw2_robot.envs.scene import SCENE_NAMES, SCENE_OBS_SIZE, SCENES, TABLE_JOINTS
from vw2_robot.envs.task_wrapper import start_states

REPO = Path(__file__).resolve().parents[1]
PAGES = REPO / "docs" / "environments"
MADE = "<!-- written by: python -m website.environments -->"
SHOWN = {"A": "open_drawer", "B": "move_slider_left", "C": "lift_red_block_table", "D": "turn_on_lightbulb"}
"""Task that the image of a scene shows."""
META_WORLD_SHOWN = "drawer-open-v3"
FRAMES_HZ = 10
WEBP = {"quality": 85, "method": 6}
Frames = Sequence[NDArray[np.uint8]]


def calvin_page(scene: str) -> str:
    """Return the page of one of CALVIN's scenes."""
    table = SCENES[scene]
    surfaces = [
        (f"`{name}`", *(f"{low:g} … {high:g}" for low, high in zip(*corners, strict=True)))
        for name, corners in table.surfaces.items()
    ]
    return page(
        "calvin",
        scene=scene,
        task=SHOWN[scene],
        instruction=load_instructions("validation")[SHOWN[scene]][0],
        spaces=list(calvin_spaces()),
        tasks=list(calvin_tasks()),
        surfaces=surfaces,
        blocks=", ".join(f"{color} ({size})" for color, size in table.blocks),
        block_order=", ".join(table.block_order),
        joints=", ".join(joint.removeprefix("base__") for joint in TABLE_JOINTS),
        slide_range=table.slide_range,
        robot_obs=ROBOT_OBS_SIZE,
        scene_obs=SCENE_OBS_SIZE,
    )


def calvin_spaces() -> Iterable[tuple[str, str, str]]:
    """Yield the rows of the table of spaces."""
    for camera, intrinsics in INTRINSICS.items():
        side = intrinsics.pixels
        use = "what policies get" if camera == "static" else 'with `cameras=("static", "gripper")`'
        yield f"`rgb_{camera}`", f"uint8 [{side}, {side}, 3]", f"image of the {camera} camera; {use}"
    names = ", ".join(ACTION_NAMES)
    units = f"1 is {POSITION_UNIT_M:g} m or {ROTATION_UNIT_RAD:g} rad; gripper: above 0 opens, below closes"
    yield "action", f"float64 [{len(ACTION_NAMES)}] in [-1, 1]", f"{names}; {units}; {CONTROL_HZ} per second"
    limit = f"[-{MAX_STATE:g}, {MAX_STATE:g}]"
    yield "without cameras", f"float64 [{ROBOT_OBS_SIZE}], [{SCENE_OBS_SIZE}] in {limit}", "`robot_obs`, `scene_obs`"


def calvin_tasks() -> Iterable[tuple[str, ...]]:
    """Yield the rows of the table of tasks."""
    evaluation, training = load_instructions("validation"), load_instructions("train")
    for task, (predicate, *arguments) in load_tasks().items():
        solved = CRITERIA[predicate](*arguments)
        yield f"`{task}`", evaluation[task][0], str(len(training[task])), solved, str(len(start_states(task)))


def _signed(value: float, positive: str, negative: str) -> str:
    return positive if value > 0 else negative


def _named(name: str) -> str:
    parts = {"base_link": "table", "plank_link": "compartment of the door", "drawer_link": "drawer"}
    return parts.get(name) or name.removeprefix("base__").replace("slide", "door")


def _block(name: str) -> str:
    return f"{name.removeprefix('block_')} block"


# What the oracle's predicates ask for (envs/oracle.py), in words.
CRITERIA: dict[str, Callable[..., str]] = {
    "rotate_object": lambda block, degrees: (
        f"{_block(block)} turned {_signed(degrees, 'counter-clockwise', 'clockwise')} by more than {abs(degrees)}°, "
        f"shifted by less than {ROTATE_MAX_SHIFT_M:g} m, put down"
    ),
    "push_object": lambda block, dx, dy: (
        f"{_block(block)} more than {abs(dx):g} m to the {_signed(dx, 'right', 'left')}, on the same surface"
    ),
    "move_door_rel": lambda joint, change: (
        f"{_named(joint)} moved by more than {abs(change):g} m ({_signed(change, '+', '-')})"
    ),
    "lift_object": lambda block, dz, body, link: (
        f"{_block(block)} from the {_named(link)} raised by more than {dz:g} m, touched by the robot alone"
    ),
    "place_object": lambda body, link: f"the block in the gripper was released and touches the {_named(link)}",
    "stack_objects": lambda: "a block rests on blocks and on nothing else",
    "unstack_objects": lambda: "a block that rested on another touches none",
    "toggle_light": lambda light, before, after: f"{light} goes {'on' if after else 'off'}",
    "push_object_into": lambda blocks, body, link, into, into_link: (
        f"a block from the {_named(link)} is in the {_named(into_link)}"
    ),
}


def other_robots_page() -> str:
    """Return the page of the environment of other robots."""
    return page(
        "other_robots",
        embodiments=EMBODIMENTS,
        shapes=list(SHAPES),
        colors=list(COLORS),
        hz=f"{COMMAND_HZ:g}",
        position=POSITION_UNIT_M,
        rotation=ROTATION_UNIT_RAD,
    )


def meta_world_page() -> str:
    """Return the page of Meta-World."""
    config = yaml.safe_load((REPO / "configs" / "env" / "metaworld.yaml").read_text(encoding="utf-8"))
    return page(
        "meta_world",
        tasks=config["tasks"],
        shown=META_WORLD_SHOWN,
        state_size=STATE_SIZE,
        action=meta_world.META_WORLD_ACTIONS,
        hz=f"{meta_world.CONTROL_HZ:g}",
    )


def page(template: str, **facts: Any) -> str:
    """Return a page: a template with the facts in it."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=False,
    )
    return environment.get_template(f"{template}.md.jinja").render(made=MADE, **facts)


def pages() -> dict[str, str]:
    """Return all pages by their file names."""
    made = {f"calvin_{scene.lower()}.md": calvin_page(scene) for scene in SCENE_NAMES}
    return made | {"other_robots.md": other_robots_page(), "meta_world.md": meta_world_page()}


def expert_frames(world: Benchmark, expert: Any, task: str, sequence: Any, *, longest: int = 150) -> list[Any]:
    """Return what the policy's camera sees while an expert does a task, `FRAMES_HZ` per second.

    Args:
        world: a benchmark.
        expert: its scripted expert.
        task: one of its tasks.
        sequence: where to begin.
        longest: most control steps.
    """
    world.reset(sequence)
    world.begin(task)
    expert.reset(world.instruction(task), seed=0)
    frames, stride = [], round(world.control_hz / FRAMES_HZ)
    for step in range(longest):
        observation = world.observe()
        if step % stride == 0:
            frames.append(next(iter(observation["images"].values())))
        if world.step(expert.infer(observation)["actions"][0]):
            break
    return [*frames, next(iter(world.observe()["images"].values()))]


def calvin_frames(scene: str) -> list[Any]:
    """Return the moving image of one of CALVIN's scenes."""
    world = CalvinBenchmark(scene=scene)
    expert: DemonstratorPolicy = world.expert()
    starts = {sequence.subtasks[0]: sequence for sequence in world.single_tasks(1)}
    frames = expert_frames(world, expert, SHOWN[scene], starts[SHOWN[scene]])
    world.close()
    return frames


def meta_world_frames() -> list[Any]:
    """Return the moving image of Meta-World."""
    world = MetaWorldBenchmark(tasks={META_WORLD_SHOWN: "open the drawer"}, image_size=200)
    expert: ExpertPolicy = world.expert()
    frames = expert_frames(world, expert, META_WORLD_SHOWN, world.sequences(1)[0])
    world.close()
    return frames


def save(frames: Frames, file: Path, *, hz: float) -> None:
    """Write frames as a moving webp that waits for a second at its end."""
    images = [Image.fromarray(frame) for frame in frames]
    durations = [round(1000 / hz)] * (len(images) - 1) + [1000]
    images[0].save(file, save_all=True, append_images=images[1:], duration=durations, loop=0, **WEBP)


def main() -> None:
    """Write the pages and their images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages-only", action="store_true", help="write no images")
    pages_only = parser.parse_args().pages_only
    PAGES.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (PAGES / name).write_text(text, encoding="utf-8")
    if pages_only:
        return
    for scene in SCENE_NAMES:
        save(calvin_frames(scene), PAGES / f"calvin_{scene.lower()}.webp", hz=FRAMES_HZ)
    for name in EMBODIMENTS:
        (episode,) = solved_episodes(1, seed=0, image_size=200, embodiments=[name])
        save(list(episode.images), PAGES / f"other_robots_{name}.webp", hz=episode.hz)
    save(meta_world_frames(), PAGES / "meta_world.webp", hz=FRAMES_HZ)


if __name__ == "__main__":
    main()
