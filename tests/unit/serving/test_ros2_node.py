"""The ROS 2 node: real messages where rosbags is installed, its process with a stand-in of rclpy, and the page."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vw2_robot.errors import InputError, MissingExtraError
from vw2_robot.serving import ros2_node
from vw2_robot.serving.metric_actions import MetricUnits
from vw2_robot.serving.ros2_node import read_compressed_image, read_image, stamp_seconds, velocities
from vw2_robot.serving.server import PolicyServer, ServerSettings

from . import stand_in_ros
from .moving_policy import MovingPolicy
from .pages import examples

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def header(seconds: float = 100.25) -> SimpleNamespace:
    return SimpleNamespace(stamp=SimpleNamespace(sec=int(seconds), nanosec=int(seconds % 1 * 1e9)), frame_id="camera")


def raw(pixels: np.ndarray, encoding: str = "rgb8", *, padding: int = 0, **fields: Any) -> SimpleNamespace:
    """A sensor_msgs/Image."""
    stored = pixels if encoding.startswith("rgb") else pixels[..., ::-1]
    if encoding.endswith("a8"):
        stored = np.concatenate([stored, np.full((*stored.shape[:2], 1), 9, np.uint8)], axis=-1)
    rows = stored.reshape(len(stored), -1)
    rows = np.concatenate([rows, np.full((len(rows), padding), 77, np.uint8)], axis=1)
    content = {
        "header": header(), "height": len(pixels), "width": pixels.shape[1], "encoding": encoding, "is_bigendian": 0,
        "step": rows.shape[1], "data": rows.reshape(-1),
    }  # fmt: skip
    return SimpleNamespace(**(content | fields))


def compressed(pixels: np.ndarray, kind: str = "png") -> SimpleNamespace:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return SimpleNamespace(header=header(), format=kind, data=np.frombuffer(file.getvalue(), np.uint8))


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8"])
@pytest.mark.parametrize("padding", [0, 3])
def test_an_image_is_read_in_every_encoding_and_with_padded_rows(encoding: str, padding: int) -> None:
    message = raw(PIXELS, encoding, padding=padding)
    np.testing.assert_array_equal(read_image(message), PIXELS)
    message.data = message.data.tobytes()
    np.testing.assert_array_equal(read_image(message), PIXELS)
    assert stamp_seconds(message) == 100.25


def test_a_compressed_image_is_read() -> None:
    np.testing.assert_array_equal(read_compressed_image(compressed(PIXELS)), PIXELS)
    assert read_compressed_image(compressed(PIXELS, "jpeg")).shape == PIXELS.shape
    with pytest.raises(InputError, match=r"'jpeg'.* cannot be decoded"):
        read_compressed_image(SimpleNamespace(format="jpeg", data=b"none"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoding": "mono8"}, "image encoding 'mono8', expected one of rgb8"),
        ({"height": 6}, "6 x 7 in rows of 21 bytes came with 105 bytes"),
        ({"step": 20}, "rows of 20 bytes"),
        ({"width": 0}, "5 x 0"),
    ],
)
def test_a_damaged_image_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_image(raw(PIXELS, **fields))


def test_a_command_becomes_the_velocity_that_covers_it_in_one_tick() -> None:
    command = np.array([1, -0.5, 0, 0, 0, 1, -1.0])
    linear, angular = velocities(command, control_hz=30.0, units=MetricUnits())
    np.testing.assert_allclose(linear, [0.6, -0.3, 0])
    np.testing.assert_allclose(angular, [0, 0, 1.5])
    assert velocities(None, control_hz=30.0, units=MetricUnits()) == ([0.0] * 3, [0.0] * 3)


def test_real_messages_of_ros_2_pass_through_their_bytes() -> None:
    stores = pytest.importorskip("rosbags.typesys", reason="rosbags is not installed (extra dev)")
    store = stores.get_typestore(stores.Stores.ROS2_JAZZY)
    types = {name.rpartition("/")[2]: kind for name, kind in store.types.items() if "/msg/" in name}
    stamped = types["Header"](stamp=types["Time"](sec=100, nanosec=250_000_000), frame_id="camera")
    plain = raw(PIXELS, "bgr8", padding=2)
    image = types["Image"](**(vars(plain) | {"header": stamped}))
    again = store.deserialize_cdr(store.serialize_cdr(image, "sensor_msgs/msg/Image"), "sensor_msgs/msg/Image")
    np.testing.assert_array_equal(read_image(again), PIXELS)
    assert stamp_seconds(again) == 100.25
    small = types["CompressedImage"](**(vars(compressed(PIXELS)) | {"header": stamped}))
    kind = "sensor_msgs/msg/CompressedImage"
    np.testing.assert_array_equal(
        read_compressed_image(store.deserialize_cdr(store.serialize_cdr(small, kind), kind)), PIXELS
    )
    # What the node fills in is what the real twist has.
    linear, angular = velocities(np.ones(7), control_hz=10.0, units=MetricUnits())
    twist = types["Twist"](linear=types["Vector3"](*linear), angular=types["Vector3"](*angular))
    bytes_ = store.serialize_cdr(types["TwistStamped"](header=stamped, twist=twist), "geometry_msgs/msg/TwistStamped")
    found = store.deserialize_cdr(bytes_, "geometry_msgs/msg/TwistStamped").twist
    assert [found.linear.x, found.angular.z] == [linear[0], angular[2]]
    fields = vars(stand_in_ros.TwistStamped())
    assert set(fields) == set(types["TwistStamped"].__dataclass_fields__) - {"__msgtype__"}


def drive(node: stand_in_ros.Node) -> None:
    """An instruction, then images and ticks until there were five commands."""
    node.tick()
    node.callbacks["instruction"](SimpleNamespace(data="close it"))
    while len(node.published["gripper"]) < 5:
        node.seconds += node.tick_seconds
        message = raw(PIXELS * 0 + 255)
        message.header = header(node.seconds)
        node.callbacks["image"](message)
        node.tick()
        time.sleep(0.002)
    node.callbacks["image"](raw(PIXELS, "mono8"))
    node.seconds += 1.0
    node.tick()
    raise KeyboardInterrupt


def test_the_node_drives_a_robot_with_a_served_policy_and_its_last_message_is_a_stop(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("websockets", reason="websockets is not installed (extra serve)")
    with PolicyServer(MovingPolicy(), ServerSettings(port=0)) as server:
        nodes = stand_in_ros.install(
            lambda name, module: monkeypatch.setitem(sys.modules, name, module),
            drive,
            server=f"ws://127.0.0.1:{server.port}",
            control_hz=10.0,
        )
        with pytest.raises(KeyboardInterrupt):
            ros2_node.run()
    (node,) = nodes
    assert node.is_destroyed
    assert [message.data for message in node.published["gripper"]] == [-1.0] * 5
    twists = [message.twist for message in node.published["twist"]]
    moving = [twist.linear.x for twist in twists if twist.linear.x]
    assert moving == pytest.approx([0.2] * 5)
    assert node.published["twist"][0].header.frame_id == "base_link"
    assert (twists[-1].linear.x, twists[-1].angular.x, twists[-2].linear.x) == (0, 0, 0)
    assert any("image encoding 'mono8'" in text for text in node.logged)
    assert "waits for a new image, the last is 1.00 s old" in node.logged[-1]


def test_the_process_of_the_node_needs_no_torch_and_ends_with_a_message_when_the_server_is_gone() -> None:
    pytest.importorskip("websockets", reason="websockets is not installed (extra serve)")
    program = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import stand_in_ros
from types import SimpleNamespace
import numpy as np

def play(node):
    pixels = np.full((4, 4, 3), 255, np.uint8)
    node.callbacks["instruction"](SimpleNamespace(data="go"))
    while True:
        header = SimpleNamespace(stamp=SimpleNamespace(sec=int(node.seconds), nanosec=0))
        size = {"height": 4, "width": 4, "step": 12}
        node.callbacks["image"](SimpleNamespace(header=header, encoding="rgb8", data=pixels.reshape(-1), **size))
        node.tick()
        if len(node.published["gripper"]) == 3:
            print("moving", flush=True)

nodes = stand_in_ros.install(stand_in_ros.put, play, server=sys.argv[2], answer_seconds=20.0)
from vw2_robot.serving.ros2_node import main
try:
    main()
finally:
    last = nodes[0].published["twist"][-1].twist.linear
    print(json.dumps({"torch": "torch" in sys.modules, "last": [last.x, last.y, last.z]}), flush=True)
"""
    with PolicyServer(MovingPolicy(), ServerSettings(port=0, max_requests_per_second=float("inf"))) as server:
        node = subprocess.Popen(
            [sys.executable, "-c", program, str(Path(__file__).parent), f"ws://127.0.0.1:{server.port}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert node.stdout is not None
        killer = threading.Timer(60, node.kill)
        killer.start()
        assert node.stdout.readline() == "moving\n"
    output, error = node.communicate(timeout=30)
    killer.cancel()
    assert (node.returncode, json.loads(output.splitlines()[-1])) == (1, {"torch": False, "last": [0, 0, 0]})
    assert error.startswith("ros2_node: ws://127.0.0.1")
    assert "Traceback" not in error


def test_without_ros_the_message_says_where_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rclpy", None)
    with pytest.raises(MissingExtraError, match=r"rclpy.*comes from its distribution and not from pip"):
        ros2_node.run()


def test_the_examples_of_the_page() -> None:
    (setup,) = examples("ros2.md")
    called: dict[str, Any] = {}
    exec(setup.replace("from setuptools import setup", "setup = called.update"), {"called": called})
    (script,) = called["entry_points"]["console_scripts"]
    module, _, function = script.partition("=")[2].strip().partition(":")
    assert (module, getattr(ros2_node, function)) == (ros2_node.__name__, ros2_node.main)
