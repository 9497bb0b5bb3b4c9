"""Images of a MuJoCo scene without a display: the choice of an OpenGL, and a camera.

MuJoCo binds its OpenGL when it is imported, as the environment variable MUJOCO_GL names it; without the variable it
would want a display. EGL is taken where there is one (with Mesa it renders on the CPU), else OSMesa.
"""

from __future__ import annotations

import ctypes.util
import os
import sys
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.errors import InputError, require
from vw2_robot.llvm_conflicts import check_opengl_may_be_loaded, import_triton_first

LIBRARIES = {"egl": "EGL", "osmesa": "OSMesa"}
"""value of MUJOCO_GL -> shared library that it needs"""
UPSIDE_DOWN = ("corner2", "corner3")
"""cameras of Meta-World that hang upside down; their images are turned by 180 degrees"""
CURE = (
    "install EGL with a driver (Debian: libegl1 libgl1-mesa-dri) or OSMesa (libosmesa6), or set MUJOCO_GL=egl, osmesa "
    "or glfw to what works here"
)


def load_mujoco() -> ModuleType:
    """Import MuJoCo with an OpenGL that needs no display, unless MUJOCO_GL is set.

    Raises:
        InputError: there is neither EGL nor OSMesa, or it does not work.
        MissingExtraError: MuJoCo is not installed.
    """
    if sys.platform == "linux" and "MUJOCO_GL" not in os.environ and "mujoco" not in sys.modules:
        found = [name for name, library in LIBRARIES.items() if ctypes.util.find_library(library)]
        if not found:
            raise InputError(f"MuJoCo has nothing to render with: no EGL and no OSMesa; {CURE}")
        os.environ["MUJOCO_GL"] = found[0]
    return require("mujoco", extra="metaworld")


class OffscreenCamera:
    """A camera of a model, as square images; the OpenGL context is made with the first one.

    Shadows and multisampling are off: on a CPU they take eight ninths of the time of an image.

    Args:
        model: MuJoCo's.
        name: of the camera.
        pixels: height and width.
    """

    def __init__(self, model: Any, name: str, pixels: int) -> None:
        self._model = model
        self._name = name
        self._pixels = pixels
        self._renderer: Any = None

    def render(self, data: Any) -> NDArray[np.uint8]:
        """Return uint8 [pixels, pixels, 3] of a state.

        Raises:
            InputError: OpenGL does not work, or TensorFlow was imported first.
        """
        if self._renderer is None:
            self._renderer = self._open()
        self._renderer.update_scene(data, camera=self._name)
        image: NDArray[np.uint8] = self._renderer.render()
        return np.ascontiguousarray(image[::-1, ::-1]) if self._name in UPSIDE_DOWN else image

    def close(self) -> None:
        """Free the context."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _open(self) -> Any:
        mujoco = load_mujoco()
        check_opengl_may_be_loaded()
        import_triton_first()
        quality = self._model.vis.quality
        quality.offsamples = 0
        quality.shadowsize = 0
        view = self._model.vis.global_
        view.offwidth = view.offheight = self._pixels
        # What fails depends on the driver: PyOpenGL and MuJoCo have errors of their own.
        try:
            renderer = mujoco.Renderer(self._model, self._pixels, self._pixels)
        except Exception as error:
            used = os.environ.get("MUJOCO_GL", "a display")
            raise InputError(f"MuJoCo cannot render with {used} ({error!r}); {CURE}") from error
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
        return renderer
