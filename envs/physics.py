"""One PyBullet client. Every call through it carries its client id, so environments in one process stay separate.

PyBullet is imported here and nowhere else. `Physics` offers PyBullet's own functions and constants under their own
names (`physics.getJointState(...)`); functions that do not touch a simulation (quaternions, matrices) pass unchanged.

A process has room for 1024 clients, and PyBullet frees none by itself. A client is freed by `close`, or with its
`Physics` object when nothing refers to that any more, or at the end of the process, whichever comes first.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import weakref
from types import ModuleType
from typing import Any, NoReturn

from gymnasium.error import ClosedEnvironmentError

from vw2_robot.errors import InputError, require

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


DISTRIBUTIONS = ("pybullet", "pybullet-arm64")
"""Distributions of the module `pybullet`; the second has wheels for Python 3.12 and later, for x86-64 as well."""


def pybullet_version() -> dict[str, str]:
    """Return the installed distribution of PyBullet and its version; empty if there is none."""
    for name in DISTRIBUTIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return {name: importlib.metadata.version(name)}
    return {}


class SimulationClosedError(ClosedEnvironmentError, RuntimeError):
    """Raised by a call into a simulation that has been freed."""


class Physics:
    """A headless PyBullet simulation. `close` frees it; every later call raises `SimulationClosedError`."""

    def __init__(self) -> None:
        self._bullet = require("pybullet", extra="calvin")
        self._client: int | None = self._bullet.connect(self._bullet.DIRECT)
        # PyBullet reports a failure as a negative number, not as an exception.
        if self._client < 0:
            self._client = None
            raise InputError(
                "PyBullet has no room for another simulation (1024 in one process); close environments no longer in use"
            )
        # The finalizer must not refer to `self`, which it would keep alive.
        self._free = weakref.finalize(self, _disconnect, self._bullet, self._client)

    @property
    def is_closed(self) -> bool:
        """Whether the simulation has been freed."""
        return self._client is None

    def loadURDF(self, file: str, *args: Any, **options: Any) -> int:
        """Load a URDF file and return its body id; arguments as in PyBullet.

        Raises:
            InputError: PyBullet cannot load the file.
        """
        try:
            uid: int = self._bound("loadURDF")(file, *args, **options)
        except self._bullet.error as error:
            raise InputError(
                f"PyBullet cannot load {file} ({error}); its own messages above say why. Restore the file"
            ) from error
        return uid

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        attribute: Any = getattr(self._bullet, name)
        if callable(attribute) and name not in _WITHOUT_CLIENT:
            attribute = self._bound(name)
        setattr(self, name, attribute)  # the next access does not come here
        return attribute

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a simulation can be neither copied nor pickled; pass on `env.spec`, gymnasium.make makes another from it"
        )

    def close(self) -> None:
        """Free the simulation. A second call does nothing."""
        if self._client is None:
            return
        self._client = None
        # Forget the bound functions, so that every later call comes to `__getattr__` and is refused.
        for name in [name for name in vars(self) if not name.startswith("_")]:
            delattr(self, name)
        self._free()

    def _bound(self, name: str) -> Any:
        """Return a function of PyBullet with this client's id."""
        if self._client is None:
            raise SimulationClosedError(f"{name}: this simulation is closed; make a new environment")
        return functools.partial(getattr(self._bullet, name), physicsClientId=self._client)


def _disconnect(bullet: ModuleType, client: int) -> None:
    # At the end of the process PyBullet may have disconnected it already.
    if bullet.isConnected(client):
        bullet.disconnect(physicsClientId=client)
