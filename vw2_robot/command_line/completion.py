"""Scripts that let a shell complete the keys of all programs, their values and their groups.

    source <(python -m vw2_robot --completion bash)     in ~/.bashrc
    source <(python -m vw2_robot --completion zsh)      in ~/.zshrc, after compinit

A script holds every name, so that pressing Tab starts no Python. After `KEY=` it offers what the key may be, or files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from vw2_robot.errors import InputError

from .config_groups import groups_of
from .keys import keys_of
from .overrides import field_types

Shell = Literal["bash", "zsh"]

_TABLES = """\
_vw2_keys() {{
    case $1 in
{keys}
    esac
}}
_vw2_values() {{
    case "$1 $2" in
{values}
    esac
}}
"""
_BASH = """\
_vw2_complete() {{
    local line=${{COMP_LINE:0:COMP_POINT}} command=${{1##*/}}
    local current=${{line##*[[:space:]]}}
    if [[ $current == *=* ]]; then
        local key=${{current%%=*}} value=${{current#*=}} values
        key=${{key##+(-|+)}}
        values=$(_vw2_values "$command" "$key")
        if [[ -n $values ]]; then
            COMPREPLY=($(compgen -W "$values" -- "$value"))
        else
            compopt -o filenames
            COMPREPLY=($(compgen -f -- "$value"))
        fi
        # What readline replaces begins after the last of these characters.
        [[ $COMP_WORDBREAKS == *=* ]] || COMPREPLY=("${{COMPREPLY[@]/#/${{current%%=*}}=}}")
    else
        local sign=${{current%%[a-zA-Z]*}}
        COMPREPLY=($(compgen -P "$sign" -S = -W "$(_vw2_keys "$command")" -- "${{current#"$sign"}}"))
        compopt -o nospace
    fi
}}
shopt -s extglob
complete -F _vw2_complete {commands}
"""
_ZSH = """\
_vw2_complete() {{
    local key values
    if [[ $PREFIX == *=* ]]; then
        key=${{${{PREFIX%%=*}}##[-+]#}}
        compset -P '*='
        values=(${{=$(_vw2_values $service $key)}})
        if (( $#values )); then compadd -a values; else _files; fi
    else
        compset -P '[-+]#'
        values=(${{=$(_vw2_keys $service)}})
        compadd -S = -q -a values
    fi
}}
compdef _vw2_complete {commands}
"""


def completion_script(shell: str, programs: Mapping[str, tuple[type, str]]) -> str:
    """Return the script for a shell.

    Args:
        shell: bash or zsh.
        programs: command -> its configuration dataclass and the name of its yaml file.

    Raises:
        InputError: another shell.
    """
    if shell not in get_args(Shell):
        raise InputError(f"--completion {shell}".rstrip() + f": expected {' or '.join(get_args(Shell))}")
    keys: dict[str, list[str]] = {}
    values: dict[str, list[str]] = {}
    for described, (config_cls, config_name) in programs.items():
        command = described.split()[0]  # subcommands share the keys of their command
        groups = groups_of(config_name)
        names = [key.name for key in keys_of(config_cls, {})]
        keys.setdefault(command, []).extend(dict.fromkeys([*names, *groups]))
        for name in names:
            types = field_types(config_cls, name)
            if bool in types:
                values[f"{command} {name}"] = ["true", "false"]
            elif all(isinstance(kind, str) for kind in types):  # those of a Literal; empty for a key of any type
                values[f"{command} {name}"] = list(types)
        for name, group in groups.items():
            values[f"{command} {name}"] = list(group.choices)
    tables = _TABLES.format(
        keys="\n".join(
            f'        {command}) echo "{" ".join(dict.fromkeys(names))}" ;;' for command, names in keys.items()
        ),
        values="\n".join(f'        "{key}") echo "{" ".join(known)}" ;;' for key, known in values.items() if known),
    )
    return tables + (_BASH if shell == "bash" else _ZSH).format(commands=" ".join(keys))
