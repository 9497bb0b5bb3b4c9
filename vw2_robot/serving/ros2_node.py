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
from concurrent.futures import ThreadPoolExecutor
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

    def parameter(name: str, default: Any) -> Any:
        return node.declare_parameter(name, default).value

    control_hz = float(parameter("control_hz", 30.0))
    frame_id = str(parameter("frame_id", "base_link"))
    is_compressed = bool(parameter("compressed", False))
    units = MetricUnits(
        position_m=parameter("position_m", POSITION_UNIT_M), rotation_rad=parameter("rotation_rad", ROTATION_UNIT_RAD)
    )
    twists = node.create_publisher(TwistStamped, "twist", 1)
    grippers = node.create_publisher(Float64, "gripper", 1)

    def publish(command: NDArray[np.float64] | None) -> None:
        linear, angular = velocities(command, control_hz=control_hz, units=units)
        message = TwistStamped()
        message.header.stamp = node.get_clock().now().to_msg()
        message.header.frame_id = frame_id
        for part, numbers in ((message.twist.linear, linear), (message.twist.angular, angular)):
            part.x, part.y, part.z = numbers
        twists.publish(message)
        if command is not None:
            grippers.publish(Float64(data=float(command[GRIPPER_INDEX])))

    def on_image(message: Any) -> None:
        try:
            image = read_compressed_image(message) if is_compressed else read_image(message)
            loop.set_image(image, stamp_seconds(message))
        except InputError as error:  # the image before grows stale, and the robot stops
            node.get_logger().error(str(error), throttle_duration_sec=LOG_SECONDS)

    def tick() -> None:
        command = None
        try:
            command = loop.command(node.get_clock().now().nanoseconds * 1e-9)
        except InputError as error:
            node.get_logger().error(str(error), throttle_duration_sec=LOG_SECONDS)
        if loop.waits_for:
            node.get_logger().info(f"waits for {loop.waits_for}", throttle_duration_sec=LOG_SECONDS)
        publish(command)

    client = PolicyClient(
        parameter("server", "ws://127.0.0.1:8000"),
        None,
        api_key=parameter("api_key", "") or None,
        answer_seconds=parameter("answer_seconds", 10.0),
    )
    try:
        with client, ThreadPoolExecutor(1) as executor:
            loop = ControlLoop(
                client,
                executor,
                camera=parameter("camera", "static"),
                max_image_age_seconds=parameter("max_image_age_seconds", 0.5),
                n_action_steps=parameter("n_action_steps", 0) or None,
            )
            node.create_subscription(
                CompressedImage if is_compressed else RawImage, "image", on_image, qos_profile_sensor_data
            )
            node.create_subscription(String, "instruction", lambda message: loop.set_instruction(message.data), 1)
            node.create_timer(1 / control_hz, tick)
            try:
                rclpy.spin(node)
            finally:
                publish(None)
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
