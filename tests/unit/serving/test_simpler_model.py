"""SimplerEnv's three calls, in the order of its evaluator, and the page about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vw2_robot.errors import InputError
from vw2_robot.serving.simpler_model import GOOGLE_REPEATS, Vw2SimplerModel

from .moving_policy import MovingPolicy
from .pages import examples

PROMPTS = ("open the drawer", "close the drawer")


def image(shade: int) -> np.ndarray:
    return np.full((48, 64, 3), shade, np.uint8)


def evaluate(model: Any, save_path: Path, *, env_steps: int = 24) -> list[np.ndarray]:
    """What the evaluator does with a model in one episode whose instruction changes in the middle."""
    executed, raws, images, prompt = [], [], [image(255)], PROMPTS[0]
    model.reset(prompt)
    for step in range(env_steps):
        raw, action = model.step(images[-1], prompt, np.zeros(7))
        assert not action["terminate_episode"][0] > 0
        executed.append(np.concatenate([action["world_vector"], action["rot_axangle"], action["gripper"]]))
        raws.append(raw)
        images.append(image(255 - 5 * step))
        prompt = PROMPTS[step >= env_steps // 2]
    model.visualize_epoch(raws, images, save_path=str(save_path))
    return executed


def test_an_episode_of_the_evaluator(tmp_path: Path) -> None:
    policy = MovingPolicy()
    actions = np.array(evaluate(Vw2SimplerModel(policy), tmp_path / "actions" / "success.png"))
    assert actions.shape == (24, 7)
    np.testing.assert_allclose(actions[0, :3], [0.02, 0.02 * 0.15, 0.0002], rtol=1e-5)
    # 13 steps of the first instruction in chunks of two; the last chunk is dropped half executed.
    np.testing.assert_array_equal(actions[:, 6], [1] * 13 + [-1] * 11)
    assert len(policy.batches) == 7 + 6
    with Image.open(tmp_path / "actions" / "success.png") as shown:
        pixels = np.asarray(shown)
    assert pixels[10, 10].tolist() == [255, 255, 255]  # the first frame
    assert len(np.unique(pixels[64, ::128, 0])) == 8  # eight frames
    assert (pixels[128:] == 0).any()  # curves


def test_the_google_robot_gets_its_gripper_command_while_it_moves(tmp_path: Path) -> None:
    model = Vw2SimplerModel(MovingPolicy(), policy_setup="google_robot")
    assert not np.array(evaluate(model, tmp_path / "a.png"))[:13, 6].any()  # it is open already
    model.reset(PROMPTS[1])
    closing = [model.step(image(0))[1]["gripper"][0] for _ in range(GOOGLE_REPEATS + 3)]
    assert closing == [1.0] * GOOGLE_REPEATS + [0.0] * 3
    model._instruction = PROMPTS[0]  # the same episode
    opening = [model.step(image(0))[1]["gripper"][0] for _ in range(GOOGLE_REPEATS + 4)]
    assert opening.count(-1.0) == GOOGLE_REPEATS
    assert opening[-1] == 0.0


def test_wrong_input_is_named() -> None:
    model = Vw2SimplerModel(MovingPolicy())
    with pytest.raises(InputError, match="there is no instruction"):
        model.step(image(0))
    with pytest.raises(InputError, match=r'"static" must be uint8 .* found float64 \[4, 4, 3\]'):
        model.step(np.zeros((4, 4, 3)), "go")
    with pytest.raises(InputError, match="policy_setup must be"):
        Vw2SimplerModel(MovingPolicy(), policy_setup="franka")  # type: ignore[arg-type]
    assert model.step(image(0), "go", proprioception=np.zeros(7))[1]["gripper"] == [1.0]


def test_the_example_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run with the policy of the package, up to the evaluator, which is played here."""
    (code,) = examples("simpler.md")
    lines = [line for line in code.splitlines() if "maniskill2" not in line and "get_args" not in line]
    names: dict[str, Any] = {}
    exec("\n".join(lines).replace("runs/first/finetune", "builtin:calvin-tiny"), names)
    assert "maniskill2_evaluator(model, get_args())" in code
    actions = np.array(evaluate(names["model"], tmp_path / "a.png", env_steps=4))
    assert np.abs(actions[:, :3]).max() <= 0.02
    assert set(np.abs(actions[:, 6])) == {1.0}
