"""A ROS 2 node between a camera, an arm and `vw2-serve`: it runs in ROS's Python, the policy in another process.

    vw2-serve policy=runs/first/finetune
    python -m vw2_robot.serving.ros2_node --ros-args -r image:=/camera/image_raw -p control_hz:=30.0

Subscribes `image` (sensor_msgs/Image, or CompressedImage with `compressed:=true`) and `instruction` (std_msgs/String);
publishes `twist` (geometry_msgs/TwistStamped, what MoveIt Servo takes) in every tick and `gripper` (std_msgs/Float64,
-1 close, +1 open) with every command. Without a command the twist is zero. Needs numpy, Pillow, msgpack and websockets
beside ROS, and no torch. docs/integrations/ros2.md.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vw2_robot.contracts import GRIPPER_INDEX, POSITION_UNIT_M, ROTATION_UNIT_RAD
from vw2_robot.errors import InputError, MissingExtraError
from vw2_robot.process import orderly

from .client import PolicyClient
from .control_loop import ControlLoop
from .metric_actions import MetricUnits, rotation_vector

CHANNELS = {"rgb8": [0, 1, 2], "rgba8": [0, 1, 2], "bgr8": [2, 1, 0], "bgra8": [2, 1, 0]}
"""encoding of sensor_msgs/Image -> where red, green and blue are"""
LOG_SECONDS = 5.0


def read_image(message: Any) -> NDArray[np.uint8]:
    """Return the RGB image [H, W, 3] of a sensor_msgs/Image.

    Raises:
        InputError: another encoding, or less data than height, width and step ask for.
    """
    if message.encoding not in CHANNELS:
        raise InputError(f"image encoding {message.encoding!r}, expected one of {', '.join(CHANNELS)}")
    size = len(message.encoding.removesuffix("8"))
    data = np.frombuffer(message.data, np.uint8)
    height, width, row = message.height, message.width, message.step
    # `step` is the length of a row, which may end in padding.
    if not height or not width or row < width * size or len(data) != height * row:
        raise InputError(f"an image of {height} x {width} in rows of {row} bytes came with {len(data)} bytes")
    pixels = data.reshape(height, row)[:, : width * size].reshape(height, width, size)
    return np.ascontiguousarray(pixels[..., CHANNELS[message.encoding]])


def read_compressed_image(message: Any) -> NDArray[np.uint8]:
    """Return the RGB image [H, W, 3] of a sensor_msgs/CompressedImage, JPEG or PNG.

    Raises:
        InputError: it cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(message.data), formats=("JPEG", "PNG")) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"a compressed image ({message.format!r}) cannot be decoded ({error})") from error


def stamp_seconds(message: Any) -> float:
    """Return when an image was taken."""
    return float(message.header.stamp.sec + 1e-9 * message.header.stamp.nanosec)


def velocities(
    command: NDArray[np.floating[Any]] | None, *, control_hz: float, units: MetricUnits
) -> tuple[list[float], list[float]]:
    """Return linear (m/s) and angular velocity (rad/s) that make a command's displacement within one tick.

    Args:
        command: seven numbers; None: stand still.
        control_hz: ticks per second.
        units: of the command.
    """
    if command is None:
        return [0.0] * 3, [0.0] * 3
    metric = units.convert(command)
    return (metric[:3] * control_hz).tolist(), (rotation_vector(metric[3:6]) * control_hz).tolist()


class PolicyNode:
    """A node of rclpy with its parameters, its publishers and the callbacks between them and a control loop.

    Args:
        node: of rclpy.
        twist_message: geometry_msgs/TwistStamped.
        gripper_message: std_msgs/Float64.
    """

    def __init__(self, node: Any, twist_message: Callable[[], Any], gripper_message: Callable[..., Any]) -> None:
        self.control_hz = float(node.declare_parameter("control_hz", 30.0).value)
        self.is_compressed = bool(node.declare_parameter("compressed", False).value)
        self._node = node
        self._frame_id = str(node.declare_parameter("frame_id", "base_link").value)
        self._units = MetricUnits(
            position_m=node.declare_parameter("position_m", POSITION_UNIT_M).value,
            rotation_rad=node.declare_parameter("rotation_rad", ROTATION_UNIT_RAD).value,
        )
        self._twist_message, self._gripper_message = twist_message, gripper_message
        self._twists = node.create_publisher(twist_message, "twist", 1)
        self._grippers = node.create_publisher(gripper_message, "gripper", 1)

    def open_client(self) -> PolicyClient:
        """Connect with the server that the parameters name."""
        parameter = self._node.declare_parameter
        return PolicyClient(
            parameter("server", "ws://127.0.0.1:8000").value,
            None,
            api_key=parameter("api_key", "").value or None,
            answer_seconds=parameter("answer_seconds", 10.0).value,
        )

    def make_loop(self, client: PolicyClient, executor: Executor) -> ControlLoop:
        """Return the loop that the parameters describe."""
        parameter = self._node.declare_parameter
        return ControlLoop(
            client,
            executor,
            camera=parameter("camera", "static").value,
            max_image_age_seconds=parameter("max_image_age_seconds", 0.5).value,
            n_action_steps=parameter("n_action_steps", 0).value or None,
        )

    def on_image(self, loop: ControlLoop, message: Any) -> None:
        """Hand an image to the loop."""
        try:
            image = read_compressed_image(message) if self.is_compressed else read_image(message)
            loop.set_image(image, stamp_seconds(message))
        except InputError as error:  # the image before grows stale, and the robot stops
            self._node.get_logger().error(str(error), throttle_duration_sec=LOG_SECONDS)

    def tick(self, loop: ControlLoop) -> None:
        """Publish the loop's command of this moment."""
        command = None
        try:
            command = loop.command(self._node.get_clock().now().nanoseconds * 1e-9)
        except InputError as error:
            self._node.get_logger().error(str(error), throttle_duration_sec=LOG_SECONDS)
        if loop.waits_for:
            self._node.get_logger().info(f"waits for {loop.waits_for}", throttle_duration_sec=LOG_SECONDS)
        self.publish(command)

    def publish(self, command: NDArray[np.float64] | None) -> None:
        """Publish a command, or a zero twist for None."""
        linear, angular = velocities(command, control_hz=self.control_hz, units=self._units)
        message = self._twist_message()
        message.header.stamp = self._node.get_clock().now().to_msg()
        message.header.frame_id = self._frame_id
        for part, numbers in ((message.twist.linear, linear), (message.twist.angular, angular)):
            part.x, part.y, part.z = numbers
        self._twists.publish(message)
        if command is not None:
            self._grippers.publish(self._gripper_message(data=float(command[GRIPPER_INDEX])))


def main() -> None:
    """Run the node until it is stopped or the server is gone; either way the last message is a zero twist."""
    with orderly("ros2_node"):
        try:
            run()
        except (ConnectionError, InputError, MissingExtraError) as error:
            raise SystemExit(f"ros2_node: {error}") from None


def run() -> None:
    """Run the node.

    Raises:
        MissingExtraError: there is no ROS 2 in this Python.
        ConnectionError: there is no server, or it is gone.
    """
    try:
        import rclpy
        from geometry_msgs.msg import TwistStamped
        from rclpy.qos import qos_profile_sensor_data
        from rclpy.signals import SignalHandlerOptions
        from sensor_msgs.msg import CompressedImage
        from sensor_msgs.msg import Image as RawImage
        from std_msgs.msg import Float64, String
    except ImportError as error:
        raise MissingExtraError(
            f"{error}; ROS 2 comes from its distribution and not from pip: source its setup.bash and start this with "
            "its Python (packages ros-DISTRO-rclpy and ros-DISTRO-geometry-msgs)"
        ) from error
    # ROS's handler would end communication before the last message.
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node("vw2_policy")
    policy_node = PolicyNode(node, TwistStamped, Float64)
    client = policy_node.open_client()
    try:
        with client, ThreadPoolExecutor(1) as executor:
            loop = policy_node.make_loop(client, executor)
            image_message = CompressedImage if policy_node.is_compressed else RawImage
            on_image = partial(policy_node.on_image, loop)
            node.create_subscription(image_message, "image", on_image, qos_profile_sensor_data)
            node.create_subscription(String, "instruction", lambda message: loop.set_instruction(message.data), 1)
            node.create_timer(1 / policy_node.control_hz, partial(policy_node.tick, loop))
            try:
                rclpy.spin(node)
            finally:
                policy_node.publish(None)
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
