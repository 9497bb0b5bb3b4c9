"""LeRobot's asynchronous policy server for this policy: `python -m lerobot_policy_vw2.policy_server --port=8080 ...`.

LeRobot's own program neither looks for plugins nor serves a policy that is not in a list of its own. The options, the
protocol and the robot client (`python -m lerobot.async_inference.robot_client --policy_type=vw2 ...`) are LeRobot's.
The protocol carries pickles: whoever reaches the port can run any code. `vw2-serve` has no such messages.
"""

from __future__ import annotations

from vw2_robot.hub.lerobot_files import POLICY_TYPE


def main() -> None:
    """Serve until the process is stopped."""
    # Imported here: `--env.discover_packages_path` imports this file where gRPC may not be installed.
    from lerobot.async_inference.constants import SUPPORTED_POLICIES
    from lerobot.async_inference.policy_server import serve

    SUPPORTED_POLICIES.append(POLICY_TYPE)
    serve()


if __name__ == "__main__":
    main()
