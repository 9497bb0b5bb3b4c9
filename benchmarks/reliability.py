"""Interrupt every program by SIGKILL, SIGTERM and power cuts, and compare its final files: one row per program.

Run: python -m benchmarks.reliability [--kills 100] [--terminations 20] [--cuts 20] [--only record rollout]

Each program of the chain is first run without interruption at miniature size. Then it is started repeatedly and
interrupted at random times: SIGKILL to the whole process group, SIGTERM to the program, or a power cut of a real file
system (ext4 on a loop device, shut down without writing its journal, and mounted again). After every few interruptions
it may finish, and its files are compared with those of the uninterrupted run, byte by byte, except logs and files with
the time of day. No temporary file may remain beside the output or in TMPDIR. A terminated program must end within ten
seconds, with a message and status 143. Power cuts need root; without it that column gives the reason.

Ends with status 1 if anything differed.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = Path(sys.executable).parent
EXT4_IOC_SHUTDOWN = 0x8004587D
WITHOUT_JOURNAL = 2
# These files differ between two uninterrupted runs as well: logs, the time of day, durations.
NOT_COMPARED = ("log.txt", "timing.jsonl", "summary.json", "report.html", "config.yaml", "table.md", "table.tex")
SECONDS_TO_LEAVE = 10.0
FINISH_EVERY = 4
"""interruptions before a run may finish"""

HARDWARE = "++hardware={device: cpu, threads: 1}"


def _loop(train_steps: int, every: int) -> str:
    optim = "{lr: 0.003, warmup_steps: 2}"
    return f"{{train_steps: {train_steps}, batch_size: 2, log_every: 1, save_every: {every}, optim: {optim}}}"


def commands(work: Path) -> dict[str, Callable[[Path], list[str]]]:
    """Return program name -> a function from its output folder to its command."""
    network = (
        "network.policy={image_px: 16, image_widths: [8, 8], image_block: 2, "
        "backbone: {hidden: 16, ffn: 16, layers: 1, heads: 2, kv_heads: 1}}"
    )
    pretrain = [
        f"data.path={work / 'demonstrations'}",
        HARDWARE,
        *("data.validation_fraction=0.34", "dldm.num_frames=5", "dldm.height=16", "dldm.width=16"),
        "++dldm.stem={patch: pixel, temporal_patch_size: 4, spatial_patch_size: 4, spatial_kernel_size: 1}",
        "dldm.levels=[{width: 8, blocks: 1}]",
        "++dldm.qformer={context: adjacent, depth: 1, heads: 2}",
        "dldm.z_channels=8",
        "++vdm={heads: 1, head_dim: 12, layers: 1, adaln_lora_dim: 4, context_width: 8, control_width: 8}",
        "++policy.backbone={hidden: 16, ffn: 16, layers: 1, heads: 2, kv_heads: 1}",
        *("policy.image_px=16", "++policy.image_widths=[8, 8]", "train_dldm.validation_clips=4"),
        f"++train_vdm={_loop(60, 7)}",
        f"++train_dldm.phase1={_loop(60, 7)}",
        f"++train_dldm.reader.loop={_loop(40, 7)}",
        f"++train_dldm.phase2={_loop(40, 7)}",
        f"++train_policy.loop={_loop(60, 7)}",
        "++extract_latents={cache_stride: 1, batch_size: 8}",
    ]
    replay = ["replay=memory", "replay.max_bytes=1000000"]
    finetune = [
        *("method=oracle", "policy=scratch", f"data.path={work / 'demonstrations'}", "data.validation_fraction=0.34"),
        *("head.hidden=8", network, HARDWARE, f"++loop={_loop(300, 25)}"),
    ]
    rollout = ["policy=random", "num_sequences=8", "env.max_steps=60", "videos=3", "workers=2"]
    others = ["env=other_robots", "episodes=4", "workers=2"]
    return {
        "record": lambda out: ["vw2-record", "tasks=[open_drawer]", "episodes=6", "workers=2", f"out={out}"],
        "record, rlds": lambda out: ["vw2-record", *others, "format=rlds", f"out={out}"],
        "record, video": lambda out: ["vw2-record", *others, "format=video", f"out={out}"],
        "pretrain": lambda out: ["pretrain-on-openx", *pretrain, f"run_dir={out}"],
        "replay": lambda out: ["vw2-train-vdm", *pretrain, *replay, f"run_dir={out}"],
        "finetune": lambda out: ["vw2-finetune", *finetune, f"run_dir={out}"],
        "rollout": lambda out: ["vw2-rollout", *rollout, f"run_dir={out}"],
    }


@dataclass
class Row:
    """Counts and faults of one program."""

    kills: int = 0
    terminations: int = 0
    cuts: int = 0
    ends: int = 0
    """interrupted runs that finished and were compared with the uninterrupted one"""
    slowest: float = 0.0
    """seconds from SIGTERM to the end of the program"""
    faults: list[str] = field(default_factory=list)


class Subject:
    """A program under test, and the files of its uninterrupted run."""

    def __init__(self, name: str, command: Callable[[Path], list[str]], work: Path, rng: random.Random) -> None:
        self.name = name
        self._command = command
        self._rng = rng
        self.row = Row()
        self.home = work / name.replace(", ", "-")
        self.temporary = self.home / "tmp"
        self.log = self.home / "log"
        (self.home / "calm").mkdir(parents=True)
        self.temporary.mkdir()
        began = time.monotonic()
        self._finish(self.home / "calm/out")
        self.seconds = time.monotonic() - began
        self.expected = contents(self.home / "calm/out")

    def interrupt(self, out: Path, how: Callable[[subprocess.Popen[bytes]], None]) -> bool:
        """Start the command and interrupt it by `how` at a random time; return False if it finished before."""
        process = self._start(out)
        try:
            # From almost nothing to the whole duration of the run.
            process.wait(self._rng.uniform(0.02, 1.0) * self.seconds)
        except subprocess.TimeoutExpired:
            how(process)
            return True
        self._expect_success(process)
        return False

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """Send SIGKILL to the program and all its children."""
        # The whole group: a batch system kills workers too.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self.row.kills += 1

    def terminate(self, process: subprocess.Popen[bytes]) -> None:
        """Send SIGTERM to the program alone: it must end its children itself, write a message, and be quick."""
        process.terminate()
        began = time.monotonic()
        try:
            process.wait(SECONDS_TO_LEAVE + 20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        took = time.monotonic() - began
        text = self.log.read_text(errors="replace")
        self.row.slowest = max(self.row.slowest, took)
        self.row.terminations += 1
        if took > SECONDS_TO_LEAVE:
            self.row.faults.append(f"SIGTERM took {took:.0f} s")
        # 143 = 128 + SIGTERM.
        if process.returncode not in (0, 143):  # 0: it had just finished
            self.row.faults.append(f"status {process.returncode} after SIGTERM: {text[-300:]}")
        elif process.returncode == 143 and ("Traceback" in text or "SIGTERM" not in text):
            self.row.faults.append(f"SIGTERM: no message, or a traceback: {text[-300:]}")
        if alive := in_group(process.pid):
            self.row.faults.append(f"children outlive SIGTERM: {alive}")
        self._expect_nothing_left(f"SIGTERM in {self.home.name}")

    def finish_and_compare(self, out: Path) -> None:
        """Let the program finish and compare its files."""
        self._finish(out)
        found = contents(out)
        differing = sorted(n for n in found.keys() | self.expected.keys() if found.get(n) != self.expected.get(n))
        self.row.ends += 1
        if differing:
            self.row.faults.append(f"other bytes: {', '.join(differing[:4])}")
        hidden = sorted(p.name for p in [*out.parent.iterdir(), *out.rglob("*")] if is_leftover(p))
        if hidden:
            self.row.faults.append(f"left behind: {', '.join(hidden[:4])}")
        self._expect_nothing_left("a finished run")

    def _finish(self, out: Path) -> None:
        process = self._start(out)
        process.wait()
        self._expect_success(process)

    def _start(self, out: Path) -> subprocess.Popen[bytes]:
        program, *arguments = self._command(out)
        # One thread: sums in another order would change the last bits, and every byte is compared.
        environment = {
            **os.environ,
            **{"OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""},
            "TMPDIR": str(self.temporary),
        }
        with self.log.open("wb") as log:
            return subprocess.Popen(
                [str(PROGRAMS / program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                # A group of its own, so that it can be killed without this process.
                start_new_session=True,
            )

    def _expect_success(self, process: subprocess.Popen[bytes]) -> None:
        if process.returncode != 0:
            raise SystemExit(f"{self.name} ended with {process.returncode}:\n{self.log.read_text()[-3000:]}")

    def _expect_nothing_left(self, after: str) -> None:
        # A program cannot react to SIGKILL, so its files in TMPDIR are removed by the batch system, not by us.
        left = sorted(p.name for p in self.temporary.iterdir() if "torchinductor" not in p.name)
        if left and not self.row.kills:
            self.row.faults.append(f"{after} left in TMPDIR: {', '.join(left[:4])}")
        for path in self.temporary.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def contents(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a run, by name."""
    # TensorBoard files contain the time of day.
    files = (p for p in folder.rglob("*") if p.is_file() and "tensorboard" not in p.parts)
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in files
        if p.name not in NOT_COMPARED and not is_leftover(p)
    }


def is_leftover(path: Path) -> bool:
    """Return whether a name is one of those under which files are written before they are renamed."""
    return path.name.endswith((".tmp", ".old", ".lock", ".parts"))


def in_group(group: int) -> list[str]:
    """Return the commands of running processes of a process group."""
    listed = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    # Zombies (state Z) have ended and only wait for their parent.
    rows = [line.split(None, 2) for line in listed.splitlines()]
    return [row[2] for row in rows if int(row[0]) == group and not row[1].startswith("Z")]


def by_signal(subject: Subject, how: str, count: int) -> None:
    """Interrupt a program `count` times by a signal; let it finish every few times, and compare."""
    for number in range(count):
        out = subject.home / how / "out"
        out.parent.mkdir(exist_ok=True)
        over = False
        while not over:  # repeat where the program finished before the signal
            over = subject.interrupt(out, subject.kill if how == "kill" else subject.terminate)
            if not over:
                subject.finish_and_compare(out)
                _remove(out)
        if number % FINISH_EVERY == FINISH_EVERY - 1 or number == count - 1:
            subject.finish_and_compare(out)
            _remove(out)


def _remove(out: Path) -> None:
    shutil.rmtree(out)
    for beside in out.parent.iterdir():  # files that a recording writes beside its folder
        beside.unlink()


@contextmanager
def mounted(image: Path, place: Path) -> Iterator[None]:
    """Mount the file system in `image` at `place`."""
    subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
    try:
        yield
    finally:
        deadline = time.monotonic() + 20  # killed processes may still be closing their files
        while (done := subprocess.run(["umount", str(place)], capture_output=True, text=True)).returncode:
            if time.monotonic() > deadline:
                raise SystemExit(f"{place} cannot be unmounted: {done.stderr.strip()}")
            time.sleep(0.2)


def by_power_cut(subject: Subject, count: int) -> None:
    """Shut a file system down during a run, mount it again, let the run finish, and compare."""
    image = subject.home / "disk.img"
    place = subject.home / "disk"
    place.mkdir()
    for number in range(count):
        # A new file system for each series of interruptions.
        if number % FINISH_EVERY == 0:
            with image.open("wb") as file:
                file.truncate(400 * 2**20)
            subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
        with mounted(image, place):
            (place / "in").mkdir(exist_ok=True)

            def cut(process: subprocess.Popen[bytes]) -> None:
                # From here the file system loses all data that were not flushed.
                descriptor = os.open(place, os.O_RDONLY)
                fcntl.ioctl(descriptor, EXT4_IOC_SHUTDOWN, struct.pack("I", WITHOUT_JOURNAL))
                os.close(descriptor)
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                subject.row.cuts += 1

            while not subject.interrupt(place / "in/out", cut):
                subject.finish_and_compare(place / "in/out")
                _remove(place / "in/out")
        if number % FINISH_EVERY == FINISH_EVERY - 1 or number == count - 1:
            with mounted(image, place):
                subject.finish_and_compare(place / "in/out")
    image.unlink(missing_ok=True)


def share(total: int, parts: int) -> list[int]:
    """Return `total` as `parts` nearly equal integers."""
    return [total // parts + (number < total % parts) for number in range(parts)]


def main() -> int:
    """Print the table; return 1 if anything differed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--terminations", type=int, default=20)
    parser.add_argument("--cuts", type=int, default=20)
    parser.add_argument("--only", nargs="*", help="names of rows")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    # Mounting a loop device needs root.
    can_cut = os.geteuid() == 0 and shutil.which("mkfs.ext4") is not None
    work = Path(tempfile.mkdtemp(prefix="vw2-reliability."))
    faults = 0
    try:
        programs = commands(work)
        subprocess.run(
            [str(PROGRAMS / "vw2-record"), "tasks=[open_drawer]", "episodes=6", f"out={work / 'demonstrations'}"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        names = [name for name in programs if not arguments.only or name in arguments.only]
        shares = zip(
            *(share(n, len(names)) for n in (arguments.kills, arguments.terminations, arguments.cuts)), strict=True
        )
        print("| program | seconds alone | SIGKILL | SIGTERM (slowest end, s) | power cuts | compared | differed |")
        print("|---|---|---|---|---|---|---|", flush=True)
        for name, (kills, terminations, cuts) in zip(names, shares, strict=True):
            subject = Subject(name, programs[name], work, rng)
            by_signal(subject, "terminate", terminations)
            by_signal(subject, "kill", kills)
            if can_cut:
                by_power_cut(subject, cuts)
            row = subject.row
            print(
                f"| {name} | {subject.seconds:.1f} | {row.kills} | {row.terminations} ({row.slowest:.1f}) "
                f"| {row.cuts if can_cut else 'needs root and mkfs.ext4'} | {row.ends} | {len(row.faults)} |",
                flush=True,
            )
            for fault in row.faults:
                print(f"  {name}: {fault}", file=sys.stderr, flush=True)
            faults += len(row.faults)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return min(faults, 1)


if __name__ == "__main__":
    raise SystemExit(main())
