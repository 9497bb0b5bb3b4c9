"""The two cameras of CALVIN and the renderers that can draw for them (specification, section 9).

`tiny` is PyBullet's software renderer: it needs nothing and is reproducible to the bit. `layered`, the default, is the
same with what never moves drawn once (backdrop.py): twice as fast, and the same image but for a pixel or two.
`egl` is OpenGL without a window, as used for the published data set; its images have shadows, depend on the driver,
and differ from `tiny` by about 20 gray levels. Which one draws is said beside every result; none stands in for another.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vw2_robot.errors import InputError

from .backdrop import Backdrop, Layer
from .physics import Physics
from .robot import GRIPPER_CAMERA_LINK, Panda

Renderer = Literal["tiny", "layered", "egl"]
CameraName = Literal["static", "gripper"]
CAMERA_NAMES: tuple[str, ...] = get_args(CameraName)
RENDERERS: tuple[str, ...] = get_args(Renderer)

# The plug-in draws its first images without shadows, whatever they show; later ones must not depend on their number.
_EGL_IMAGES_WITHOUT_SHADOWS = 2

# Same in all scenes and in the published data. Meters.
STATIC_CAMERA_POSITION = (2.871459009488717, -2.166602199425597, 2.555159848480571)
STATIC_CAMERA_TARGET = (-0.026242351159453392, -0.0302329882979393, 0.3920000493526459)
STATIC_CAMERA_UP = (0.4041403970338857, 0.22629790978217404, 0.8862616969685161)

Matrix = tuple[float, ...]  # 16 numbers, column by column, as OpenGL and PyBullet have it


@dataclass(frozen=True)
class CameraIntrinsics:
    """What does not move: size in pixels (square), vertical field of view in degrees, clipping planes in meters."""

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


class Camera:
    """One camera: `view_matrix` where it is now, `projection_matrix`, and `render`.

    Args:
        physics: the simulation.
        lens: size and field of view.
        view: returns the view matrix of this moment.
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
        """World to camera, at this moment."""
        return self._view()

    def render(self) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """The image, uint8 [H, W, 3], and its depth in meters, float32 [H, W]. 5 to 30 ms."""
        drawn = self.draw()
        near, far = self.intrinsics.near_m, self.intrinsics.far_m
        depth = far * near / (far - (far - near) * drawn.z)
        return drawn.rgb, depth.astype(np.float32)

    def draw(self) -> Layer:
        """The image and its depth buffer."""
        size = self.intrinsics.pixels
        # All other arguments stay at their defaults: the software renderer remembers a `shadow` once given.
        image = self._physics.getCameraImage(
            width=size, height=size, viewMatrix=self.view_matrix, projectionMatrix=self.projection_matrix
        )
        rgb = np.ascontiguousarray(np.reshape(image[2], (size, size, -1))[:, :, :3], dtype=np.uint8)
        return Layer(rgb, np.reshape(np.asarray(image[3], dtype=np.float32), (size, size)))


class StillCamera(Camera):
    """A camera that never moves: lays what moves over a backdrop that was drawn before."""

    def __init__(self, camera: Camera, backdrop: Backdrop) -> None:
        super().__init__(camera._physics, camera.intrinsics, camera._view)
        self._backdrop = backdrop

    def draw(self) -> Layer:
        """As without a backdrop, but where two things are equally near."""
        layer = self._backdrop.layer()
        self._backdrop.hide()
        return layer.under(super().draw())


class MovingCamera(Camera):
    """A camera that moves in a world whose backdrop may be hidden."""

    def __init__(self, camera: Camera, backdrop: Backdrop) -> None:
        super().__init__(camera._physics, camera.intrinsics, camera._view)
        self._backdrop = backdrop

    def draw(self) -> Layer:
        """Everything."""
        self._backdrop.show()
        return super().draw()


def static_camera(physics: Physics) -> Camera:
    """The camera in front of the table."""
    view: Matrix = physics.computeViewMatrix(
        cameraEyePosition=STATIC_CAMERA_POSITION,
        cameraTargetPosition=STATIC_CAMERA_TARGET,
        cameraUpVector=STATIC_CAMERA_UP,
    )
    return Camera(physics, INTRINSICS["static"], lambda: view)


def gripper_camera(physics: Physics, robot: Panda) -> Camera:
    """The camera on the hand: looks along +y of its link, with -z of the link upwards."""

    def view() -> Matrix:
        position, orientation = physics.getLinkState(robot.uid, GRIPPER_CAMERA_LINK)[:2]
        rotation = np.array(physics.getMatrixFromQuaternion(orientation)).reshape(3, 3)
        matrix: Matrix = physics.computeViewMatrix(
            cameraEyePosition=position,
            cameraTargetPosition=(np.array(position) + rotation[:, 1]).tolist(),
            cameraUpVector=(-rotation[:, 2]).tolist(),
        )
        return matrix

    return Camera(physics, INTRINSICS["gripper"], view)


def make_cameras(physics: Physics, robot: Panda, backdrop: Backdrop | None = None) -> dict[str, Camera]:
    """Both cameras, by name."""
    static, gripper = static_camera(physics), gripper_camera(physics, robot)
    if backdrop is None:
        return {"static": static, "gripper": gripper}
    return {"static": StillCamera(static, backdrop), "gripper": MovingCamera(gripper, backdrop)}


def load_egl(physics: Physics) -> None:
    """Let EGL draw for `physics`. InputError, not a dead process, where EGL does not work."""
    spec = importlib.util.find_spec("eglRenderer")
    if spec is None or spec.origin is None:
        raise InputError('renderer "egl": this build of PyBullet has no EGL plug-in; use renderer="tiny"')
    _try_egl_elsewhere(spec.origin)
    if physics.loadPlugin(spec.origin, "_eglRendererPlugin") < 0:
        raise InputError(f'renderer "egl": PyBullet could not load {spec.origin}; use renderer="tiny"')
    for _ in range(_EGL_IMAGES_WITHOUT_SHADOWS):
        physics.getCameraImage(8, 8)


def _try_egl_elsewhere(plugin: str) -> None:
    """Draw one image in a child process: without a working driver the plug-in ends the process that loads it.

    So it does after TensorFlow 2.21 where Mesa draws (each has an LLVM of its own), so the child loads what is here.
    """
    script = (
        "import sys, pybullet as p; [__import__(name) for name in sys.argv[2:]]; p.connect(p.DIRECT); "
        "plugin = p.loadPlugin(sys.argv[1], '_eglRendererPlugin'); p.getCameraImage(8, 8); sys.exit(plugin < 0)"
    )
    beside = [name for name in ("tensorflow",) if name in sys.modules]
    command = [sys.executable, "-c", script, plugin, *beside]
    result = subprocess.run(command, capture_output=True, timeout=120, check=False)
    if result.returncode != 0:
        said = result.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["nothing"]
        raise InputError(
            f'renderer "egl" does not work on this machine{"".join(f" beside {name}" for name in beside)} (exit status '
            f"{result.returncode}, it said: {said[0]}). "
            "Install an EGL driver (Debian: libegl1 libegl-mesa0 libgl1-mesa-dri, or the GPU vendor's), "
            'or use renderer="tiny"'
        )
