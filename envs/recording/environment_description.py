"""The description of a recording's environment in the reference's format: `.hydra/merged_config.yaml` of a data set.

The reference builds its environment from that file, which lies beside the frames of every split. It holds what the
classes of the reference need: cameras, robot, scene, rates, renderer, under their names there and with the same
references between the sections, so that a camera can be left out or a scene replaced as it can there. The file names
are those of `calvin_env/data`. Which assets were rendered by which program is stored under `recorded_with`, which the
reference does not read.
"""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from vw2_robot import __version__

from ..calvin import CONTROL_HZ, PHYSICS_HZ
from ..cameras import INTRINSICS, RENDERER_VERSIONS, STATIC_CAMERA_POSITION, STATIC_CAMERA_TARGET, STATIC_CAMERA_UP
from ..robot import (
    ARM_FORCE,
    ARM_JOINTS,
    ARM_LOWER,
    ARM_MAX_VELOCITY,
    ARM_UPPER,
    BASE_POSITION,
    FINGER_FORCE,
    FINGER_JOINTS,
    FINGER_OPEN_M,
    GRIPPER_CAMERA_LINK,
    INITIAL_ARM,
    TCP_LINK,
)
from ..scene import BUTTON_JOINT, DOOR_JOINTS, GLOBAL_SCALE, LIGHTS, SCENES, SWITCH_JOINT, scene_files

FLANGE_LINK = 7


def environment_yaml(
    *,
    scene: str,
    cameras: tuple[str, ...],
    renderer: str,
    assets: str,
    appearance: str = "scene",
    camera_sway: int = 0,
) -> str:
    """Return the text of `merged_config.yaml`.

    Args:
        scene: name of the scene, or of several ("ABC"), of which the first is described.
        cameras: names of the recorded cameras.
        renderer: name of the renderer.
        assets: "builtin" or the assets directory.
        appearance: "scene", or "sampled" where the images show other textures, colors and light.
        camera_sway: pixels by which the static image sways at most.
    """
    # ${...} are references between sections, which the reader resolves.
    tree = {
        "seed": 0,
        "use_vr": False,
        "show_gui": False,
        "data_path": "data",
        "cameras": {name: camera_section(name) for name in cameras},
        "scene": scene_section(scene[0]),
        "robot": robot_section(),
        "env": {
            "_target_": "calvin_env.envs.play_table_env.PlayTableSimEnv",
            "_recursive_": False,
            "cameras": "${cameras}",
            "seed": "${seed}",
            "bullet_time_step": float(PHYSICS_HZ),
            "use_vr": "${use_vr}",
            "show_gui": "${show_gui}",
            "robot_cfg": "${robot}",
            "scene_cfg": "${scene}",
            "use_scene_info": True,
            "use_egl": renderer == "egl",
            "control_freq": CONTROL_HZ,
        },
        "recorded_with": {
            "program": "vw2-record",
            "version": __version__,
            "scene": [f"calvin_scene_{name}" for name in scene] if len(scene) > 1 else f"calvin_scene_{scene}",
            "assets": assets,
            "renderer": renderer,
            "renderer_version": RENDERER_VERSIONS[renderer],
            # Left out where they are as usual, so that these recordings are described as those of earlier releases.
            **({} if appearance == "scene" else {"appearance": appearance}),
            **({"camera_sway": camera_sway} if camera_sway else {}),
        },
    }
    return OmegaConf.to_yaml(OmegaConf.create(tree))


def camera_section(name: str) -> dict[str, Any]:
    """Return the section of a camera."""
    intrinsics = INTRINSICS[name]
    kind = {"static": "static_camera.StaticCamera", "gripper": "gripper_camera.GripperCamera"}[name]
    tree: dict[str, Any] = {
        "_target_": f"calvin_env.camera.{kind}",
        "name": name,
        "fov": intrinsics.fov_deg,
        "aspect": 1,
        "nearval": intrinsics.near_m,
        "farval": intrinsics.far_m,
        "width": intrinsics.pixels,
        "height": intrinsics.pixels,
    }
    if name == "static":
        tree |= {
            "look_at": list(STATIC_CAMERA_TARGET),
            "look_from": list(STATIC_CAMERA_POSITION),
            "up_vector": list(STATIC_CAMERA_UP),
        }
    return tree


def robot_section() -> dict[str, Any]:
    """Return the section of the robot."""
    return {
        "_target_": "calvin_env.robot.robot.Robot",
        "filename": "franka_panda/panda_longer_finger.urdf",
        "base_position": "${scene.robot_base_position}",
        "base_orientation": "${scene.robot_base_orientation}",
        "initial_joint_positions": "${scene.robot_initial_joint_positions}",
        "max_joint_force": float(ARM_FORCE),
        "gripper_force": FINGER_FORCE[-1],
        "arm_joint_ids": list(ARM_JOINTS),
        "lower_joint_limits": ARM_LOWER.tolist(),
        "upper_joint_limits": ARM_UPPER.tolist(),
        "gripper_joint_ids": list(FINGER_JOINTS),
        "gripper_joint_limits": [0, FINGER_OPEN_M],
        "tcp_link_id": TCP_LINK,
        "end_effector_link_id": FLANGE_LINK,
        "gripper_cam_link": GRIPPER_CAMERA_LINK,
        "use_nullspace": True,
        "max_velocity": ARM_MAX_VELOCITY,
        "use_ik_fast": False,
        "magic_scaling_factor_pos": 1,
        "magic_scaling_factor_orn": 1,
        "use_target_pose": True,
        "euler_obs": True,
    }


def scene_section(name: str) -> dict[str, Any]:
    """Return the section of a scene."""
    table = SCENES[name]
    files = scene_files(name)
    # Which light each of the two controls switches.
    effects = {BUTTON_JOINT: "led", SWITCH_JOINT: "lightbulb"}
    blocks = zip(table.block_order, files.blocks, strict=True)
    return {
        "_target_": "calvin_env.scene.play_table_scene.PlayTableScene",
        "_recursive_": False,
        "data_path": "${data_path}",
        "global_scaling": GLOBAL_SCALE,
        "euler_obs": "${robot.euler_obs}",
        "robot_base_position": list(BASE_POSITION),
        "robot_base_orientation": [0, 0, 0],
        "robot_initial_joint_positions": list(INITIAL_ARM),
        "surfaces": {place: [list(low), list(high)] for place, (low, high) in table.surfaces.items()},
        "objects": {
            "fixed_objects": {
                "table": {
                    "file": files.table,
                    "initial_pos": [0, 0, 0],
                    "initial_orn": [0, 0, 0],
                    "joints": {joint: {"initial_state": 0} for joint in DOOR_JOINTS},
                    "buttons": {BUTTON_JOINT: {"initial_state": 0, "effect": effects[BUTTON_JOINT]}},
                    "switches": {SWITCH_JOINT: {"initial_state": 0, "effect": effects[SWITCH_JOINT]}},
                    "lights": {light: {"link": link, "color": list(color)} for light, (link, color) in LIGHTS.items()},
                }
            },
            "movable_objects": {
                block: {"file": file, "initial_pos": "any", "initial_orn": "any"} for block, file in blocks
            },
        },
    }
