import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vw2_robot.checkpoint import save_checkpoint
from vw2_robot.devices import Hardware
from vw2_robot.errors import InputError
from vw2_robot.random_numbers import generator
from vw2_robot.runs import Run
from vw2_robot.storage.normal_ranges import NormalRanges

CONFIG = {"optim": {"lr": 1e-3, "beta": 0.9}, "levels": [8, 5], "seed": 0}


def open_run(path, config=CONFIG, *, total=10, save_every=4, log_every=2):
    return Run(path, config, stage="test", total_steps=total, save_every=save_every, log_every=log_every)


def write(folder):
    save_checkpoint(folder, kind="vdm", config={}, modules={"net": torch.nn.Linear(1, 1)})


def train(run, *, until=None):
    """Log and save as the programs do; returns the steps taken."""
    taken = []
    run.begin()
    for step in run.steps(until):
        taken.append(step)
        if run.due(step, run.log_every):
            run.log(step, {"test/loss": 1 / (step + 1)})
        if run.due(step, run.save_every):
            run.save(step, write)
    return taken


def steps_logged(path):
    return [json.loads(line)["step"] for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_a_run_logs_saves_and_ends(tmp_path):
    run = open_run(tmp_path / "r")
    assert not run.complete
    assert run.checkpoint is None
    assert train(run) == list(range(10))
    assert steps_logged(tmp_path / "r") == [2, 4, 6, 8, 10]
    assert [entry.name for entry in (tmp_path / "r" / "checkpoints").iterdir()] == ["step_10"]
    again = open_run(tmp_path / "r")
    assert again.complete
    assert again.checkpoint == tmp_path / "r" / "checkpoints" / "step_10"
    assert train(again) == []


def test_a_run_goes_on_after_its_last_checkpoint_and_forgets_what_came_later(tmp_path):
    train(open_run(tmp_path / "r"), until=7)  # checkpoint at 4, metrics at 2, 4, 6
    assert steps_logged(tmp_path / "r") == [2, 4, 6]
    run = open_run(tmp_path / "r")
    assert run.start == 4
    assert train(run) == list(range(4, 10))
    assert steps_logged(tmp_path / "r") == [2, 4, 6, 8, 10]


def test_training_on_keeps_checkpoints_up_to_the_last_one_and_forgets_a_selection(tmp_path):
    kept = tmp_path / "r" / "kept"
    run = open_run(tmp_path / "r")
    train(run, until=7)  # the last checkpoint is that of step 4
    for step in (1, 5):
        run.keep(step, write)
    (kept / ".step_7.tmp").mkdir()
    (kept / "notes").mkdir()  # not ours
    (tmp_path / "r" / "selected").write_text("kept/step_6\n")
    run = open_run(tmp_path / "r")
    assert run.start == 4
    run.begin()
    assert sorted(entry.name for entry in kept.iterdir()) == ["notes", "step_2"]
    assert not (tmp_path / "r" / "selected").exists()
    (kept / "step_8").mkdir()
    with pytest.raises(InputError, match="step_8 was not written by this program"):
        run.keep(7, write)


def test_a_line_that_a_kill_cut_short_is_forgotten(tmp_path):
    train(open_run(tmp_path / "r"), until=5)
    file = tmp_path / "r" / "metrics.jsonl"
    whole = file.read_text()
    for torn in ('{"step": 4, "test/lo', '{"st', "{", '{"step": 6', "\0\0\0"):
        file.write_text(whole + torn)
        open_run(tmp_path / "r").begin()
        assert file.read_text() == whole
    assert "damaged" not in (tmp_path / "r" / "log.txt").read_text()
    file.write_text("{}\n" + whole)  # this was no kill
    open_run(tmp_path / "r").begin()
    assert file.read_text() == whole
    assert "1 damaged lines are left out" in (tmp_path / "r" / "log.txt").read_text()


def test_a_run_killed_while_it_saves_goes_on_from_the_checkpoint_before(tmp_path):
    train(open_run(tmp_path / "r"), until=4)
    run = open_run(tmp_path / "r")

    def die_half_way(folder):
        folder.with_name(f".{folder.name}.tmp").mkdir()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.save(7, die_half_way)
    assert open_run(tmp_path / "r").start == 4

    def die_before_it_counts(folder):
        write(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.save(7, die_before_it_counts)
    run = open_run(tmp_path / "r")
    assert run.start == 4
    run.begin()
    assert sorted(entry.name for entry in (tmp_path / "r" / "checkpoints").iterdir()) == ["step_4", "step_8"]
    assert train(run) == list(range(4, 10))
    assert [entry.name for entry in (tmp_path / "r" / "checkpoints").iterdir()] == ["step_10"]


def test_another_configuration_in_the_same_folder_names_the_keys_that_differ(tmp_path):
    train(open_run(tmp_path / "r"), until=2)
    other = {"optim": {"lr": 2e-3, "beta": 0.9}, "levels": [8, 5, 5], "seed": 0}
    with pytest.raises(InputError) as caught:
        open_run(tmp_path / "r", other)
    assert "levels ([8, 5] -> [8, 5, 5]), optim.lr (0.001 -> 0.002)" in str(caught.value)
    assert "beta" not in str(caught.value)
    assert "delete this folder" in str(caught.value)
    open_run(tmp_path / "r")  # the folder is still that of the first configuration


def test_a_run_of_an_earlier_release_goes_on_with_what_its_missing_options_did(tmp_path):
    before = {"vdm": {"width": 8}, "dldm": {"stem": {"patch": 4}}}
    train(open_run(tmp_path / "r", before), until=4)
    today = {
        "vdm": {"width": 8, "projection": "attention", "context_tokens": 512, "family": None},
        "dldm": {"stem": {"patch": 4, "factorized": False}, "released_decoder": False},
    }
    assert train(open_run(tmp_path / "r", today)) == list(range(4, 10))
    with pytest.raises(InputError, match=r"vdm\.projection \('attention' -> 'convolution'\)"):
        open_run(tmp_path / "r", {**today, "vdm": {**today["vdm"], "projection": "convolution"}})


def test_a_start_that_came_to_nothing_does_not_bind_the_folder(tmp_path):
    open_run(tmp_path / "r", CONFIG | {"seed": 7}).begin()
    train(open_run(tmp_path / "r"), until=2)
    with pytest.raises(InputError, match=r"seed \(0 -> 7\)"):
        open_run(tmp_path / "r", CONFIG | {"seed": 7})


def test_a_configuration_that_is_no_longer_readable_is_named(tmp_path):
    train(open_run(tmp_path / "r"), until=2)
    file = tmp_path / "r" / "config.yaml"
    whole = file.read_text()
    for content in ("a: [1, ", "", whole[:-30], whole.replace("lr: 0.001", "lr: 0.002"), "[" * 20_000, "- " * 999):
        file.write_text(content)
        with pytest.raises(InputError, match=r"config\.yaml is damaged: .*delete the folder to start over"):
            open_run(tmp_path / "r")
    file.unlink()
    with pytest.raises(InputError, match=r"config\.yaml is missing, so the configuration"):
        open_run(tmp_path / "r")


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_opening_a_run_changes_nothing_and_leaves_nothing(tmp_path):
    with open_run(tmp_path / "r"):
        pass
    assert not list(tmp_path.iterdir())
    train(open_run(tmp_path / "r"), until=7)
    (tmp_path / "r" / "checkpoints" / ".step_8.tmp").mkdir()
    before = files_of(tmp_path)
    with open_run(tmp_path / "r"):
        pass
    assert files_of(tmp_path) == before
    assert (tmp_path / "r" / "checkpoints" / ".step_8.tmp").is_dir()


def test_a_folder_of_another_kind_of_run_is_refused_and_left_alone(tmp_path):
    (tmp_path / "config.yaml").write_text("policy: random\nseed: 0\n")
    with pytest.raises(InputError, match=r"not that of a test run \(its sections: policy, seed\); use another run_dir"):
        open_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    assert (tmp_path / "config.yaml").read_text() == "policy: random\nseed: 0\n"


def test_what_others_put_beside_checkpoints_is_never_deleted(tmp_path):
    mine = tmp_path / "r" / "checkpoints"
    for name in ("best", "step_900", "step_2_backup"):
        (mine / name).mkdir(parents=True)
        (mine / name / "weights.bin").write_text("weeks of work")
    train(open_run(tmp_path / "r"), until=5)
    write(mine / "step_1")  # as ours, but with something in it that is not
    (mine / "step_1" / "notes.txt").write_text("keep")
    train(open_run(tmp_path / "r"))
    assert sorted(p.name for p in mine.iterdir()) == ["best", "step_1", "step_10", "step_2_backup", "step_900"]
    (mine / "step_10").rename(mine / "mine")
    (tmp_path / "r" / "latest").unlink()
    (mine / "step_8").mkdir()
    with pytest.raises(
        InputError, match="step_1 was not written by this program, and a checkpoint of this run belongs"
    ):
        open_run(tmp_path / "r")


@pytest.mark.parametrize("name", ["checkpoints", "metrics.jsonl", "log.txt", "config.yaml", "latest", "tensorboard"])
def test_links_out_of_a_run_folder_are_not_followed(tmp_path, name):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=f"{name} is a link"):
        open_run(tmp_path / "r")


@pytest.mark.parametrize("content", [b"", b"step_six\n", b"../../other\n", b"\xff\xfe\n"])
def test_a_damaged_latest_is_named_and_nothing_is_deleted(tmp_path, content):
    train(open_run(tmp_path / "r"))
    (tmp_path / "r" / "latest").write_bytes(content)
    with pytest.raises(InputError, match=r"r/latest .*write the name of a folder in"):
        open_run(tmp_path / "r")
    assert (tmp_path / "r" / "checkpoints" / "step_10").is_dir()


def test_a_run_without_latest_goes_on_from_its_newest_checkpoint(tmp_path):
    train(open_run(tmp_path / "r"), until=9)
    (tmp_path / "r" / "latest").unlink()  # as if killed between the first checkpoint and this file
    assert open_run(tmp_path / "r").start == 8
    assert (tmp_path / "r" / "latest").read_text() == "step_8\n"


def test_a_complete_run_without_its_checkpoint_or_with_a_damaged_one_is_named(tmp_path):
    train(open_run(tmp_path / "r"))
    file = tmp_path / "r" / "checkpoints" / "step_10" / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        open_run(tmp_path / "r")
    shutil.rmtree(tmp_path / "r" / "checkpoints")
    with pytest.raises(InputError, match=r"latest names step_10, but .*restore the checkpoint, or delete"):
        open_run(tmp_path / "r")


def test_the_older_checkpoint_goes_when_the_newer_one_is_on_disk(tmp_path, monkeypatch):
    run, order = open_run(tmp_path / "r"), []
    train(run, until=4)
    real = os.fsync

    def watched(descriptor):
        order.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        assert (tmp_path / "r" / "checkpoints" / "step_4").is_dir()
        return real(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    run.save(7, write)
    assert order.index("model.safetensors") < order.index("checkpoints") < order.index("metrics.jsonl")
    assert order[-2:] == [".latest.tmp", "r"]
    assert [entry.name for entry in (tmp_path / "r" / "checkpoints").iterdir()] == ["step_8"]


def test_a_kill_while_older_checkpoints_are_deleted_leaves_nothing_for_good(tmp_path, monkeypatch):
    for last in (8, 10):  # in the middle of a run, and at its end
        run = open_run(tmp_path / "r")
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", lambda folder, **_: (folder / "config.json").unlink(missing_ok=True))
            train(run, until=last)
        assert len(list((tmp_path / "r" / "checkpoints").iterdir())) > 1
        again = open_run(tmp_path / "r")
        if not again.complete:
            again.begin()
        assert [entry.name for entry in (tmp_path / "r" / "checkpoints").iterdir()] == [f"step_{last}"]


@pytest.mark.slow
def test_another_process_is_refused_while_a_run_is_open(tmp_path):
    code = (
        "import sys; from vw2_robot.runs import Run\n"
        "Run(sys.argv[1], {}, stage='test', total_steps=1, save_every=1, log_every=1)"
    )
    with open_run(tmp_path / "r"):
        second = subprocess.run([sys.executable, "-c", code, tmp_path / "r"], capture_output=True, text=True)
    assert f"r is in use by another run: training (test), process {os.getpid()}" in second.stderr
    subprocess.run([sys.executable, "-c", code, tmp_path / "r"], check=True)


def test_a_stop_says_where_the_run_goes_on(tmp_path):
    def stopped():
        with open_run(tmp_path / "r") as run:
            train(run, until=7)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="the same command continues from step 4 of test"):
        stopped()


def events_of(file):
    """The records of a TensorBoard file: length, its checksum, content, its checksum."""
    event = pytest.importorskip("tensorboard.compat.proto.event_pb2").Event
    data, found = file.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        found.append(event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return found


def test_a_full_disk_ends_the_board_and_not_the_run(tmp_path):
    pytest.importorskip("tensorboard")
    run = open_run(tmp_path / "r")
    run.begin()
    run.log(0, {"test/loss": 0.5, "test/norm": 2})
    events = next((tmp_path / "r" / "tensorboard").iterdir())
    version, start, first = events_of(events)
    assert (version.file_version, start.step, first.step) == ("brain.Event:2", 0, 1)
    assert [(value.tag, value.simple_value) for value in first.summary.value] == [("test/loss", 0.5), ("test/norm", 2)]
    events.rename(tmp_path / "events")
    events.symlink_to("/dev/full")
    run.log(1, {"test/loss": 0.25})
    run.log(2, {"test/loss": 0.125})
    assert steps_logged(tmp_path / "r") == [1, 2, 3]
    told = [line for line in (tmp_path / "r" / "log.txt").read_text().splitlines() if "tensorboard" in line]
    assert len(told) == 1
    assert "No space left on device" in told[0]
    assert str(events) in told[0]


def test_the_last_step_is_always_due(tmp_path):
    run = open_run(tmp_path / "r", total=7)
    assert [step + 1 for step in range(7) if run.due(step, 3)] == [3, 6, 7]


def test_metrics_are_plain_numbers_and_people_get_a_line(tmp_path, capsys):
    run = open_run(tmp_path / "r")
    run.log(1, {"test/loss": torch.tensor(0.1), "test/phase": 2})
    assert json.loads((tmp_path / "r" / "metrics.jsonl").read_text()) == {"step": 2, "test/loss": 0.1, "test/phase": 2}
    assert "[test] step 2/10: test/loss=0.1" in capsys.readouterr().out
    assert "test/loss=0.1" in (tmp_path / "r" / "log.txt").read_text()
    run.close()


def test_a_line_says_how_fast_how_long_and_how_the_number_that_matters_compares(tmp_path, capsys, monkeypatch):
    curve = {"steps": [1, 4], "low": [0.1, 0.1], "high": [0.9, 0.9]}
    ranges = NormalRanges(4, {"1": {"vdm/validation_loss": curve}}, {"1": 4}, (), True)
    monkeypatch.setattr("vw2_robot.runs.normal_ranges", lambda stage, config: ranges if stage == "vdm" else None)
    with open_run(tmp_path / "r") as run:
        run.begin()
        for step in run.steps(2):
            run.log(step, {"vdm/validation_loss": 0.5})
    assert re.search(
        r"step 2/10, [\d.e+]+ steps/s, 0:00:0\d left, held-out denoising loss 0.5 \(normal 0.1 to 0.9\): vdm",
        capsys.readouterr().out,
    )


def test_generators_depend_on_seed_stream_and_step_and_on_nothing_else():
    def draw(*args, **options):
        return torch.rand(4, generator=generator(*args, **options)).tolist()

    first = draw(0, 3, stream=1)
    torch.manual_seed(99)
    assert draw(0, 3, stream=1) == first
    others = [draw(s, t, stream=c) for s in range(3) for t in range(20) for c in range(3)]
    assert len({tuple(values) for values in others}) == 180


def test_a_device_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Hardware().torch_device() == torch.device("cpu")
    with pytest.raises(InputError, match=r"hardware\.device=cuda:1.*sees no CUDA device"):
        Hardware("cuda:1").torch_device()
    with pytest.raises(InputError, match=r"hardware\.device=gpu"):
        Hardware("gpu").torch_device()


def test_threads_are_set_as_asked():
    before = torch.get_num_threads()
    Hardware(threads=2).torch_device()
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    Hardware().torch_device()
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)


def test_bf16_is_for_products_only():
    with Hardware(precision="bf16").autocast(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with Hardware().autocast(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_modules_keep_the_precision_of_their_weights_on_the_device_except_in_float64():
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).bfloat16())
    assert Hardware(precision="bf16").placed(net, torch.device("cpu"))[1].weight.dtype == torch.bfloat16
    assert net[0].weight.dtype == torch.float32
    assert {p.dtype for p in Hardware(precision="float64").placed(net, torch.device("cpu")).parameters()} == {
        torch.float64
    }


def test_a_disk_without_room_for_the_checkpoints_is_named_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3 * 10**9))
    run = open_run(tmp_path / "r")
    with pytest.raises(InputError, match=r"two checkpoints of 2 GB lie there at a time, and only 3 GB are free"):
        run.begin(state_bytes=2 * 10**9)
    assert not (tmp_path / "r" / "config.yaml").exists()
    run.begin(state_bytes=10**9)
