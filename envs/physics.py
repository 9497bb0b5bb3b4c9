"""One PyBullet client. Every call made through it carries its client id, so environments in one process stay apart.

PyBullet is imported here and nowhere else. `Physics` offers PyBullet's own functions and constants under their own
names (`physics.getJointState(...)`); functions that do not touch a simulation (quaternions, matrices) pass unchanged.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from vw2_robot.errors import require

_WITHOUT_CLIENT = frozenset(
    {
        "computeProjectionMatrixFOV",
        "computeViewMatrix",
        "getAPIVersion",
        "getEulerFromQuaternion",
        "getMatrixFromQuaternion",
        "getQuaternionFromEuler",
    }
)


class Physics:
    """A headless PyBullet simulation of its own. `close` frees it; a closed one refuses every call."""

    def __init__(self) -> None:
        self._bullet = require("pybullet", extra="calvin")
        self._client: int | None = self._bullet.connect(self._bullet.DIRECT)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        attribute: Any = getattr(self._bullet, name)
        if not callable(attribute) or name in _WITHOUT_CLIENT:
            return attribute
        if self._client is None:
            raise RuntimeError(f"{name}: this simulation is closed; make a new environment")
        bound: Callable[..., Any] = functools.partial(attribute, physicsClientId=self._client)
        setattr(self, name, bound)  # the next look-up finds it without coming here
        return bound

    def close(self) -> None:
        """Free the simulation. A second call does nothing."""
        if self._client is None:
            return
        client, self._client = self._client, None
        for name in [name for name in vars(self) if not name.startswith("_")]:
            delattr(self, name)
        self._bullet.disconnect(physicsClientId=client)
