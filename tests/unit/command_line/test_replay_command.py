"""`vw2-replay`: its subcommands, and what it prints without one."""

from __future__ import annotations

import sys

import pytest

from vw2_robot.command_line import entry_points


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the command with some arguments -> (exit status, standard output, standard error)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["/bin/vw2-replay", *arguments])
        with pytest.raises(SystemExit) as left:
            entry_points.replay()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return call


@pytest.mark.parametrize(("arguments", "status"), [((), 2), (("fil",), 2), (("--help",), 0)])
def test_without_a_subcommand_all_of_them_are_printed(run, arguments, status):
    found, out, err = run(*arguments)
    assert found == status
    assert all(f"vw2-replay {command}" in out + err for command in ("serve", "fill", "check"))
    assert ("there is no subcommand 'fil'" in err) == (arguments == ("fil",))


@pytest.mark.parametrize("command", ["serve", "fill", "check"])
def test_a_subcommand_gets_the_rest_of_the_line(monkeypatch, command):
    seen: list[list[str]] = []
    meaning, _ = entry_points.REPLAY_COMMANDS[command]
    monkeypatch.setitem(entry_points.REPLAY_COMMANDS, command, (meaning, lambda: seen.append(list(sys.argv))))
    monkeypatch.setattr(sys, "argv", ["/bin/vw2-replay", command, "rank=1", "--help"])
    entry_points.replay()
    assert seen == [[f"vw2-replay {command}", "rank=1", "--help"]]
