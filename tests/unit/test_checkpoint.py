import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from vw2_robot import checkpoint
from vw2_robot.checkpoint import (
    kept_checkpoints,
    load_checkpoint,
    load_optimizer,
    resolve,
    save_checkpoint,
    weights_digest,
)
from vw2_robot.distributed.sharding import full_state
from vw2_robot.errors import InputError
from vw2_robot.optim import build_optimizer, optimizer_step
from vw2_robot.schedule import OptimConfig
from vw2_robot.storage.files import write_manifest

OPTIM = OptimConfig(lr=1e-2, warmup_steps=1)


def small_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def save(path, net, **options):
    save_checkpoint(path, **{"kind": "vdm", "config": {"width": 4}, "modules": {"net": net}, **options})


def train(net, optimizer, steps, *, start=0):
    for step in range(start, start + steps):
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        loss = net(x).square().mean()
        loss.backward()
        optimizer_step(loss.detach(), optimizer, step=step, config=OPTIM, total_steps=10)


def test_weights_config_facts_and_files_come_back_exactly(tmp_path):
    net = small_net()
    train(net, build_optimizer(net.parameters(), OPTIM), 2)
    save(tmp_path / "c", net, facts={"hz": 5.0}, files={"tokens": {"latent": [1, 2]}, "stats": {"calvin": {}}})
    loaded = load_checkpoint(tmp_path / "c", kind="vdm")
    clone = small_net(seed=1)
    loaded.load_into(net=clone)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in clone.state_dict().items())
    assert clone.state_dict()["1.num_batches_tracked"] == 2
    assert loaded.config == {"width": 4}
    assert loaded.facts == {"hz": 5.0}
    assert loaded.files == {"tokens": {"latent": [1, 2]}, "stats": {"calvin": {}}}
    names = {path.name for path in (tmp_path / "c").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokens.json", "stats.json", "manifest.json"}
    with safe_open(tmp_path / "c" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}  # without it transformers refuses the file
    assert weights_digest(clone) == weights_digest(net) != weights_digest(small_net(seed=1))


def test_modules_that_share_the_beginning_of_a_name_are_kept_apart(tmp_path):
    nets = {"net": small_net(0), "net2": nn.Linear(2, 2)}
    save(tmp_path / "c", nets["net"], modules=nets)
    loaded = load_checkpoint(tmp_path / "c", kind="vdm")
    loaded.load_into(net=small_net(1), net2=nn.Linear(2, 2))


def test_an_optimizer_continues_as_if_it_had_never_stopped(tmp_path):
    net = small_net()
    optimizer = build_optimizer(net[0].parameters(), OPTIM, fast=net[2].parameters(), fast_mult=3.0)
    train(net, optimizer, 3)
    save(tmp_path / "c", net, optimizer=optimizer, training={"note": 1})
    train(net, optimizer, 3, start=3)

    clone = small_net(seed=1)
    again = build_optimizer(clone[0].parameters(), OPTIM, fast=clone[2].parameters(), fast_mult=3.0)
    load_checkpoint(tmp_path / "c", kind="vdm").load_into(net=clone)
    assert load_optimizer(tmp_path / "c", again) == {"note": 1}
    train(clone, again, 3, start=3)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in clone.state_dict().items())
    states = optimizer.state_dict()["state"], again.state_dict()["state"]
    assert all(torch.equal(states[0][i][key], states[1][i][key]) for i in states[0] for key in states[0][i])


def test_tensor_files_say_that_they_hold_torch_tensors_and_are_as_readable_as_others(tmp_path):
    net = small_net()
    optimizer = build_optimizer(net.parameters(), OPTIM)
    train(net, optimizer, 1)
    save(tmp_path / "c", net, optimizer=optimizer, training={})
    for file in ("model.safetensors", "optimizer.safetensors"):
        with safe_open(tmp_path / "c" / file, framework="pt") as stored:
            assert stored.metadata() == {"format": "pt"}, file
        assert (tmp_path / "c" / file).stat().st_mode == (tmp_path / "c" / "config.json").stat().st_mode


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("call", ["save_tensors", "write_json", "write_manifest"])
def test_a_folder_that_exists_is_complete_whenever_the_writer_dies(tmp_path, monkeypatch, exists, call):
    path = tmp_path / "c"
    if exists:
        save(path, small_net(0))
    with monkeypatch.context() as patch:
        real = getattr(checkpoint, call)

        def die_after_writing(*args, **options):
            real(*args, **options)
            raise Killed

        patch.setattr(checkpoint, call, die_after_writing)
        with pytest.raises(Killed):
            save(path, small_net(1))
    assert path.exists() == exists
    if exists:
        found = small_net(2)
        load_checkpoint(path, kind="vdm").load_into(net=found)
        assert weights_digest(found) == weights_digest(small_net(0))
    save(path, small_net(1))  # and the next attempt is not in the way of the leftovers
    found = small_net(2)
    load_checkpoint(path, kind="vdm").load_into(net=found)
    assert weights_digest(found) == weights_digest(small_net(1))
    assert [entry.name for entry in tmp_path.iterdir()] == ["c"]


def test_latest_names_the_checkpoint_of_a_run_folder(tmp_path):
    save(tmp_path / "run" / "checkpoints" / "step_20", small_net())
    (tmp_path / "run" / "latest").write_text("step_20\n")
    assert resolve(tmp_path / "run") == tmp_path / "run" / "checkpoints" / "step_20"
    assert resolve(str(tmp_path / "run" / "checkpoints" / "step_20")) == tmp_path / "run" / "checkpoints" / "step_20"
    assert load_checkpoint(tmp_path / "run", kind="vdm").path.name == "step_20"


def test_a_selected_checkpoint_wins_over_the_last_one(tmp_path):
    run = tmp_path / "run"
    for place in ("kept/step_10", "checkpoints/step_20"):
        save(run / place, small_net())
    (run / "latest").write_text("step_20\n")
    assert kept_checkpoints(run) == [run / "kept/step_10", run / "checkpoints/step_20"]
    for place in ("kept/step_10", "checkpoints/step_20"):
        (run / "selected").write_text(f"{place}\n")
        assert resolve(run) == run / place
    for damaged in ("step_20", "kept/step_11", "../run/kept/step_10", "kept/../kept/step_10"):
        (run / "selected").write_text(damaged)
        with pytest.raises(InputError, match=r"delete .*(selected|run) to"):
            resolve(run)


def test_what_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(InputError, match="gone is no checkpoint: it does not exist"):
        load_checkpoint(tmp_path / "gone", kind="vdm")
    with pytest.raises(InputError, match=r"holds neither config\.json nor a file 'latest'"):
        load_checkpoint(tmp_path, kind="vdm")
    (tmp_path / "finetune").mkdir()
    (tmp_path / "finetune" / "latest").write_text("step_7\n")
    with pytest.raises(InputError, match=r"; give one of its stages \(.*/finetune\)"):
        load_checkpoint(tmp_path, kind="vdm")
    (tmp_path / "latest").write_text("step_7\n")
    with pytest.raises(InputError, match=r"latest names step_7, but .*step_7/config\.json is missing; restore"):
        load_checkpoint(tmp_path, kind="vdm")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"step_six\n",
        b"../other\n",
        b"step_20/../../x\n",
        b"/tmp/step_20\n",
        b"step_020\n",
        b"step_20\n\n",
        b"\xff",
    ],
)
def test_latest_names_a_checkpoint_of_its_own_run_and_nothing_else(tmp_path, content):
    save(tmp_path / "run" / "checkpoints" / "step_20", small_net())
    (tmp_path / "run" / "latest").write_bytes(content)
    with pytest.raises(InputError, match=rf"{tmp_path}/run/latest .*write the name of a folder in .*checkpoints"):
        load_checkpoint(tmp_path / "run", kind="vdm")


def test_a_checkpoint_that_is_a_link_out_of_the_run_is_refused(tmp_path):
    save(tmp_path / "other", small_net())
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "step_20").symlink_to(tmp_path / "other")
    (tmp_path / "run" / "latest").write_text("step_20\n")
    with pytest.raises(InputError, match="step_20 is a link that leads out of"):
        load_checkpoint(tmp_path / "run", kind="vdm")


def test_a_checkpoint_without_a_manifest_loads_and_says_so(tmp_path, caplog):
    save(tmp_path / "c", small_net())
    (tmp_path / "c" / "manifest.json").unlink()
    load_checkpoint(tmp_path / "c", kind="vdm").load_into(net=small_net(1))
    assert [record.message for record in caplog.records] == [
        f"{tmp_path}/c has no manifest.json: whether its files are whole is not checked"
    ]


def test_whole_numbers_are_not_taken_for_weights(tmp_path):
    save(tmp_path / "c", small_net())
    weights = load_file(tmp_path / "c" / "model.safetensors")
    checkpoint.save_tensors(
        weights | {"net.0.weight": weights["net.0.weight"].view(torch.int32)}, tmp_path / "c" / "model.safetensors"
    )
    with pytest.raises(InputError, match=r"other shape \['0.weight'\]"):
        load_checkpoint(tmp_path / "c", kind="vdm", verify=False).load_into(net=small_net(1))


def test_another_kind_is_refused(tmp_path):
    save(tmp_path / "c", small_net())
    with pytest.raises(InputError, match="is a checkpoint of kind 'vdm', expected 'policy'"):
        load_checkpoint(tmp_path / "c", kind="policy")


@pytest.mark.parametrize("version", [0, 2, None, "1"])
def test_another_format_version_is_refused_and_named(tmp_path, version):
    save(tmp_path / "c", small_net())
    file = tmp_path / "c" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format_version": version}))
    write_manifest(file.parent)
    with pytest.raises(InputError, match=f"has format_version {version!r}, this release reads 1; use the release"):
        load_checkpoint(tmp_path / "c", kind="vdm")


@pytest.mark.parametrize("content", ["{", "", "[1, 2]", '{"format_version": 1, "kind": "vdm"}'])
def test_a_damaged_description_is_named(tmp_path, content):
    save(tmp_path / "c", small_net())
    (tmp_path / "c" / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json"):
        load_checkpoint(tmp_path / "c", kind="vdm")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
@pytest.mark.parametrize("name", ["model", "optimizer"])
def test_cut_off_weights_are_named_with_and_without_a_manifest(tmp_path, name, keep):
    net = small_net()
    optimizer = build_optimizer(net.parameters(), OPTIM)
    train(net, optimizer, 1)
    save(tmp_path / "c", net, optimizer=optimizer)
    file = tmp_path / "c" / f"{name}.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    for verify, what in ((True, "is damaged: its SHA-256 begins"), (False, "cannot be read .*")):
        with pytest.raises(InputError, match=rf"{name}\.safetensors {what}.*; copy the checkpoint again"):
            load_optimizer(load_checkpoint(tmp_path / "c", kind="vdm", verify=verify).path, optimizer, verify=verify)


@pytest.mark.parametrize("name", ["model", "optimizer"])
def test_missing_weights_are_named(tmp_path, name):
    net = small_net()
    optimizer = build_optimizer(net.parameters(), OPTIM)
    save(tmp_path / "c", net, optimizer=optimizer)
    (tmp_path / "c" / f"{name}.safetensors").unlink()
    with pytest.raises(InputError, match=rf"{name}\.safetensors cannot be read"):
        load_optimizer(load_checkpoint(tmp_path / "c", kind="vdm").path, optimizer)


def test_parameters_that_do_not_fit_are_named_and_nothing_is_copied(tmp_path):
    save(tmp_path / "c", small_net())
    other = nn.Sequential(nn.Linear(3, 4), nn.Identity(), nn.Linear(4, 5), nn.Linear(1, 1))
    before = weights_digest(other)
    with pytest.raises(InputError) as caught:
        load_checkpoint(tmp_path / "c", kind="vdm").load_into(net=other)
    message = str(caught.value)
    assert "missing ['3.bias', '3.weight']" in message
    assert "unexpected ['1.bias'" in message
    assert "other shape ['2.bias', '2.weight']" in message
    assert weights_digest(other) == before


def test_digest_knows_names_shapes_and_every_bit():
    net, other = small_net(), small_net()
    assert weights_digest(net) == weights_digest(other)
    with torch.no_grad():
        other[0].weight[0, 0] += 1e-7
    assert weights_digest(net) != weights_digest(other)
    a, b = nn.Module(), nn.Module()
    a.register_buffer("x", torch.zeros(2, 3))
    b.register_buffer("x", torch.zeros(3, 2))
    assert weights_digest(a) != weights_digest(b)


def test_weights_on_the_cpu_are_written_without_a_copy_and_shared_ones_twice(tmp_path):
    net = small_net()
    net.tied = net[2]
    state = full_state(net)
    assert state["0.weight"].data_ptr() == net[0].weight.data_ptr()
    assert state["tied.weight"].data_ptr() != state["2.weight"].data_ptr()
    save(tmp_path / "c", net)
    loaded = load_checkpoint(tmp_path / "c", kind="vdm").weights
    assert all(torch.equal(value, loaded[f"net.{name}"]) for name, value in net.state_dict().items())
