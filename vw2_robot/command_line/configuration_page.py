"""The page of all keys of all programs.

python -m vw2_robot.command_line.configuration_page docs/configuration.md
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from vw2_robot.command_line.entry_points import all_programs
from vw2_robot.command_line.keys import defaults_of, keys_of

PAGE_HEAD = """# Configuration reference

Every key of every program: type, default, meaning. Written by `make configuration` from the docstrings of the
configuration dataclasses; `COMMAND --keys [PREFIX]` prints the same on the terminal. Set a key with `KEY=VALUE` on the
command line. A default of `???` must be given.
"""


def configuration_page(programs: Mapping[str, tuple[type, str]]) -> str:
    """Return docs/configuration.md.

    Args:
        programs: command -> its configuration dataclass and the name of its yaml file. Commands with the same
            dataclass share a section.
    """
    sections: dict[tuple[type, str], list[str]] = {}
    for command, described in programs.items():
        sections.setdefault(described, []).append(command)
    parts = [PAGE_HEAD]
    for (config_cls, config_name), commands in sections.items():
        parts.append(f"\n## {', '.join(f'`{command}`' for command in commands)}\n")
        parts.append(f"`configs/{config_name}.yaml`\n")
        parts.append("| key | type | default | meaning |\n|---|---|---|---|")
        for key in keys_of(config_cls, defaults_of(config_name)):
            cells = (f"`{key.name}`", key.type, f"`{key.default}`" if key.default else "", key.meaning)
            parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(configuration_page(all_programs()), encoding="utf-8")
