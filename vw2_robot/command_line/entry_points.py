"""The entry points of the console scripts: one function for each program, which imports and starts it.

torch, transformers and TensorFlow take seconds to import. A program that is stopped meanwhile ends with a message
instead of a traceback through all of them. `python -m` with the name of the module starts the same program without it.
"""

from __future__ import annotations

import importlib
import signal
import sys
from functools import partial
from pathlib import Path

from vw2_robot import __version__
from vw2_robot.errors import MissingExtraError
from vw2_robot.process import stop_at_once


def _start(module: str) -> None:
    """Import a program and run its `main`; signals meanwhile end in a message."""
    # Answered before the import, which takes seconds.
    if "--version" in sys.argv[1:]:
        print(f"vw2_robot {__version__}")
        return
    name = Path(sys.argv[0]).name
    stop_at_once(name)
    try:
        main = importlib.import_module(module).main
    except MissingExtraError as error:  # some cannot even be imported without their extra
        print(f"{name}: error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    main()
    # All work is done and on disk: a signal during Python's own exit would only print a traceback.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


pretrain_on_openx = partial(_start, "vw2_robot.pretrain.pretrain_on_openx")
train_vdm = partial(_start, "vw2_robot.pretrain.train_vdm")
train_dldm = partial(_start, "vw2_robot.pretrain.train_dldm")
extract_latents = partial(_start, "vw2_robot.pretrain.extract_latents")
probe_latents = partial(_start, "vw2_robot.pretrain.probing.probe_latents")
train_policy = partial(_start, "vw2_robot.pretrain.train_policy")
imagine = partial(_start, "vw2_robot.pretrain.imagine")
replay_serve = partial(_start, "vw2_robot.replay_programs.serve")
replay_fill = partial(_start, "vw2_robot.replay_programs.fill")
replay_check = partial(_start, "vw2_robot.replay_programs.check")
record = partial(_start, "vw2_robot.envs.recording.record")
finetune = partial(_start, "vw2_robot.finetune.train_head")
rollout = partial(_start, "vw2_robot.rollouts.__main__")
report = partial(_start, "vw2_robot.rollouts.report.report")
compare = partial(_start, "vw2_robot.rollouts.compare")
doctor = partial(_start, "vw2_robot.doctor.__main__")

REPLAY_COMMANDS = {
    "serve": ("hold windows between ingest processes and trainers", replay_serve),
    "fill": ("store windows of data sets on the server", replay_fill),
    "check": ("sample windows as a trainer does, and report the rate", replay_check),
}


def replay() -> None:
    """Start the subcommand of `vw2-replay` that the first argument names; print all of them if it names none."""
    name = Path(sys.argv[0]).name if Path(sys.argv[0]).name != "__main__.py" else "vw2-replay"
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command in REPLAY_COMMANDS:
        # The rest of the line belongs to the subcommand, and its messages begin with both words.
        sys.argv[:2] = [f"{name} {command}"]
        REPLAY_COMMANDS[command][1]()
        return
    if command == "--version":
        print(f"vw2_robot {__version__}")
        return
    lines = [f"  {name} {known:<6} {meaning}" for known, (meaning, _) in REPLAY_COMMANDS.items()]
    asks_for_help = command in ("--help", "-h")
    if command and not asks_for_help:
        lines.insert(0, f"{name}: error: there is no subcommand {command!r}; expected one of these:")
    lines.append(f"{name} {next(iter(REPLAY_COMMANDS))} --help shows the options of a subcommand. Example:")
    lines.append(f"  {name} serve path=runs/replay port=8765 num_frames=9 listen=all")
    lines.append(f"  {name} fill address=127.0.0.1:8765 'data.sources=[{{path: DIR/bridge_dataset/1.0.0}}]'")
    print("\n".join(lines), file=sys.stdout if asks_for_help else sys.stderr)
    raise SystemExit(0 if asks_for_help else 2)
