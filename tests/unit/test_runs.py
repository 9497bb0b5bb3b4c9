import json

import pytest
import torch

from vw2_robot.errors import InputError
from vw2_robot.runs import Hardware, Run, generator, mark, read_mark

CONFIG = {"optim": {"lr": 1e-3, "beta": 0.9}, "levels": [8, 5], "seed": 0}


def open_run(path, config=CONFIG, *, total=10, save_every=4, log_every=2):
    return Run(path, config, stage="test", total_steps=total, save_every=save_every, log_every=log_every)


def write(folder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")


def train(run, *, until=None):
    """Log and save as the programs do; returns the steps taken."""
    taken = []
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
    assert steps_logged(tmp_path / "r") == [2, 4]
    assert train(run) == list(range(4, 10))
    assert steps_logged(tmp_path / "r") == [2, 4, 6, 8, 10]


def test_a_line_that_a_kill_cut_short_is_forgotten(tmp_path):
    train(open_run(tmp_path / "r"), until=5)
    file = tmp_path / "r" / "metrics.jsonl"
    whole = file.read_text()
    for torn in ('{"step": 4, "test/lo', '{"st', "{", '{"step": 6'):
        file.write_text(whole + torn)
        open_run(tmp_path / "r")
        assert file.read_text() == whole


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
    assert [entry.name for entry in (tmp_path / "r" / "checkpoints").iterdir()] == ["step_4"]
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


def test_a_start_that_came_to_nothing_does_not_bind_the_folder(tmp_path):
    open_run(tmp_path / "r", CONFIG | {"data": "misspelt"})
    train(open_run(tmp_path / "r"), until=2)
    with pytest.raises(InputError, match="data"):
        open_run(tmp_path / "r", CONFIG | {"data": "misspelt"})


def test_a_configuration_that_is_no_longer_readable_is_named(tmp_path):
    train(open_run(tmp_path / "r"), until=2)
    (tmp_path / "r" / "config.yaml").write_text("a: [1, ")
    with pytest.raises(InputError, match=r"config\.yaml"):
        open_run(tmp_path / "r")


def test_the_last_step_is_always_due(tmp_path):
    run = open_run(tmp_path / "r", total=7)
    assert [step + 1 for step in range(7) if run.due(step, 3)] == [3, 6, 7]


def test_metrics_are_plain_numbers_and_people_get_a_line(tmp_path, capsys):
    run = open_run(tmp_path / "r")
    run.log(1, {"test/loss": torch.tensor(0.1), "test/phase": 2})
    assert json.loads((tmp_path / "r" / "metrics.jsonl").read_text()) == {"step": 2, "test/loss": 0.1, "test/phase": 2}
    assert "[test] step 2/10 test/loss=0.1" in capsys.readouterr().out
    assert "test/loss=0.1" in (tmp_path / "r" / "log.txt").read_text()
    run.close()


def test_generators_depend_on_seed_stream_and_step_and_on_nothing_else():
    def draw(*args, **options):
        return torch.rand(4, generator=generator(*args, **options)).tolist()

    first = draw(0, 3, stream=1)
    torch.manual_seed(99)
    assert draw(0, 3, stream=1) == first
    others = [draw(s, t, stream=c) for s in range(3) for t in range(20) for c in range(3)]
    assert len({tuple(values) for values in others}) == 180


def test_marks_are_read_back_and_absent_ones_are_none(tmp_path):
    assert read_mark(tmp_path / "m.json") is None
    mark(tmp_path / "m.json", {"b": [1, 2], "a": None})
    assert read_mark(tmp_path / "m.json") == {"a": None, "b": [1, 2]}
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.json"]


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
