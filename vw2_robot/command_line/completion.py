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
_vw2_config() {{  # COMMAND: the name of its configuration, which several commands may share
    case $1 in
{configs}
    esac
}}
_vw2_keys() {{  # CONFIGURATION: its keys
    case $1 in
{keys}
    esac
}}
_vw2_values() {{  # CONFIGURATION KEY: what the key may be; nothing where that is not a list
    case "$1 $2" in
{values}
    esac
}}
"""
_BASH = """\
_vw2_complete() {{
    local line=${{COMP_LINE:0:COMP_POINT}} config=$(_vw2_config "${{1##*/}}")
    local current=${{line##*[[:space:]]}}
    if [[ $current == *=* ]]; then
        local key=${{current%%=*}} value=${{current#*=}} values
        key=${{key##+(-|+)}}
        values=$(_vw2_values "$config" "$key")
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
        COMPREPLY=($(compgen -P "$sign" -S = -W "$(_vw2_keys "$config")" -- "${{current#"$sign"}}"))
        compopt -o nospace
    fi
}}
shopt -s extglob
complete -F _vw2_complete {commands}
"""
_ZSH = """\
_vw2_complete() {{
    local key values config=$(_vw2_config $service)
    if [[ $PREFIX == *=* ]]; then
        key=${{${{PREFIX%%=*}}##[-+]#}}
        compset -P '*='
        values=(${{=$(_vw2_values $config $key)}})
        if (( $#values )); then compadd -a values; else _files; fi
    else
        compset -P '[-+]#'
        values=(${{=$(_vw2_keys $config)}})
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
    configs: dict[str, str] = {}
    keys: dict[str, list[str]] = {}
    values: dict[str, list[str]] = {}
    for described, (config_cls, config_name) in programs.items():
        command, *subcommand = described.split()
        # Subcommands share the keys of their command.
        config = command if subcommand else config_name
        configs[command] = config
        groups = groups_of(config_name)
        names = [key.name for key in keys_of(config_cls, {})]
        keys[config] = list(dict.fromkeys([*(keys.get(config, []) if subcommand else []), *names, *groups]))
        for name in names:
            types = field_types(config_cls, name)
            if bool in types:
                values[f"{config} {name}"] = ["true", "false"]
            elif types and all(isinstance(kind, str) for kind in types):  # those of a Literal
                values[f"{config} {name}"] = list(types)
        for name, group in groups.items():
            values[f"{config} {name}"] = list(group.choices)
    tables = _TABLES.format(
        configs="\n".join(f"        {command}) echo {config} ;;" for command, config in configs.items()),
        keys="\n".join(f'        {config}) echo "{" ".join(names)}" ;;' for config, names in keys.items()),
        values="\n".join(f'        "{key}") echo "{" ".join(known)}" ;;' for key, known in values.items()),
    )
    return tables + (_BASH if shell == "bash" else _ZSH).format(commands=" ".join(configs))
