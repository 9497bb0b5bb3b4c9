"""The entry points of the console scripts: what each of them runs, how it is configured, and its start.

torch, transformers and TensorFlow take seconds to import, so a program imports its configuration first. What it runs is
imported when Hydra has answered `--help` and every key has been checked; a program that is stopped meanwhile ends with
a message instead of a traceback through all of them.
"""

from __future__ import annotations

import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from vw2_robot import __version__
from vw2_robot.command_line.program import print_error, program
from vw2_robot.errors import MissingExtraError
from vw2_robot.process import stop_at_once


@dataclass(frozen=True)
class Program:
    """A program by the names of its parts, which are imported when they are needed."""

    run: str
    """the function that gets the configuration, as module:function"""
    config: str
    """the root dataclass, as module:class; its module imports nothing slow"""
    config_name: str
    """of its yaml file"""
    extra: str = "train"
    """installs what the program needs"""
    ranks: bool = False
    """may be started as several ranks"""
    leading: str | None = None
    """option for arguments in front that have no `=`, which Hydra would refuse"""

    def __call__(self) -> None:
        """Start the program as a console script does."""
        with stop_at_once(Path(sys.argv[0]).name):
            self.main()
        # All work is done and on disk: a signal during Python's own exit would only print a traceback.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)

    def main(self) -> None:
        """Run the program on `sys.argv`."""
        leading = []
        while self.leading and len(sys.argv) > 1 and sys.argv[1].isalpha():
            leading.append(sys.argv.pop(1))
        if leading:
            sys.argv.insert(1, f"{self.leading}=[{','.join(leading)}]")
        try:
            config_cls: type = resolve_name(self.config)
        except MissingExtraError as error:  # the simulator's package cannot even be imported without its extra
            print_error(self.config_name, str(error))
            raise SystemExit(1) from None
        program(config_cls, config_name=self.config_name, extra=self.extra, ranks=self.ranks)(self._run)()

    def _run(self, config: Any) -> None:
        with stop_at_once(self.config_name):
            run = resolve_name(self.run)
        run(config)


PRETRAIN = "vw2_robot.pretrain.config:PretrainConfig"
pretrain_on_openx = Program("vw2_robot.pretrain.pretrain_on_openx:main", PRETRAIN, "pretrain", ranks=True)
train_vdm = Program("vw2_robot.pretrain.train_vdm:main", PRETRAIN, "pretrain", ranks=True)
train_dldm = Program("vw2_robot.pretrain.train_dldm:main", PRETRAIN, "pretrain", ranks=True)
extract_latents = Program("vw2_robot.pretrain.extract_latents:main", PRETRAIN, "pretrain", ranks=True)
probe_latents = Program(
    "vw2_robot.pretrain.probing.probe_latents:main",
    "vw2_robot.pretrain.probing.config:ProbeLatentsConfig",
    "probe_latents",
)
gate_latents = Program(
    "vw2_robot.pretrain.probing.gate:main",
    "vw2_robot.pretrain.probing.config:GateLatentsConfig",
    "gate_latents",
)
train_policy = Program("vw2_robot.pretrain.train_policy:main", PRETRAIN, "pretrain", ranks=True)
imagine = Program("vw2_robot.pretrain.imagine:imagine", "vw2_robot.pretrain.config:ImagineConfig", "imagine")
replay_serve = Program(
    "vw2_robot.replay_programs.serve:serve", "vw2_robot.replay_programs.serve:ReplayServeConfig", "replay_serve"
)
replay_fill = Program(
    "vw2_robot.replay_programs.fill:fill_server", "vw2_robot.replay_programs.fill:ReplayFillConfig", "replay_fill"
)
replay_check = Program(
    "vw2_robot.replay_programs.check:check", "vw2_robot.replay_programs.check:ReplayCheckConfig", "replay_check"
)
record = Program(
    "vw2_robot.envs.recording.record:record", "vw2_robot.envs.recording.config:RecordConfig", "record", extra="calvin"
)
finetune = Program(
    "vw2_robot.finetune.train_head:finetune", "vw2_robot.finetune.config:FinetuneConfig", "finetune", ranks=True
)
rollout = Program(
    "vw2_robot.rollouts.__main__:main", "vw2_robot.rollouts.config:RolloutConfig", "rollout", extra="calvin"
)
select = Program(
    "vw2_robot.rollouts.select_checkpoint:main",
    "vw2_robot.rollouts.select_checkpoint:SelectConfig",
    "select",
    extra="calvin",
)
serve = Program("vw2_robot.serving.serve:serve", "vw2_robot.serving.serve:ServeConfig", "serve", extra="serve")
live = Program("vw2_robot.rollouts.live.live:live", "vw2_robot.rollouts.live.config:LiveConfig", "live", extra="live")
export = Program("vw2_robot.serving.export:main", "vw2_robot.serving.export:ExportConfig", "export")
report = Program(
    "vw2_robot.rollouts.report.report:main", "vw2_robot.rollouts.report.report:ReportConfig", "report", extra="report"
)
compare = Program(
    "vw2_robot.rollouts.compare:main", "vw2_robot.rollouts.compare:CompareConfig", "compare", extra="report"
)
doctor = Program(
    "vw2_robot.doctor.__main__:run", "vw2_robot.doctor.__main__:DoctorConfig", "doctor", leading="sections"
)

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
