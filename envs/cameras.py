"""The two cameras of CALVIN and the renderers that can render them.

`tiny` is PyBullet's software renderer: it needs nothing else and is reproducible to the bit. `layered`, the default, is
the same with all parts that rest rendered once (backdrop.py): four times as fast, and the same image but for a pixel or
two. `egl` is OpenGL without a window, as used for the published data set; its images have shadows, depend on the
driver, and differ from `tiny` by about 20 gray levels. Every result states its renderer; none replaces another
silently.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from vw2_robot.errors import InputError

from .physics import Physics
from .robot import GRIPPER_CAMERA_LINK, Panda

Renderer = Literal["tiny", "layered", "egl"]
CameraName = Literal["static", "gripper"]
CAMERA_NAMES: tuple[str, ...] = get_args(CameraName)
RENDERERS: tuple[str, ...] = get_args(Renderer)
RENDERER_VERSIONS = {"tiny": 1, "layered": 2, "egl": 1}
"""Raised when a renderer's images change; stored with recordings and results."""

# The plug-in renders its first images without shadows; load_egl renders as many, so that no later image depends on it.
_EGL_IMAGES_WITHOUT_SHADOWS = 2

# The static camera, the same in all scenes and in the published data. Meters.
STATIC_CAMERA_POSITION = (2.871459009488717, -2.166602199425597, 2.555159848480571)
STATIC_CAMERA_TARGET = (-0.026242351159453392, -0.0302329882979393, 0.3920000493526459)
STATIC_CAMERA_UP = (0.4041403970338857, 0.22629790978217404, 0.8862616969685161)

Matrix = tuple[float, ...]  # 16 numbers, column by column, as OpenGL and PyBullet have it


@dataclass(frozen=True)
class CameraIntrinsics:
    """Constants of a camera: side of the square image, vertical field of view, near and far clipping planes."""

    pixels: int
    fov_deg: float
    near_m: float
    far_m: float

    @property
    def focal_px(self) -> float:
        """Focal length in pixels."""
        return self.pixels / 2 / float(np.tan(np.deg2rad(self.fov_deg) / 2))


INTRINSICS = {
    "static": CameraIntrinsics(pixels=200, fov_deg=10, near_m=0.01, far_m=10),
    "gripper": CameraIntrinsics(pixels=84, fov_deg=75, near_m=0.01, far_m=2),
}


class Layer(NamedTuple):
    """An image, uint8 [H, W, 3], and its depth buffer, float32 [H, W]; larger is farther."""

    rgb: NDArray[np.uint8]
    z: NDArray[np.float32]

    def under(self, front: Layer) -> Layer:
        """Return this layer with `front` over it where `front` is nearer."""
        # By number: four times as fast as a choice for each pixel where `front` covers little.
        nearer = np.flatnonzero(front.z < self.z)
        rgb = self.rgb.copy()
        rgb.reshape(-1, 3)[nearer] = front.rgb.reshape(-1, 3)[nearer]
        return Layer(rgb, np.minimum(front.z, self.z))


class Camera:
    """One camera: `view_matrix` (present pose), `projection_matrix`, `render` and `render_depth`.

    Args:
        physics: the simulation.
        intrinsics: size and field of view.
        view: returns the present view matrix.
    """

    def __init__(self, physics: Physics, intrinsics: CameraIntrinsics, view: Callable[[], Matrix]) -> None:
        self._physics = physics
        self._view = view
        self.intrinsics = intrinsics
        self.projection_matrix: Matrix = physics.computeProjectionMatrixFOV(
            fov=intrinsics.fov_deg, aspect=1.0, nearVal=intrinsics.near_m, farVal=intrinsics.far_m
        )

    @property
    def view_matrix(self) -> Matrix:
        """World to camera, for the present pose."""
        return self._view()

    def render(self) -> NDArray[np.uint8]:
        """Return the image, uint8 [H, W, 3]. Takes 2 to 30 ms."""
        return np.ascontiguousarray(self.render_layer().rgb)

    def render_depth(self) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Return the image, uint8 [H, W, 3], and its depth in meters, float32 [H, W]."""
        layer = self.render_layer()
        near = self.intrinsics.near_m
        far = self.intrinsics.far_m
        # OpenGL's depth buffer is not linear in distance.
        depth = far * near / (far - (far - near) * layer.z)
        return np.ascontiguousarray(layer.rgb), depth.astype(np.float32)

    def render_layer(self) -> Layer:
        """Return the image and its depth buffer."""
        size = self.intrinsics.pixels
        # All other arguments stay at their defaults: the software renderer keeps a `shadow` that was once given.
        image = self._physics.getCameraImage(
            width=size, height=size, viewMatrix=self.view_matrix, projectionMatrix=self.projection_matrix
        )
        # PyBullet returns RGBA, as a tuple or an array depending on its build.
        rgba = np.reshape(np.asarray(image[2], dtype=np.uint8), (size, size, 4))
        return Layer(rgba[:, :, :3], np.reshape(np.asarray(image[3], dtype=np.float32), (size, size)))


class StaticCamera(Camera):
    """The camera in front of the table; `near_m` is its near clipping plane."""

    def __init__(self, physics: Physics, *, near_m: float = INTRINSICS["static"].near_m) -> None:
        view: Matrix = physics.computeViewMatrix(
            cameraEyePosition=STATIC_CAMERA_POSITION,
            cameraTargetPosition=STATIC_CAMERA_TARGET,
            cameraUpVector=STATIC_CAMERA_UP,
        )
        super().__init__(physics, replace(INTRINSICS["static"], near_m=near_m), lambda: view)


class GripperCamera(Camera):
    """The camera on the gripper: it is directed along +y of its link, with -z of the link upwards."""

    def __init__(self, physics: Physics, robot: Panda) -> None:
        # The pose is one physics step old, as the tool's pose is (quirk, see robot.py).
        def view() -> Matrix:
            position, orientation = physics.getLinkState(robot.uid, GRIPPER_CAMERA_LINK)[:2]
            rotation = np.array(physics.getMatrixFromQuaternion(orientation)).reshape(3, 3)
            # The camera is directed along +y of the link; any point ahead serves as target.
            matrix: Matrix = physics.computeViewMatrix(
                cameraEyePosition=position,
                cameraTargetPosition=(np.array(position) + rotation[:, 1]).tolist(),
                cameraUpVector=(-rotation[:, 2]).tolist(),
            )
            return matrix

        super().__init__(physics, INTRINSICS["gripper"], view)


def load_egl(physics: Physics) -> None:
    """Load the EGL renderer into `physics`.

    Raises:
        InputError: EGL does not work here. (Without the test in a child process, this process would die.)
    """
    spec = importlib.util.find_spec("eglRenderer")
    if spec is None or spec.origin is None:
        raise InputError('renderer "egl": this build of PyBullet has no EGL plug-in; use renderer="tiny"')
    # In a child process first, because a missing driver ends the process, not the call.
    _try_egl_elsewhere(spec.origin)
    if physics.loadPlugin(spec.origin, "_eglRendererPlugin") < 0:
        raise InputError(f'renderer "egl": PyBullet could not load {spec.origin}; use renderer="tiny"')
    for _ in range(_EGL_IMAGES_WITHOUT_SHADOWS):
        physics.getCameraImage(8, 8)


def _try_egl_elsewhere(plugin: str) -> None:
    """Render one image in a child process, because without a working driver the plug-in kills the process.

    It also does so after TensorFlow 2.21 where Mesa renders (both bring an LLVM), so the child imports it, too, if this
    process has.
    """
    script = (
        "import sys, pybullet as p; [__import__(name) for name in sys.argv[2:]]; p.connect(p.DIRECT); "
        "plugin = p.loadPlugin(sys.argv[1], '_eglRendererPlugin'); p.getCameraImage(8, 8); sys.exit(plugin < 0)"
    )
    beside = [name for name in ("tensorflow",) if name in sys.modules]
    command = [sys.executable, "-c", script, plugin, *beside]
    result = subprocess.run(command, capture_output=True, timeout=120, check=False)
    if result.returncode != 0:
        last_line = result.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["nothing"]
        raise InputError(
            f'renderer "egl" does not work on this machine{"".join(f" beside {name}" for name in beside)} (exit status '
            f"{result.returncode}, its last message: {last_line[0]}). "
            "Install an EGL driver (Debian: libegl1 libegl-mesa0 libgl1-mesa-dri, or the GPU vendor's), "
            'or use renderer="tiny"'
        )
