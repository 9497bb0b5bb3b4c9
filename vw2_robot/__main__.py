"""`python -m vw2_robot`: the list of all commands, and a way to start them where their scripts are not on the path.

python -m vw2_robot
python -m vw2_robot rollout policy=random run_dir=runs/random        as vw2-rollout
python -m vw2_robot --completion bash
"""

from __future__ import annotations

import sys
from difflib import get_close_matches

from vw2_robot import __version__
from vw2_robot.command_line import entry_points
from vw2_robot.command_line.config_groups import program_file
from vw2_robot.command_line.program import print_error


def main() -> None:
    """Start the command that the first argument names, or list all of them."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("--version", "-V"):
        print(f"vw2_robot {__version__}")
    elif command == "--completion":
        entry_points.print_completion(sys.argv[2:])
    elif command in ("--help", "-h"):
        print("\n".join(command_lines()))
    else:
        start(command)


def start(command: str) -> None:
    """Start a command on the rest of the arguments; its name may lack `vw2-`.

    Raises:
        SystemExit: there is no such command.
    """
    scripts = {name.split()[0] for name in entry_points.COMMANDS}
    name = next((name for name in (command, f"vw2-{command}") if name in scripts), None)
    if name is None:
        near = get_close_matches(command, [*scripts, *(script.removeprefix("vw2-") for script in scripts)], n=3)
        nearest = f"; nearest: {', '.join(near)}" if near else ""
        print_error("vw2_robot", f"there is no command {command!r}{nearest}; `python -m vw2_robot` lists all of them")
        raise SystemExit(2)
    sys.argv[:2] = [name]
    if name == "vw2-replay":
        entry_points.replay()
    else:
        entry_points.COMMANDS[name]()


def command_lines() -> list[str]:
    """Return the list of commands, each with the first sentence of its help."""
    width = max(map(len, entry_points.COMMANDS))
    lines = [
        f"vw2_robot {__version__}",
        "",
        "usage: COMMAND KEY=VALUE ...   or   python -m vw2_robot COMMAND KEY=VALUE ...",
        "",
    ]
    for command, started in entry_points.COMMANDS.items():
        about = program_file(started.config_name)["hydra"]["help"]
        has_help = about["app_name"] == command
        does = f"{' '.join(about['header'].split()).split('. ')[0].rstrip('.')}." if has_help else "a stage of it alone"
        lines.append(f"  {command:{width}}  {does}")
    return [*lines, "", "COMMAND --help explains one of them; --version, --completion bash or zsh, are for all."]


if __name__ == "__main__":
    main()
