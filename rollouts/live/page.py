"""The page: a viser server that shows views and turns what is pressed into commands. viser is imported here alone.

Right: instruction and run, below them tabs of tasks, of policy and scene, and of recordings. Left: the camera's image,
and what the policy expects. In between: the scene, in which a block is moved by its arrows. In a window narrower than
576 pixels viser puts the panels below one another into a sheet over the lower part of the scene, at most 60 % of the
height: status and instruction, the camera's image, and the tabs closed. The scene is then looked at from further away.
"""

# K expected frames · H, W pixels
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image as PillowImage
from PIL.Image import Resampling

from vw2_robot.errors import require

from .control import Control, Opener
from .meshes import add_shape
from .session import Expected, Image, LiveView
from .worker import LiveWorker

BLOCKS = ("red", "blue", "pink")
TASK_BUTTONS: dict[str, dict[str, str]] = {
    "Furniture": {
        "open drawer": "open_drawer",
        "close drawer": "close_drawer",
        "slider left": "move_slider_left",
        "slider right": "move_slider_right",
    },
    "Lights": {
        "bulb on": "turn_on_lightbulb",
        "bulb off": "turn_off_lightbulb",
        "LED on": "turn_on_led",
        "LED off": "turn_off_led",
    },
    "Push": {
        **{f"{color} {side}": f"push_{color}_block_{side}" for color in BLOCKS for side in ("left", "right")},
        "into drawer": "push_into_drawer",
    },
    "Rotate": {f"{color} {side}": f"rotate_{color}_block_{side}" for color in BLOCKS for side in ("left", "right")},
    "Lift": {
        f"{color}, {place}": f"lift_{color}_block_{place}"
        for color in BLOCKS
        for place in ("table", "slider", "drawer")
    },
    "Place": {
        "in slider": "place_in_slider",
        "in drawer": "place_in_drawer",
        "stack": "stack_block",
        "unstack": "unstack_block",
    },
}
"""group -> label of a button -> task, for all 34"""
RUN_BUTTONS = {"start": Control.start, "pause": Control.pause, "step": Control.single_step, "reset": Control.reset}
SCENES = ("A", "B", "C", "D")
KNOWN_POLICIES = ("builtin:calvin-tiny", "demonstrator", "random")
CAMERA_POSITION, CAMERA_TARGET = (0.75, -1.05, 1.25), (0.0, 0.0, 0.45)
NARROW_PX = 576
"""viser's limit; its sheet leaves the upper part of the window, so the camera looks below the scene"""
NARROW_POSITION, NARROW_TARGET = (1.1, -1.6, 1.45), (0.05, 0.0, -0.75)
PANEL_PX = 340
IMAGE_PX = 312
MOST_FRAMES = 5
FRAME_PX = 96
GIZMO_SCALE = 0.12


class Page:
    """The server of the page; `attach` connects it with the worker that follows its commands.

    Args:
        host: address to listen on.
        port: to listen on; the next free one is taken where it is in use.
        policy: shown as chosen.
        seed: shown as chosen.
        opener: its library is offered.
    """

    def __init__(self, *, host: str, port: int, policy: str, seed: int, opener: Opener) -> None:
        viser = require("viser", extra="live")
        self._server = viser.ViserServer(host=host, port=port, label="vw2-live", verbose=False)
        # A client could ask for a public address; this page is for this machine.
        self._server.request_share_url = lambda *_, **__: None
        self._worker: LiveWorker | None = None
        self._world_number = -1
        self._poses: dict[str, Any] = {}
        self._frames: dict[str, Any] = {}
        self._lights: dict[str, list[Any]] = {}
        self._gizmos: dict[str, Any] = {}
        self._dragged: str | None = None
        self._expected: tuple[int, int] | None = None
        server = self._server
        server.gui.configure_theme(show_logo=False, show_share_button=False)
        server.scene.configure_environment_map("studio", environment_intensity=0.25)
        # Without a GPU a browser draws every pixel on the CPU that the policy needs, and shadows several times.
        server.scene.configure_default_lights(cast_shadow=False)
        server.initial_camera.position = CAMERA_POSITION
        server.initial_camera.look_at = CAMERA_TARGET
        server.scene.add_grid("/ground", width=4.0, height=4.0, cell_size=0.2, plane_opacity=0.0)
        server.on_client_connect(_place_camera)
        self._build_instruction()
        self._build_camera()
        self._build_tabs(policy, seed, opener)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.get_port())

    def attach(self, worker: LiveWorker) -> None:
        """Set who follows the commands."""
        self._worker = worker

    def close(self) -> None:
        """End the server."""
        self._server.stop()

    def show(self, control: Control, view: LiveView) -> None:
        """Show a view; called by the worker."""
        with self._server.atomic():
            if control.world_number != self._world_number:
                self._build_scene(control)
            for name, pose in view.parts.items():
                if self._poses.get(name) != pose:
                    self._frames[name].position, self._frames[name].wxyz = pose
            self._poses = dict(view.parts)
            for light, is_on in view.lights.items():
                for mesh in self._lights[light]:
                    mesh.color = control.world.light_colors[light, is_on]
            for block, gizmo in self._gizmos.items():
                if block != self._dragged:
                    gizmo.position = view.parts[control.world.blocks[block]][0]
            size = (IMAGE_PX, IMAGE_PX)
            self._image.image = np.asarray(PillowImage.fromarray(view.image).resize(size, Resampling.BILINEAR))
            self._status.content = status_text(control, view, self._rate)
            self._tokens.content = tokens_text(control, view)
            self._show_expected(view.expected)

    @property
    def _rate(self) -> float:
        return self._worker.views_per_second if self._worker else 0.0

    def _show_expected(self, expected: Expected | None) -> None:
        key = None if expected is None else (expected.env_step, len(expected.happened))
        if key == self._expected:
            return
        self._expected = key
        self._comparison.visible = expected is not None
        if expected is not None:
            self._comparison.image = comparison(expected)

    def _submit(self, command: Callable[..., None], *arguments: Any, notice: str = "") -> None:
        """Have the worker call a method of `Control`; a notice is shown until it has."""
        if notice:
            self._status.content = notice
        if self._worker is not None:
            self._worker.submit(lambda control: command(control, *arguments))

    def _build_instruction(self) -> None:
        """Fill viser's panel, on the right, or the beginning of the sheet."""
        gui = self._server.gui
        gui.main_panel.dock_right()
        gui.main_panel.set_width(PANEL_PX)
        self._status = gui.add_markdown("Loading policy and scene …")
        with gui.add_form("Instruction") as form:
            text = gui.add_text("Text", "open the drawer")
            gui.add_button("Do it").on_click(lambda _: form.submit())
            run = gui.add_button_group("Run", tuple(RUN_BUTTONS))
        form.on_submit(lambda _: self._submit(Control.ask, text.value))
        run.on_click(lambda event: self._submit(RUN_BUTTONS[event.target.value]))

    def _build_camera(self) -> None:
        """Add the left panel; it is open in the sheet, too."""
        gui = self._server.gui
        panel = gui.add_panel()
        with panel.add_tab("Camera"):
            self._image = gui.add_image(np.zeros((IMAGE_PX, IMAGE_PX, 3), np.uint8), jpeg_quality=90)
            self._tokens = gui.add_markdown("")
            self._comparison = gui.add_image(np.zeros((2, 2, 3), np.uint8), jpeg_quality=90, visible=False)
        panel.dock_left()
        panel.expand()
        panel.set_width(PANEL_PX)

    def _build_tabs(self, policy: str, seed: int, opener: Opener) -> None:
        """Add the panel below the instruction, closed in the sheet."""
        gui = self._server.gui
        panel = gui.add_panel()
        panel.dock_below(gui.main_panel)
        with panel.add_tab("Tasks"):
            for group in TASK_BUTTONS:
                self._add_tasks(group)
        with panel.add_tab("Policy and scene"):
            known = gui.add_button_group("Policies", KNOWN_POLICIES)
            with gui.add_form("Another policy") as policy_form:
                name = gui.add_text("Folder", policy)
                gui.add_button("Load").on_click(lambda _: policy_form.submit())
            known.on_click(lambda event: self._choose_policy(event.target.value))
            policy_form.on_submit(lambda _: self._choose_policy(name.value))
            scenes = gui.add_button_group("Scene", SCENES)
            scenes.on_click(
                lambda event: self._submit(Control.choose_scene, event.target.value, notice="Loading the scene …")
            )
            number = gui.add_number("Seed", seed, min=0, step=1)
            number.on_update(lambda _: self._submit(Control.choose_seed, int(number.value)))
        with panel.add_tab("Recordings"):
            save = gui.add_button("Save this episode")
            save.on_click(lambda _: self._submit(Control.save, notice="Saving …"))
            if opener.library is not None:
                recorded = gui.add_number("Recorded", 0, min=0, max=len(opener.library) - 1, step=1)
                play = gui.add_button("Play it")
                play.on_click(lambda _: self._submit(Control.play, int(recorded.value)))

    def _add_tasks(self, group: str) -> None:
        tasks = TASK_BUTTONS[group]
        buttons = self._server.gui.add_button_group(group, tuple(tasks))
        buttons.on_click(lambda event: self._submit(Control.ask_task, tasks[event.target.value]))

    def _choose_policy(self, name: str) -> None:
        self._submit(Control.choose_policy, name, notice=f"Loading {name} …")

    def _build_scene(self, control: Control) -> None:
        """Replace the 3-D scene by that of the control's world."""
        scene = self._server.scene
        for handle in (*self._frames.values(), *self._gizmos.values()):
            handle.remove()
        world = control.world
        self._poses = {}
        self._frames = {name: scene.add_frame(name, show_axes=False) for name in world.parts()}
        lights = {part: light for light, part in world.light_parts.items()}
        self._lights = {light: [] for light in world.light_parts}
        for number, shape in enumerate(world.shapes):
            light = lights.get(shape.part)
            mesh = add_shape(scene, f"{shape.part}/shape_{number}", shape, is_light=light is not None)
            if light is not None:
                self._lights[light].append(mesh)
        self._gizmos = {block: self._add_gizmo(block) for block in world.blocks}
        self._world_number = control.world_number

    def _add_gizmo(self, block: str) -> Any:
        gizmo = self._server.scene.add_transform_controls(
            f"/drag/{block}", scale=GIZMO_SCALE, disable_rotations=True, disable_sliders=True
        )

        async def dragged(event: Any) -> None:  # on the event loop, so that no phase overtakes another
            if event.phase == "end":
                self._dragged = None
                self._submit(Control.release)
            else:
                self._dragged = block
                x, y, z = map(float, event.target.position)
                self._submit(Control.drag, block, (x, y, z))

        gizmo.on_update(dragged)
        return gizmo


def _place_camera(client: Any) -> None:
    """Show a narrow window the scene above the sheet."""
    if client.camera.image_width < NARROW_PX:
        with client.atomic():
            client.camera.position = NARROW_POSITION
            client.camera.look_at = NARROW_TARGET


def status_text(control: Control, view: LiveView, views_per_second: float) -> str:
    """Return the status as markdown.

    Args:
        control: its notice, and what is chosen.
        view: what happens.
        views_per_second: measured; 0 while nothing moves.
    """
    others = [task for task in view.happened if task != view.task]
    text = {
        "ready": "Ready for an instruction",
        "running": f"Running: step {view.env_step} of {view.max_steps}",
        "paused": f"Paused at step {view.env_step} of {view.max_steps}",
        "solved": f"Solved in {view.env_step} steps",
        "unsolved": f"Not solved in {view.env_step} steps" if view.task else f"{view.env_step} steps are over",
        "ended": "End of the recording",
    }[view.mode]
    lines = [f"### {text}"]
    if view.instruction:
        of = f" ({view.position[0]} of {view.position[1]})" if view.position[1] > 1 else ""
        lines.append(f"**{view.instruction}**{of}" + (f" · task `{view.task}`" if view.task else ""))
    if view.taken_as:
        lines.append(f"Taken as: **{view.taken_as}** (judged by that; the policy gets your words)")
    elif view.instruction and view.task is None and view.policy:
        lines.append("Not judged: no task has a wording like this one. The oracle names whatever happens.")
    if others:
        lines.append(f"The oracle {'also ' if view.task else ''}found: {', '.join(others)}")
    if control.notice:
        lines.append(f"*{control.notice}*")
    rate = f" · {views_per_second:.1f} frames/s" if views_per_second else ""
    actor = f"`{view.policy}`" if view.policy else "recorded"
    lines.append(f"{actor} · scene {view.scene} · seed {control.seed}{rate}")
    return "\n\n".join(lines)


def tokens_text(control: Control, view: LiveView) -> str:
    """Return the latent tokens of the present policy call, and how near the expected frames came, as markdown."""
    if view.policy != control.policy_name and view.tokens is None:
        return "No expected frames: this is a recording."
    if control.opened.decoder is None and view.tokens is None:
        return f"No expected frames: {control.opened.note}."
    if view.tokens is None:
        return "Latent tokens and expected frames appear with the first policy call."
    rows = (" ".join(f"{token:4d}" for token in row) for row in view.tokens)
    lines = ["**Latent tokens** of this policy call, one line a latent step:", "\n".join(["```", *rows, "```"])]
    if view.expected is None:
        return "\n\n".join([*lines, f"No expected frames: {control.opened.note or 'this is a recording'}."])
    lines.append("**Expected** (above), and what then **happened**:")
    decibel = view.expected.decibel()
    if decibel is not None:
        lines.append(
            f"PSNR against what happened: expected {decibel[0]:.1f} dB, first image held still {decibel[1]:.1f} dB."
        )
    return "\n\n".join(lines)


def comparison(expected: Expected) -> Image:
    """Return the expected frames above those that happened, uint8 [H, W, 3]; gray where time has not come."""
    count = len(expected.frames)
    shown = np.unique(np.linspace(0, count - 1, min(count, MOST_FRAMES)).round().astype(int))
    height, width = expected.frames.shape[1:3]
    enlarge = max(1, FRAME_PX // height)
    gray = np.full((height, width, 3), 128, np.uint8)
    rows = [
        np.concatenate([expected.frames[i] for i in shown], axis=1),
        np.concatenate([expected.happened[i] if i < len(expected.happened) else gray for i in shown], axis=1),
    ]
    image: Image = np.concatenate(rows).repeat(enlarge, axis=0).repeat(enlarge, axis=1)
    return image
