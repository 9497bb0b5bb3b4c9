"""The entry points of the console scripts: what each of them runs, how it is configured, and its start.

torch, transformers and TensorFlow take seconds to import, so a program imports its configuration first. What it runs is
imported when Hydra has answered `--help` and every key has been checked; a program that is stopped meanwhile ends with
a message instead of a traceback through all of them.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from vw2_robot import __version__
from vw2_robot.command_line.program import print_error, program
from vw2_robot.errors import InputError, MissingExtraError
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
    main_keys: tuple[str, ...] = ()
    """the keys that `--help` explains; empty: all"""
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
        if "--completion" in sys.argv[1:]:
            print_completion(sys.argv[sys.argv.index("--completion") + 1 :])
            return
        try:
            config_cls: type = resolve_name(self.config)
        except MissingExtraError as error:  # the simulator's package cannot even be imported without its extra
            print_error(self.config_name, str(error))
            raise SystemExit(1) from None
        program(config_cls, config_name=self.config_name, extra=self.extra, ranks=self.ranks, main_keys=self.main_keys)(
            self._run
        )()

    def _run(self, config: Any) -> None:
        with stop_at_once(self.config_name):
            run = resolve_name(self.run)
        run(config)


PRETRAIN = "vw2_robot.pretrain.config:PretrainConfig"
PRETRAIN_KEYS = (
    "data.path",
    "run_dir",
    "data.image_key",
    "data.gap_seconds",
    "stages",
    "train_vdm.train_steps",
    "train_dldm.phase1.train_steps",
    "train_policy.loop.train_steps",
    "hardware.device",
    "track",
)
pretrain_on_openx = Program(
    "vw2_robot.pretrain.pretrain_on_openx:main", PRETRAIN, "pretrain", ranks=True, main_keys=PRETRAIN_KEYS
)
train_vdm = Program("vw2_robot.pretrain.train_vdm:main", PRETRAIN, "pretrain", ranks=True, main_keys=PRETRAIN_KEYS)
train_dldm = Program("vw2_robot.pretrain.train_dldm:main", PRETRAIN, "pretrain", ranks=True, main_keys=PRETRAIN_KEYS)
extract_latents = Program(
    "vw2_robot.pretrain.extract_latents:main", PRETRAIN, "pretrain", ranks=True, main_keys=PRETRAIN_KEYS
)
probe_latents = Program(
    "vw2_robot.pretrain.probing.probe_latents:main",
    "vw2_robot.pretrain.probing.config:ProbeLatentsConfig",
    "probe_latents",
    main_keys=("dldm", "labeled", "out", "split", "episodes", "pairs", "seed", "hardware.device"),
)
gate_latents = Program(
    "vw2_robot.pretrain.probing.gate:main",
    "vw2_robot.pretrain.probing.config:GateLatentsConfig",
    "gate_latents",
    main_keys=("reports", "unseen", "min_seeds"),
)
train_policy = Program(
    "vw2_robot.pretrain.train_policy:main", PRETRAIN, "pretrain", ranks=True, main_keys=PRETRAIN_KEYS
)
imagine = Program(
    "vw2_robot.pretrain.imagine:imagine",
    "vw2_robot.pretrain.config:ImagineConfig",
    "imagine",
    main_keys=(
        "out",
        "policy",
        "dldm",
        "image",
        "prompt",
        "frame_cache",
        "episode",
        "codes",
        "segments",
        "vdm",
        "hardware.device",
    ),
)
import_ = Program(
    "vw2_robot.pretrain.importing.import_released:main",
    "vw2_robot.pretrain.importing.config:ImportConfig",
    "import",
)
train_judge = Program(
    "vw2_robot.pretrain.craft.train_judge:main",
    "vw2_robot.pretrain.craft.config:TrainJudgeConfig",
    "train_judge",
    main_keys=("videos", "run_dir", "dinov2", "px", "loop.train_steps", "seed", "hardware.device"),
)
imagine_craft = Program(
    "vw2_robot.pretrain.craft.imagine_craft:main",
    "vw2_robot.pretrain.craft.config:ImagineCraftConfig",
    "imagine_craft",
    main_keys=("policy", "dldm", "prior", "videos", "out", "methods", "episodes", "seconds", "hardware.device"),
)
compare_codes = Program(
    "vw2_robot.pretrain.craft.compare_codes:main",
    "vw2_robot.pretrain.craft.config:CompareCodesConfig",
    "compare_codes",
    main_keys=("dldms", "videos", "out", "episodes", "seed", "hardware.device"),
)
judge = Program(
    "vw2_robot.rollouts.craft.judge_videos:main",
    "vw2_robot.rollouts.craft.config:JudgeVideosConfig",
    "judge",
    main_keys=("judge", "videos", "imagined", "out", "tower", "hardware.device"),
)
replay_serve = Program(
    "vw2_robot.replay_programs.serve:serve", "vw2_robot.replay_programs.serve:ReplayServeConfig", "replay_serve"
)
replay_fill = Program(
    "vw2_robot.replay_programs.fill:fill_server",
    "vw2_robot.replay_programs.fill:ReplayFillConfig",
    "replay_fill",
    main_keys=("address", "data.sources", "data.mixture", "data.root", "data.epochs", "ingest", "ingests"),
)
replay_check = Program(
    "vw2_robot.replay_programs.check:check", "vw2_robot.replay_programs.check:ReplayCheckConfig", "replay_check"
)
record = Program(
    "vw2_robot.envs.recording.record:record",
    "vw2_robot.envs.recording.config:RecordConfig",
    "record",
    extra="calvin",
    main_keys=("out", "episodes", "format", "tasks", "play", "ways", "appearance", "policy", "workers", "seed"),
)
finetune = Program(
    "vw2_robot.finetune.train_head:finetune",
    "vw2_robot.finetune.config:FinetuneConfig",
    "finetune",
    ranks=True,
    main_keys=(
        "policy",
        "data.path",
        "run_dir",
        "label_fraction",
        "preset",
        "acting",
        "loop.train_steps",
        "loop.batch_size",
        "hardware.device",
        "track",
    ),
)
rollout = Program(
    "vw2_robot.rollouts.__main__:main",
    "vw2_robot.rollouts.config:RolloutConfig",
    "rollout",
    extra="calvin",
    main_keys=(
        "policy",
        "run_dir",
        "protocol",
        "num_sequences",
        "rollouts_per_task",
        "workers",
        "videos",
        "record",
        "against",
        "device",
    ),
)
select = Program(
    "vw2_robot.rollouts.select_checkpoint:main",
    "vw2_robot.rollouts.select_checkpoint:SelectConfig",
    "select",
    extra="calvin",
    main_keys=("policy", "run_dir", "protocol", "num_sequences", "rollouts_per_task", "workers", "device"),
)
serve = Program(
    "vw2_robot.serving.serve:serve",
    "vw2_robot.serving.serve:ServeConfig",
    "serve",
    extra="serve",
    main_keys=("policy", "host", "port", "image_keys", "api_key_file", "max_batch_size", "n_action_steps", "device"),
)
live = Program("vw2_robot.rollouts.live.live:live", "vw2_robot.rollouts.live.config:LiveConfig", "live", extra="live")
export = Program("vw2_robot.serving.export:main", "vw2_robot.serving.export:ExportConfig", "export")
report = Program(
    "vw2_robot.rollouts.report.report:main", "vw2_robot.rollouts.report.report:ReportConfig", "report", extra="report"
)
compare = Program(
    "vw2_robot.rollouts.compare:main", "vw2_robot.rollouts.compare:CompareConfig", "compare", extra="report"
)
convert = Program("vw2_robot.conversion.convert:main", "vw2_robot.conversion.config:ConvertConfig", "convert")
doctor = Program(
    "vw2_robot.doctor.__main__:run", "vw2_robot.doctor.__main__:DoctorConfig", "doctor", leading="sections"
)


def all_programs() -> dict[str, tuple[type, str]]:
    """Return command -> its configuration dataclass and the name of its yaml file, for every program of the package.

    A program whose extra is not installed is left out, since its configuration cannot be imported.
    """
    found: dict[str, tuple[type, str]] = {}
    for command, started in COMMANDS.items():
        with suppress(MissingExtraError):
            found[command] = (resolve_name(started.config), started.config_name)
    return found


def print_completion(shells: Sequence[str]) -> None:
    """Print the completion script of all programs for a shell, the first of `shells`."""
    from vw2_robot.command_line.completion import completion_script

    try:
        print(completion_script(shells[0] if shells else "", all_programs()), end="")
    except InputError as error:
        print_error("vw2_robot", str(error))
        raise SystemExit(1) from None


REPLAY_COMMANDS = {
    "serve": ("hold windows between ingest processes and trainers", replay_serve),
    "fill": ("store windows of data sets on the server", replay_fill),
    "check": ("sample windows as a trainer does, and report the rate", replay_check),
}

COMMANDS = {
    "pretrain-on-openx": pretrain_on_openx,
    **{
        # `import_` has its underscore because Python has the word.
        f"vw2-{name}".rstrip("_").replace("_", "-").replace("replay-", "replay "): started
        for name, started in list(globals().items())
        if isinstance(started, Program) and started is not pretrain_on_openx
    },
}
"""all programs by command; `vw2-replay` is followed by a subcommand"""


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
    if command == "--completion":
        print_completion(sys.argv[2:])
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
