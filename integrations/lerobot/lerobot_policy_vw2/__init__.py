"""vw2_robot in LeRobot: the policy `vw2` and the environment `vw2_calvin`. Importing this package registers both.

LeRobot imports it at the start of its programs, because an installed distribution has this name; or it is given as
`--env.discover_packages_path=lerobot_policy_vw2`. File and class names are those that LeRobot derives from `Vw2Config`:
`configuration_vw2`, `modeling_vw2` with `Vw2Policy`, `processor_vw2` with `make_vw2_pre_post_processors`.
"""

from .configuration_vw2 import Vw2Config
from .environment_vw2 import Vw2CalvinConfig

# Registers the processor step of a saved pipeline, which is otherwise "not found in registry".
from .processor_vw2 import ActionLimits

__all__ = ["ActionLimits", "Vw2CalvinConfig", "Vw2Config"]
