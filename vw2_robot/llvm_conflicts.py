"""Order of import of packages that contain LLVM: triton, TensorFlow, and Mesa's OpenGL, with which MuJoCo renders.

Each brings its LLVM, and a process that loads two of them can end with a segmentation fault. Seen on Python 3.12 with
TensorFlow 2.21, triton 3.7 and Mesa 22.3 (not with TensorFlow 2.15): triton works if it is the first, TensorFlow after
Mesa if its libraries prefer their symbols; Mesa after TensorFlow does not work.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator

from packaging.version import Version

from vw2_robot.errors import InputError

CLASHES_FROM = Version("2.16")
"""TensorFlow's version from which Mesa's OpenGL is not loaded after it"""


def import_triton_first() -> None:
    """Import triton, and torch with it, where it is installed; torch alone imports it late."""
    if importlib.util.find_spec("triton") is not None:
        for name in ("triton", "torch"):
            importlib.import_module(name)


@contextlib.contextmanager
def local_symbols_first() -> Iterator[None]:
    """Let the libraries that Python loads meanwhile look for symbols among their own first, if MuJoCo is loaded."""
    if sys.platform != "linux" or "mujoco" not in sys.modules:
        yield
        return
    flags = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_NOW | os.RTLD_DEEPBIND)
    try:
        yield
    finally:
        sys.setdlopenflags(flags)


def check_opengl_may_be_loaded() -> None:
    """Check before the first image.

    Raises:
        InputError: TensorFlow is loaded, and OpenGL would end the process.
    """
    loaded = getattr(sys.modules.get("tensorflow"), "__version__", "0")
    if sys.platform == "linux" and Version(loaded) >= CLASHES_FROM:
        raise InputError(
            f"TensorFlow {loaded} was imported in this process before the first image: it and Mesa's OpenGL both hold "
            f"LLVM, and the process would end with a segmentation fault; render in a process of its own, or render an "
            f"image first and read data with this package's readers afterwards"
        )
