"""What `--help` prints: what the program does, the keys that matter most, its groups of yaml files, examples."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from .config_groups import EXPERIMENT, groups_of, program_file
from .keys import WIDTH, defaults_of, key_lines, keys_of


def help_text(config_cls: type, config_name: str, main_keys: Sequence[str] = ()) -> str:
    """Return the help of a program.

    Args:
        config_cls: its configuration dataclass.
        config_name: of its yaml file, whose `hydra.help` has the name, the introduction and the examples.
        main_keys: names of the keys that are explained, in this order; empty: all.
    """
    about = program_file(config_name)["hydra"]["help"]
    keys = {key.name: key for key in keys_of(config_cls, defaults_of(config_name))}
    shown = main_keys or tuple(keys)
    parts = [
        about["header"].rstrip(),
        "",
        f"usage: {about['app_name']} KEY=VALUE ...   (--KEY VALUE means the same)",
        "",
    ]
    for name in shown:
        parts += [f"  {line}" for line in key_lines(keys[name])]
    if len(keys) > len(shown):
        parts += ["", f"  {len(keys) - len(shown)} more keys: {about['app_name']} --keys, or docs/configuration.md"]
    if groups := groups_of(config_name):
        parts += ["", "groups of values, each a file below configs/:"]
        for name, group in groups.items():
            default = f" (default {group.default})" if group.default else ""
            sign = "+" if name == EXPERIMENT else ""
            head = f"  {sign}{name}=  "
            listed = f"{', '.join(group.choices)}{default}"
            parts += textwrap.wrap(listed, WIDTH, initial_indent=head, subsequent_indent="      ")
    options = "--keys [PREFIX], --version, --cfg job (print the composed values), --completion bash or zsh"
    return "\n".join([*parts, "", f"options: {options}", "", about["footer"].rstrip()])
