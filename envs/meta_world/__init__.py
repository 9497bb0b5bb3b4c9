"""Meta-World as an environment, a benchmark and a source of demonstrations; needs the extra `metaworld`.

Importing this package registers the Gymnasium id `vw2_robot/MetaWorld-v0`; MuJoCo is loaded when an environment is
made. Tasks, physics, success and scripted experts are Meta-World's; the images are rendered here. Nothing in it
depends on CALVIN: it is the second robot that the library is tested on (docs/integrations/metaworld.md).
"""

from gymnasium.envs.registration import register, registry

from vw2_robot.contracts import ActionSpace
from vw2_robot.data.sources.recorded_robot import RecordedRobot

META_WORLD_ID = "vw2_robot/MetaWorld-v0"
CONTROL_HZ = 80.0
META_WORLD_ACTIONS = ActionSpace(
    ("dx", "dy", "dz", "gripper_effort"),
    "in [-1, 1]; 1 moves the target of the hand by 1 cm; effort 1 closes the fingers, -1 opens them",
)

if META_WORLD_ID not in registry:
    register(id=META_WORLD_ID, entry_point="vw2_robot.envs.meta_world.environment:MetaWorldEnv")


def recorded_robot(camera: str) -> RecordedRobot:
    """Return what recordings with this camera state about the robot."""
    return RecordedRobot("metaworld", CONTROL_HZ, camera, META_WORLD_ACTIONS)
