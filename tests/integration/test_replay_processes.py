"""A replay server, two ingest processes and two trainer ranks, each a process of its own; some of them are killed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vw2_robot.data.clips import make_windows
from vw2_robot.data.frame_cache import cache_frames
from vw2_robot.data.sources.formats import open_source

REPO = Path(__file__).resolve().parents[2]
MODULES = {
    "vw2-replay": "replay_programs",
    "vw2-train-vdm": "pretrain.train_vdm",
    "vw2-train-dldm": "pretrain.train_dldm",
}
pytestmark = pytest.mark.slow


class Processes:
    """Programs of ours in one folder, each with its output in a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: list[subprocess.Popen[bytes]] = []
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])

    def start(self, command: str, name: str) -> subprocess.Popen[bytes]:
        """Start a shell command in which our console scripts are run from this checkout."""
        for script, module in MODULES.items():
            command = re.sub(rf"\b{script}\b", f"{shlex.quote(sys.executable)} -m vw2_robot.{module}", command)
        environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
        with (self.folder / f"{name}.txt").open("ab") as out:
            process = subprocess.Popen(
                ["bash", "-c", command],
                cwd=self.folder,
                env=environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.running.append(process)
        return process

    def output(self, name: str) -> str:
        """What a program has written so far."""
        return (self.folder / f"{name}.txt").read_text(encoding="utf-8", errors="replace")

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """End a command and all its children, as a power cut would."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)

    def server(self, options: str) -> subprocess.Popen[bytes]:
        """Start a server and wait until it listens."""
        before = self.output("server").count("replay server on port") if (self.folder / "server.txt").exists() else 0
        process = self.start(
            f"vw2-replay serve path=replay port={self.port} num_frames=5 listen=all {options}", "server"
        )
        wait_until(lambda: self.output("server").count("replay server on port") > before, 120)
        return process

    def ingest(self, number: int, data: str, *, timeout_seconds: float = 20) -> subprocess.Popen[bytes]:
        """Start an ingest process in the loop that docs/scaling.md shows."""
        return self.start(
            f"until vw2-replay fill address=127.0.0.1:{self.port} ingest={number} ingests=2 {data} "
            f"timeout_seconds={timeout_seconds}; "
            "do sleep 1; done",
            f"ingest-{number}",
        )

    def draw(self, rank: int, options: str, *, ranks: int = 2) -> subprocess.Popen[bytes]:
        """Start a trainer rank."""
        return self.start(
            f"vw2-replay check address=127.0.0.1:{self.port} rank={rank} ranks={ranks} out=draw "
            f"height=16 width=16 {options}",
            f"draw-{rank}",
        )

    def drawn(self) -> Counter[tuple[str, int, int]]:
        """(episode, start, epoch) of everything that the ranks have drawn."""
        found: Counter[tuple[str, int, int]] = Counter()
        for file in (self.folder / "draw").glob("*.jsonl"):
            for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
                if line.endswith("\n"):
                    row = json.loads(line)
                    found[row["episode_id"], row["start"], row["epoch"]] += 1
        return found


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    pytest.importorskip("reverb", reason="Reverb is not installed (extra replay)")
    made = Processes(tmp_path)
    yield made
    for process in made.running:
        made.kill(process)


def wait_until(condition: Callable[[], bool], timeout_seconds: float) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.1)


EPOCHS = 15


def data_of(folder: Path) -> str:
    source = f'"data.sources=[{{path: {folder}}}]"'
    return f"{source} data.windows.num_frames=5 data.windows.window_stride=1 data.epochs={EPOCHS}"


def expected(folder: Path) -> Counter[tuple[str, int, int]]:
    found: Counter[tuple[str, int, int]] = Counter()
    source = open_source(folder)
    for part in range(len(source.parts())):
        for episode in source.read(part):
            windows = make_windows(len(episode), num_frames=5, cache_stride=1, hz=episode.hz)
            for epoch in range(EPOCHS):
                found.update((episode.episode_id, start, epoch) for start in windows.start.tolist())
    assert sum(found.values()) > 400
    return found


def test_every_window_once_though_an_ingest_and_the_server_are_killed(
    processes: Processes, calvin_folder: Path
) -> None:
    options = "ranks=2 ingests=2 max_windows=60 checkpoint_minutes=0.02"
    wanted, data = expected(calvin_folder), data_of(calvin_folder)
    server = processes.server(options)
    ingests = [processes.ingest(number, data) for number in range(2)]
    draws = [processes.draw(rank, "batch_size=4 pause_seconds=0.1 timeout_seconds=180") for rank in range(2)]

    wait_until(lambda: processes.drawn().total() > 0.2 * wanted.total(), 120)
    processes.kill(ingests[0])
    ingests[0] = processes.ingest(0, data)

    # Before the other ingest process can have finished alone: an ended one does not store again what a server loses.
    wait_until(lambda: processes.drawn().total() > 0.35 * wanted.total(), 120)
    processes.kill(server)
    assert processes.drawn().total() < wanted.total(), "the server was to be killed in the middle"
    processes.server(options)

    for process in (*draws, *ingests):
        assert process.wait(240) == 0
    assert processes.drawn() == wanted


def test_a_killed_trainer_and_its_server_go_back_together(processes: Processes, calvin_folder: Path) -> None:
    options = "ranks=1 ingests=2 max_windows=60 checkpoint_minutes=0"
    wanted, data = expected(calvin_folder), data_of(calvin_folder)
    server = processes.server(options)
    ingests = [processes.ingest(number, data) for number in range(2)]
    trainer = "batch_size=4 pause_seconds=0.05 timeout_seconds=180 checkpoint_batches=10"
    draw = processes.draw(0, trainer, ranks=1)

    wait_until(lambda: processes.drawn().total() > 0.4 * wanted.total(), 120)
    processes.kill(draw)
    processes.kill(server)
    processes.server(options)
    draw = processes.draw(0, trainer, ranks=1)

    for process in (draw, *ingests):
        assert process.wait(240) == 0
    assert processes.drawn() == wanted


def test_nobody_hangs_when_the_server_never_comes_back(processes: Processes, calvin_folder: Path) -> None:
    server = processes.server("ranks=1 ingests=1 max_windows=20")
    ingest = processes.start(
        f"vw2-replay fill address=127.0.0.1:{processes.port} {data_of(calvin_folder)} timeout_seconds=4", "ingest"
    )
    draw = processes.draw(0, "batch_size=4 pause_seconds=0.3 timeout_seconds=4", ranks=1)
    wait_until(lambda: processes.drawn().total() > 8, 60)
    processes.kill(server)
    begin = time.monotonic()
    assert draw.wait(30) == 1
    assert ingest.wait(30) == 1
    assert time.monotonic() - begin < 30
    address = f"the replay server at 127.0.0.1:{processes.port}"
    assert f"{address} gave 0 of 4 windows in 4 s" in processes.output("draw-0")
    assert f"{address} did not take an episode" in processes.output("ingest")
    assert "Traceback" not in processes.output("draw-0") + processes.output("ingest")


def test_an_ingest_ends_in_time_when_nobody_draws(processes: Processes, calvin_folder: Path) -> None:
    server = processes.server("max_windows=20")
    ingest = processes.start(
        f"vw2-replay fill address=127.0.0.1:{processes.port} {data_of(calvin_folder)} timeout_seconds=3", "ingest"
    )
    assert ingest.wait(60) == 1
    assert "does a trainer sample from it?" in processes.output("ingest")
    os.killpg(server.pid, signal.SIGTERM)
    assert server.wait(30) == 0
    checkpoints = [line for line in processes.output("server").splitlines() if line.startswith("checkpoint ")]
    assert checkpoints[-1].endswith("queue-0 20 windows")


def test_each_of_them_stops_in_order_and_goes_on(processes: Processes, calvin_folder: Path) -> None:
    """Also an ingest process that waits for room, a rank that waits for windows, and a server with either."""
    options, wanted = "ingests=2 max_windows=20 checkpoint_minutes=0", expected(calvin_folder)
    ingest_0 = f"vw2-replay fill address=127.0.0.1:{processes.port} ingest=0 ingests=2 {data_of(calvin_folder)}"
    rank = "batch_size=4 checkpoint_batches=4"  # stopped, like the server, one batch later
    server = processes.server(options)

    def stop(process: subprocess.Popen[bytes], name: str, number: signal.Signals, status: int) -> None:
        before, begin = processes.output(name).count("stopped"), time.monotonic()
        os.killpg(process.pid, number)
        assert process.wait(30) == status
        assert time.monotonic() - begin < 10
        assert processes.output(name).count("stopped") == before + 1

    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        ingest = processes.start(ingest_0, "ingest")
        wait_until(lambda: windows_in(processes.port) == 20, 60)
        stop(ingest, "ingest", number, status)
        draw = processes.draw(0, rank, ranks=1)
        wait_until(lambda: windows_in(processes.port) == 0, 60)
        stop(draw, "draw-0", number, status)
        stop(server, "server", number, 0)
        assert sorted(path.name for path in (processes.folder / "replay").iterdir()) == ["checkpoints", "replay.json"]
        assert sorted(path.name for path in (processes.folder / "draw").iterdir()) == ["rank-0.json", "rank-0.jsonl"]
        server = processes.server(options)
    rest = [processes.ingest(number, data_of(calvin_folder)) for number in range(2)]
    for process in (processes.draw(0, rank, ranks=1), *rest):
        assert process.wait(240) == 0
    assert processes.drawn() == wanted
    assert "Traceback" not in "".join(processes.output(name) for name in ("server", "ingest", "draw-0"))


def windows_in(port: int) -> int:
    import reverb

    return int(reverb.Client(f"127.0.0.1:{port}").server_info(10)["queue-0"].current_size)


def blocks_of_the_page(language: str) -> list[str]:
    page = (REPO / "docs" / "scaling.md").read_text(encoding="utf-8").split("\n## Replay")[1].split("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def test_the_commands_of_the_page_work_as_printed(
    processes: Processes, calvin_folder: Path, miniature: Callable[..., list[str]], tmp_path: Path
) -> None:
    def adapted(text: str) -> str:
        text = text.replace("8765", str(processes.port)).replace("{path: DIR}", f"{{path: {calvin_folder}}}")
        return text.replace("FRAMES", str(tmp_path / "cache"))

    server_command, ingest_commands, draw_command, train_commands = (
        adapted(block).strip() for block in blocks_of_the_page("")
    )
    (program,), source = blocks_of_the_page("python"), open_source(calvin_folder)
    use = (
        "import json\n"
        "        for row in zip(batch.episode_id, batch.start.tolist(), batch.epoch.tolist()):\n"
        "            print(json.dumps(row))\n"
    )
    body = adapted(program).replace("...  # batch", use + "        # batch")
    assert use in body
    (processes.folder / "program.py").write_text(body)
    episodes = [episode for part in range(len(source.parts())) for episode in source.read(part)]
    cache_frames(episodes, tmp_path / "cache", height=16, width=16, description={})
    small = [
        word for word in miniature(tmp_path) if not word.startswith(("run_dir", "data.frame_cache", "dldm.num_frames"))
    ]
    small.append("train_vdm.train_steps=2")  # two epochs of eight episodes must do for both trainers
    train_commands = "\n".join(f"{command} {shlex.join(small)}" for command in train_commands.splitlines())

    python = shlex.quote(sys.executable)
    for name, command in (("draw", draw_command), ("program", f"{python} program.py"), ("train", train_commands)):
        server = processes.start(server_command, f"server-{name}")
        wait_until(lambda: "replay server on port" in processes.output(f"server-{name}"), 120)  # noqa: B023
        ingests = [processes.start(command, f"ingest-{name}") for command in ingest_commands.splitlines()]
        for process in (processes.start(f"set -e\n{command}", name), *ingests):
            assert process.wait(240) == 0, processes.output(name) + processes.output(f"ingest-{name}")
        os.killpg(server.pid, signal.SIGTERM)
        assert server.wait(30) == 0
        shutil.rmtree(processes.folder / "runs" / "replay")

    wanted: Counter[tuple[str, int, int]] = Counter()
    for episode in episodes:
        for start in make_windows(len(episode), num_frames=9, cache_stride=4, hz=episode.hz).start.tolist():
            wanted.update((episode.episode_id, start, epoch) for epoch in range(2))
    rows = [json.loads(line) for line in (processes.folder / "runs/check/rank-0.jsonl").read_text().splitlines()]
    assert Counter((row["episode_id"], row["start"], row["epoch"]) for row in rows) == wanted
    printed = [json.loads(line) for line in processes.output("program").splitlines() if line.startswith('["')]
    assert Counter((name, start, epoch) for name, start, epoch in printed) == wanted
    steps = {stage: (processes.folder / "runs/first" / stage / "latest").read_text() for stage in ("vdm", "dldm")}
    assert steps == {"vdm": "step_2\n", "dldm": "step_8\n"}
