import pytest

from vw2_robot.command_line.config_groups import check_groups, groups_of
from vw2_robot.errors import InputError


def test_a_program_has_its_groups_and_no_other() -> None:
    assert list(groups_of("pretrain")) == ["data", "model", "replay", "experiment"]
    assert groups_of("pretrain")["model"].default == "tiny"
    assert "3a_vdm" in groups_of("pretrain")["experiment"].choices
    assert all(name.startswith("finetune/") for name in groups_of("finetune")["experiment"].choices)
    assert not groups_of("compare")


@pytest.mark.parametrize(
    ("program", "override", "message"),
    [
        ("pretrain", "model=tinny", "model=tinny: there is no model called tinny; nearest: tiny"),
        ("pretrain", "model=tiny,huge", "no model called huge; there are cosmos25, demo, h200, paper, release, tiny, "),
        ("pretrain", "+experiment=3a_vmd", "nearest: 3a_vdm"),
        ("finetune", "+experiment=vw2_10", "nearest: finetune/vw2_10"),
        ("finetune", "method=orakle", "nearest: oracle"),
    ],
)
def test_a_wrong_choice_is_answered_with_the_nearest(program: str, override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_groups([override], program)


def test_right_choices_and_other_keys_pass() -> None:
    overrides = ["model=tiny,paper", "replay=null", "seed=3", "data.path=huge", "+experiment=pretrain/vw2", "-m"]
    check_groups(overrides, "pretrain")
    check_groups(["--config-dir", "x", "model=mine"], "pretrain")
    check_groups(["env={_target_: mine}"], "rollout")
