"""python -m vw2_robot."""

import sys

import pytest

import vw2_robot
from vw2_robot import __main__ as program
from vw2_robot.command_line import entry_points


@pytest.fixture
def call(monkeypatch, capsys):
    def start(*arguments):
        monkeypatch.setattr(sys, "argv", ["python -m vw2_robot", *arguments])
        program.main()
        return capsys.readouterr().out

    return start


def test_it_lists_every_command_with_what_it_does(call):
    listed = call()
    for command in entry_points.COMMANDS:
        assert f"\n  {command} " in listed
    assert "Fine-tune a pre-trained policy on labels: an MLP action head with an L2 loss." in listed
    assert not [line for line in listed.splitlines() if line.startswith("  ") and not line.endswith((".", "alone"))]
    assert call("--help") == listed
    assert call("--version") == f"vw2_robot {vw2_robot.__version__}\n"
    assert "complete -F _vw2_complete pretrain-on-openx" in call("--completion", "bash")


@pytest.mark.parametrize("name", ["compare", "vw2-compare"])
def test_it_starts_a_command_by_its_short_or_whole_name(call, monkeypatch, name):
    seen = []
    monkeypatch.setitem(entry_points.COMMANDS, "vw2-compare", lambda: seen.append(list(sys.argv)))
    call(name, "run=a", "against=b")
    assert seen == [["vw2-compare", "run=a", "against=b"]]


def test_a_command_that_does_not_exist_is_answered_with_the_nearest(call, capsys):
    with pytest.raises(SystemExit) as left:
        call("rolout")
    assert left.value.code == 2
    assert "there is no command 'rolout'; nearest: rollout, vw2-rollout" in capsys.readouterr().err
