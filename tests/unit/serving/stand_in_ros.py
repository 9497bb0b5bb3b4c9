"""A ROS 2 of one process: the surface of rclpy and its messages that our node touches.

`install()` puts it among the modules, `play(node)` is what `rclpy.spin` does. Messages that come in are made by the
test; those that go out have the fields of the real ones.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


class Node:
    """Subscriptions, publishers and the timer, and a clock that the test moves."""

    def __init__(self, name: str, parameters: dict[str, Any]) -> None:
        self.name, self.parameters = name, parameters
        self.seconds = 100.0
        self.callbacks: dict[str, Callable[[Any], None]] = {}
        self.published: dict[str, list[Any]] = {}
        self.logged: list[str] = []
        self.is_destroyed = False

    def declare_parameter(self, name: str, default: Any) -> Any:
        value = self.parameters.get(name, default)
        assert type(value) is type(default), name  # as rclpy demands
        return SimpleNamespace(value=value)

    def create_publisher(self, kind: type, topic: str, depth: int) -> Any:
        messages = self.published.setdefault(topic, [])

        def publish(message: Any) -> None:
            assert isinstance(message, kind)
            assert not self.is_destroyed
            messages.append(message)

        return SimpleNamespace(publish=publish)

    def create_subscription(self, kind: type, topic: str, callback: Callable[[Any], None], qos: Any) -> None:
        self.callbacks[topic] = callback

    def create_timer(self, seconds: float, callback: Callable[[], None]) -> None:
        self.tick_seconds, self.tick = seconds, callback

    def get_clock(self) -> Any:
        stamp = SimpleNamespace(sec=int(self.seconds), nanosec=0)
        now = SimpleNamespace(nanoseconds=int(self.seconds * 1e9), to_msg=lambda: stamp)
        return SimpleNamespace(now=lambda: now)

    def get_logger(self) -> Any:
        def write(text: str, *, throttle_duration_sec: float) -> None:
            self.logged.append(text)

        return SimpleNamespace(info=write, error=write)

    def destroy_node(self) -> None:
        self.is_destroyed = True


class TwistStamped:
    def __init__(self) -> None:
        self.header = SimpleNamespace(stamp=None, frame_id="")
        zeros = [SimpleNamespace(x=0.0, y=0.0, z=0.0) for _ in range(2)]
        self.twist = SimpleNamespace(linear=zeros[0], angular=zeros[1])


class Float64:
    def __init__(self, data: float = 0.0) -> None:
        self.data = data


def install(put: Callable[[str, types.ModuleType], Any], play: Callable[[Node], None], **parameters: Any) -> list[Node]:
    """Make ROS importable; returns the list of nodes that will be made.

    Args:
        put: takes the name and the module, `sys.modules.__setitem__` or a monkeypatch.
        play: what happens while the node spins.
        parameters: of the node.
    """
    nodes: list[Node] = []

    def create_node(name: str) -> Node:
        nodes.append(Node(name, parameters))
        return nodes[-1]

    contents: dict[str, dict[str, Any]] = {
        "rclpy": {
            "init": lambda *, signal_handler_options: None,
            "create_node": create_node,
            "spin": play,
            "try_shutdown": lambda: None,
        },
        "rclpy.qos": {"qos_profile_sensor_data": object()},
        "rclpy.signals": {"SignalHandlerOptions": SimpleNamespace(NO=0)},
        "geometry_msgs": {},
        "geometry_msgs.msg": {"TwistStamped": TwistStamped},
        "sensor_msgs": {},
        "sensor_msgs.msg": {"Image": type("Image", (), {}), "CompressedImage": type("CompressedImage", (), {})},
        "std_msgs": {},
        "std_msgs.msg": {"Float64": Float64, "String": type("String", (), {})},
    }
    for name, content in contents.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        put(name, module)
    return nodes


def put(name: str, module: types.ModuleType) -> None:
    sys.modules[name] = module
