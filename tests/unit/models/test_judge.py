"""The judge: which key steps a row of states reaches, and features from a DINOv2 folder."""

import pytest
import torch

from vw2_robot.errors import InputError
from vw2_robot.models.judge import OTHER, STAND_IN, STATES, Judge, JudgeConfig, key_steps_reached, pretrained_judge


def reached(states, **options):
    return key_steps_reached(torch.tensor(states), **options)


def test_a_key_step_counts_only_after_those_before_it_and_when_it_is_seen_for_long_enough():
    assert reached([0, 1, 1, 2, 2, 2, OTHER, 3, 3]) == [1, 3, 7, None, None, None, None]
    # Step 2 is skipped, so step 3 does not count; a single frame is no proof; "another task's" is none.
    assert reached([0, 1, 1, 3, 3, 3])[1:] == [None] * 6
    assert reached([0, 1, 0, 1, 0])[0] is None
    assert reached([OTHER] * 9) == [None] * 7
    # Step 1 is seen again later, but begins where it was seen first.
    assert reached([0, 1, 1, 0, 2, 2])[:2] == [1, 4]
    assert reached([k for k in range(8) for _ in range(2)])[-1] == 14
    assert reached([0, 1, 2, 3, 4, 5, 6, 7], persistence=1)[-1] == 7


def test_states_are_those_of_the_asked_task():
    torch.manual_seed(0)
    judge = Judge(JudgeConfig(tasks=("gate", "tower"), px=32, width=4)).eval()
    images = torch.rand(5, 3, 32, 32) * 2 - 1
    logits = judge(images)
    assert logits.shape == (5, 2, STATES)
    torch.testing.assert_close(judge.states(images, "tower", batch_size=2), logits[:, 1].argmax(-1))
    assert judge.name == STAND_IN
    with pytest.raises(InputError, match="gate, tower"):
        judge.states(images, "boat")


def test_features_of_a_dinov2_folder_are_kept_and_rebuilt_from_the_configuration(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    options = transformers.Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=42)
    saved = transformers.Dinov2Model(options)
    saved.save_pretrained(tmp_path / "dinov2")
    judge = pretrained_judge(JudgeConfig(tasks=("gate",), px=42), tmp_path / "dinov2").eval()
    assert judge.name == "DINOv2"
    for name, value in saved.state_dict().items():
        torch.testing.assert_close(judge.features.state_dict()[name], value)
    again = Judge(judge.config).eval()
    again.load_state_dict(judge.state_dict())
    images = torch.rand(2, 3, 42, 42)
    torch.testing.assert_close(again(images), judge(images))
    with pytest.raises(InputError, match="dinov2"):
        pretrained_judge(JudgeConfig(tasks=("gate",)), tmp_path)
    with pytest.raises(ValueError, match="14"):
        JudgeConfig(dinov2={"model_type": "dinov2"}, px=96)
