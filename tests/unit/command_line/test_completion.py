"""The completion scripts, in the shells themselves."""

import shutil
import subprocess

import pytest

from vw2_robot.command_line.completion import completion_script
from vw2_robot.command_line.entry_points import COMMANDS, all_programs
from vw2_robot.errors import InputError

CASES = {
    "vw2-rollout prot": "protocol=",
    "vw2-rollout seed=1 protocol=s": "single",
    "vw2-rollout merge=": "true false",
    "vw2-rollout env=calvin_": "calvin_reference",
    "vw2-rollout +experiment=rollout/si": "rollout/single",
    "vw2-train-dldm data.stream=t": "true",
    "vw2-replay fill addr": "address=",
    "vw2-replay serve mo": "mode=",
}
BASH = """
compopt() { :; }
for line in "$@"; do
    COMP_LINE=$line COMP_POINT=${#line} COMPREPLY=()
    _vw2_complete "${line%% *}"
    echo "${COMPREPLY[@]}"
done
"""
# `compadd` and `compset` work inside a completion alone, so what the script gives them is printed here.
ZSH = """
setopt extendedglob
compset() { [[ $2 == '*=' ]] && PREFIX=${PREFIX#*=} || PREFIX=${PREFIX##[-+]#} }
compadd() {
    local suffix=''
    [[ $1 == -S ]] && suffix=$2
    values=(${(M)values:#$PREFIX*})
    print -r -- ${^values}$suffix
}
for line in "$@"; do
    service=${line%% *} PREFIX=${line##* }
    _vw2_complete
done
"""


@pytest.fixture(scope="module")
def programs():
    return all_programs()


def lines_of(command, *cases, cwd):
    done = subprocess.run([*command, *cases], capture_output=True, text=True, cwd=cwd, check=True)
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_bash_offers_keys_values_and_files(programs, tmp_path):
    (tmp_path / "notes.txt").touch()
    cases = {**CASES, "vw2-rollout --prot": "--protocol=", "vw2-compare against=no": "notes.txt"}
    script = completion_script("bash", programs) + BASH
    assert lines_of(["bash", "-c", script, "bash"], *cases, cwd=tmp_path) == list(cases.values())


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_offers_keys_and_values(programs, tmp_path):
    script = "compdef() { : }\n" + completion_script("zsh", programs) + ZSH
    assert lines_of(["zsh", "-fc", script, "zsh"], *CASES, cwd=tmp_path) == list(CASES.values())


def test_every_command_is_completed_and_another_shell_is_refused(programs):
    assert programs.keys() == COMMANDS.keys()
    assert completion_script("zsh", programs).splitlines()[-1].split()[2:] == list(
        dict.fromkeys(command.split()[0] for command in COMMANDS)
    )
    with pytest.raises(InputError, match="--completion fish: expected bash or zsh"):
        completion_script("fish", programs)
