"""The built-in scenes: joints and places as in the benchmark, sound physics, generated files equal committed ones."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pybullet", reason="the simulator needs pybullet")

from vw2_robot.envs.asset_tools.make_assets import ASSETS, asset_files
from vw2_robot.envs.calvin import CalvinEnv
from vw2_robot.envs.oracle import TaskOracle

pytestmark = pytest.mark.sim

GOLDEN = Path(__file__).parents[5] / "shared" / "calvin" / "golden"
JOINTS = ["base__button", "base__switch", "base__slide", "base__drawer", "base__led", "base__light", "base__plank"]
Y_AND_Z = [(-0.12, 0.46), (0.0609, 0.4949), (0.075, 0.5353), (0.0, 0.32), (0.16, 0.6478), (None, 0.6478), (0.09, 0.42)]
X = {  # button, switch, slide, drawer, LED, bulb, plank
    "A": (-0.28, 0.30, -0.10, 0.10, -0.28, 0.30, -0.10),
    "B": (0.28, -0.32, 0.088, 0.18, 0.28, -0.32, 0.08),
    "C": (-0.12, -0.32, 0.06, 0.10, -0.12, -0.32, 0.08),
    "D": (-0.12, 0.30, -0.10, 0.18, -0.12, 0.30, -0.10),
}
BULB_Y = {"A": 0.132, "B": 0.136, "C": 0.132, "D": 0.132}
SLIDE_RANGE = {"A": 0.28, "B": 0.304, "C": 0.24, "D": 0.28}
AXES = [(0, 0, -1), (0, 0.5, 0.866), (-1, 0, 0), (0, -1, 0)]
PANDA_JOINTS = [
    *(f"panda_joint{k}" for k in range(1, 9)), "panda_hand_joint", "panda_finger_joint1", "joint_finger_tip_left",
    "panda_finger_joint2", "joint_finger_tip_right", "panda_grasptarget_hand", "camera_joint", "tcp_joint",
]  # fmt: skip


class World:
    """A bare physics client with one body in it."""

    def __init__(self, urdf: str, **arguments: Any) -> None:
        import pybullet
        from pybullet_utils.bullet_client import BulletClient

        self.physics = BulletClient(pybullet.DIRECT)
        self.body = self.physics.loadURDF(str(ASSETS / urdf), **arguments)
        self.physics.performCollisionDetection()  # rays and boxes see the links in place only after it


@pytest.fixture(params=sorted(X))
def scene(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def table(scene: str) -> World:
    return World(f"calvin_table_{scene}/urdf/calvin_table_{scene}.urdf", globalScaling=0.8)


@pytest.fixture
def env(scene: str) -> Iterator[CalvinEnv]:
    env = CalvinEnv(scene=scene, assets="builtin", cameras=())
    yield env
    env.close()


@pytest.fixture(scope="module")
def generated() -> dict[str, bytes]:
    return asset_files()


def test_table_joints_have_the_benchmarks_order_places_ranges_and_axes(scene: str, table: World) -> None:
    ranges = [0.02, 0.088, SLIDE_RANGE[scene], 0.22]
    assert table.physics.getNumJoints(table.body) == len(JOINTS)
    for index, name in enumerate(JOINTS):
        info = table.physics.getJointInfo(table.body, index)
        assert info[1].decode() == name
        assert info[12].decode() == name.removeprefix("base__") + "_link"
        position, orientation = table.physics.getLinkState(table.body, index)[4:6]
        y, z = Y_AND_Z[index]
        np.testing.assert_allclose(position, (X[scene][index], BULB_Y[scene] if y is None else y, z), atol=1e-4)
        if index < len(ranges):
            assert info[2] == table.physics.JOINT_PRISMATIC
            np.testing.assert_allclose(info[8:10], (0, ranges[index]), atol=1e-6)
            axis = table.physics.rotateVector(orientation, info[13])
            np.testing.assert_allclose(axis, AXES[index], atol=1e-3)
        else:
            assert info[2] == table.physics.JOINT_FIXED


def test_table_parts_fill_the_measured_boxes(scene: str, table: World) -> None:
    dx = [X[scene][k] - X["D"][k] for k in range(7)]
    measured = {  # scene D; boxes of turned hulls (door, lever) come out up to 15 mm wider than the shapes
        0: ((-0.155, -0.155, 0.457), (-0.085, -0.085, 0.487)),
        1: ((0.236, -0.004, 0.482), (0.364, 0.079, 0.554)),
        2: ((-0.105, -0.060, 0.425), (0.185, 0.141, 0.685)),
        3: ((-0.045, -0.265, 0.295), (0.405, 0.065, 0.405)),
    }
    for index, box in measured.items():
        low, high = np.array(table.physics.getAABB(table.body, index))
        np.testing.assert_allclose(low, np.add(box[0], (dx[index], 0, 0)), atol=0.017)
        np.testing.assert_allclose(high, np.add(box[1], (dx[index], 0, 0)), atol=0.017)
    low, high = np.array(table.physics.getAABB(table.body, 6))
    assert high[2] == pytest.approx(0.44, abs=0.005)
    assert all(table.physics.getDynamicsInfo(table.body, k)[1] == 0.5 for k in range(-1, 7))


def test_panda_has_the_benchmarks_joints_frames_and_contact_values() -> None:
    world = World("franka_panda/panda_longer_finger.urdf", useFixedBase=True)
    physics, robot = world.physics, world.body
    assert [physics.getJointInfo(robot, k)[1].decode() for k in range(physics.getNumJoints(robot))] == PANDA_JOINTS
    assert physics.getJointInfo(robot, 9)[8:10] == (0.0, 0.04)
    link, camera, tcp = (physics.getLinkState(robot, k)[4:6] for k in (8, 14, 15))
    to_link = physics.invertTransform(*link)
    np.testing.assert_allclose(physics.multiplyTransforms(*to_link, *tcp)[0], (0, 0, 0.14), atol=1e-6)
    place, rotation = physics.multiplyTransforms(*to_link, *camera)
    np.testing.assert_allclose(place, (-0.1, 0, 0), atol=1e-6)
    np.testing.assert_allclose(physics.getEulerFromQuaternion(rotation), (1.3, 0, -1.57), atol=1e-5)
    for finger, tip in ((9, 10), (11, 12)):
        friction, spinning, damping, stiffness = (physics.getDynamicsInfo(robot, finger)[k] for k in (1, 7, 8, 9))
        assert (friction, spinning, damping, stiffness) == (1.0, 0.1, 1000.0, 30000.0)
        assert physics.getDynamicsInfo(robot, tip)[1] == 1.0


@pytest.mark.parametrize(("name", "length"), [("red_small", 0.04), ("blue_middle", 0.056), ("pink_big", 0.08)])
def test_blocks_have_the_benchmarks_sizes_and_mass(name: str, length: float) -> None:
    block = World(f"blocks/block_{name}.urdf", globalScaling=0.8)
    shape = block.physics.getCollisionShapeData(block.body, -1)[0]
    np.testing.assert_allclose(shape[3], (length, 0.04, 0.04), atol=1e-7)
    mass, friction = block.physics.getDynamicsInfo(block.body, -1)[:2]
    assert (mass, friction) == (1.0, 0.7)


def test_blocks_placed_at_evaluation_spots_stay_and_touch_what_they_stand_on(scene: str, env: CalvinEnv) -> None:
    left, right = {"A": (-0.24, 0.07), "B": (-0.03, 0.24), "C": (-0.03, 0.24), "D": (-0.24, 0.07)}[scene]
    spots = [(0.05, -0.12, 0.45999), (left, 0.0924, 0.46099), (right, 0.0924, 0.46099)]
    start = np.zeros(24)
    for k, spot in enumerate(spots):
        start[6 + 6 * k : 9 + 6 * k] = spot
    _, info = env.reset(options={"scene_obs": start})
    table = info["scene_info"]["fixed_objects"]["table"]
    supports = [table["links"]["base_link"], table["links"]["plank_link"], table["links"]["plank_link"]]
    blocks = info["scene_info"]["movable_objects"]
    for name, support in zip(env.scene_order, supports, strict=True):
        touched = {(row[2], row[4]) for row in blocks[name]["contacts"]}
        assert touched == {(table["uid"], support)}, "needed from the first step on: the oracle asks where a block lay"
    for _ in range(25):  # 200 physics steps
        env.step_physics(np.array([0, 0, 0, 0, 0, 0, 1.0]))
    rest = env.scene_obs()[6:].reshape(3, 6)
    np.testing.assert_allclose(rest[:, :3], spots, atol=5e-4)
    np.testing.assert_allclose(env.scene_obs()[:4], 0, atol=1e-5)


def test_drawer_carries_a_block_out_and_back_in(scene: str, table: World) -> None:
    physics = table.physics
    physics.setGravity(0, 0, -9.8)
    x = X[scene][3]
    physics.resetJointState(table.body, 3, 0.22)
    block = physics.loadURDF(str(ASSETS / "blocks/block_pink_big.urdf"), (x, -0.26, 0.37), globalScaling=0.8)
    heights = []
    for velocity, reached in ((-0.2, 0.0), (0.2, 0.22)):
        physics.setJointMotorControl2(table.body, 3, physics.VELOCITY_CONTROL, targetVelocity=velocity, force=60)
        for _ in range(360):
            physics.stepSimulation()
        assert physics.getJointState(table.body, 3)[0] == pytest.approx(reached, abs=1e-3)
        position, _ = physics.getBasePositionAndOrientation(block)
        heights.append(position[2])
        assert abs(position[0] - x) < 0.17
        assert (3, -1) in {(row[3], row[4]) for row in physics.getContactPoints(table.body, block)}
    np.testing.assert_allclose(heights, 0.36, atol=2e-3)


def test_a_finger_fits_behind_every_handle(scene: str, table: World) -> None:
    """A 26 mm ball, thicker than a finger, touches nothing in the middle of each handle's opening."""
    physics = table.physics
    ball = physics.createMultiBody(0.1, physics.createCollisionShape(physics.GEOM_SPHERE, radius=0.013))
    outward = np.array([0, -0.8660254, 0.5])  # of the cabinet's face
    slide = np.array((X[scene][2] + 0.14, 0.075, 0.5353)) + 0.040 * outward
    drawer = np.array((X[scene][3], -0.21, 0.36))
    for place, handle in ((slide, slide + 0.03 * outward), (drawer, drawer - (0, 0.04, 0))):
        physics.resetBasePositionAndOrientation(ball, place.tolist(), (0, 0, 0, 1))
        assert not physics.getClosestPoints(ball, table.body, 0.0)
        hit = physics.rayTest(place.tolist(), handle.tolist())[0]
        assert (hit[0], hit[1]) == (table.body, 2 if place is slide else 3), "the bar must be there to pull on"


def test_door_covers_one_compartment_and_leaves_the_other_open(scene: str, table: World) -> None:
    """Rays along the blocks' row reach the back of the cabinet only where the door is not."""
    physics = table.physics
    left, right = {"A": (-0.24, 0.07), "B": (-0.03, 0.24), "C": (-0.03, 0.24), "D": (-0.24, 0.07)}[scene]

    def is_open(x: float) -> bool:
        hit = physics.rayTest((x, -0.10, 0.50), (x, 0.155, 0.50))[0]
        return hit[0] != table.body

    assert (is_open(left), is_open(right)) == (True, False)
    physics.resetJointState(table.body, 2, SLIDE_RANGE[scene])
    physics.performCollisionDetection()
    assert (is_open(left), is_open(right)) == (False, True)


@pytest.mark.slow
def test_generator_makes_exactly_the_committed_files(generated: dict[str, bytes]) -> None:
    committed = {path.relative_to(ASSETS).as_posix() for path in ASSETS.rglob("*") if path.is_file()}
    assert committed == set(generated)
    for name, content in generated.items():
        stored = (ASSETS / name).read_bytes()
        if name.endswith(".png"):  # zlib builds may pack the same image differently
            images = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in (content, stored)]
            np.testing.assert_array_equal(*images, err_msg=name)
        else:
            assert content == stored, f"{name} differs; run python -m vw2_robot.envs.asset_tools.make_assets"


def test_assets_stay_small() -> None:
    files = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1_700_000
    faces = [path.read_bytes().count(b"\nf ") for path in ASSETS.glob("franka_panda/meshes/visual/*")]
    assert 1500 < sum(faces) < 6000, "TinyRenderer pays for every triangle at every image"


def test_image_shows_robot_table_blocks_and_lights() -> None:
    env = CalvinEnv(scene="D", assets="builtin", cameras=())
    start = np.zeros(24)
    start[6:9], start[12:15], start[18:21] = (0.05, -0.12, 0.46), (0.23, -0.12, 0.46), (-0.24, 0.0924, 0.461)
    dark = env.reset(options={"scene_obs": start})[1] and env.render_camera("static").astype(int)
    start[4:6] = 1
    env.reset(options={"scene_obs": start})
    image = env.render_camera("static").astype(int)
    env.close()
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    for name, mask in {
        "red block": (red > 120) & (green < 20) & (blue < 20),
        "blue block": (blue > 120) & (green < 20) & (red < 20),
        "LED": (green > 120) & (red < 20) & (blue < 20),
        "bulb": (red > 90) & (green > 90) & (blue < 20),
        "button": image.max(axis=2) < 12,
    }.items():
        assert 60 < mask.sum() < 2500, name
    changed = np.abs(image - dark).max(axis=2) > 30
    assert 150 < changed.sum() < 2000, "LED and bulb change color and nothing else does"
    wood = (red > green + 10) & (green > blue + 10)
    assert wood.sum() > 10_000


@pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="the recordings of the reference simulator are not beside the repository"
)
@pytest.mark.parametrize(
    "name", ["A_lift_rotate", "B_slide_switch_button", "C_absolute_pick", "D_lift_place_drawer", "D_drawer_button"]
)
def test_actions_recorded_in_the_reference_scene_solve_the_same_tasks_here(name: str) -> None:
    record = np.load(GOLDEN / f"{name}.npz")
    env = CalvinEnv(scene=str(record["scene"]), assets="builtin", cameras=())
    env.reset(options={"robot_obs": record["reset_robot_obs"], "scene_obs": record["reset_scene_obs"]})
    infos = [env.task_info()]
    for action in record["actions"]:
        env.step_physics(action if str(record["action_kind"]) == "relative" else (action[:3], action[3:6], action[6]))
        infos.append(env.task_info())
    env.close()
    oracle = TaskOracle()
    for mark, solved in zip(record["mark_steps"], record["tasks"], strict=True):
        ours = set().union(*(oracle.get_task_info(infos[mark], info) for info in infos[mark::2]))
        assert ours >= {str(task) for task in record["task_names"][solved.any(axis=0)]}
