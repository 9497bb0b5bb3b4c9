import errno
import importlib.metadata
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import vw2_robot
import vw2_robot.command_line.program as module
from vw2_robot import errors
from vw2_robot.command_line import entry_points as entry_points
from vw2_robot.command_line.program import program
from vw2_robot.errors import InputError, MissingExtraError, Terminated, install_command, require
from vw2_robot.pretrain.config import PretrainConfig


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a program in this process; gives (exit status, standard error)."""

    def start(run, *overrides):
        monkeypatch.setattr(sys, "argv", ["vw2-test", *overrides])
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        try:
            program(PretrainConfig, config_name="pretrain")(run)()
        except SystemExit as leave:
            return leave.code, capsys.readouterr().err
        return 0, capsys.readouterr().err

    return start


def test_overrides_reach_the_dataclass(call):
    seen = []
    typed = ("run_dir=x", "--data.path", "y", "train_vdm.train_steps=7", "--stages=[dldm]", "seed=3")
    status, error = call(seen.append, *typed)
    assert (status, error) == (0, "")
    config = seen[0]
    assert isinstance(config, PretrainConfig)
    assert (config.run_dir, config.data.path, config.train_vdm.train_steps, config.stages) == ("x", "y", 7, ("dldm",))
    assert config.seed == 3


def test_a_key_that_only_the_dataclass_shows_needs_no_plus_sign(call):
    seen = []
    words = (
        "run_dir=x data.path=y train_dldm.ema=0.5 +policy.text_limit=9 +seed=3 +model=tiny ++train_vdm.train_steps=7"
    )
    assert call(seen.append, *words.split()) == (0, "")
    assert (seen[0].train_dldm.ema, seen[0].policy.text_limit, seen[0].train_vdm.train_steps) == (0.5, 9, 7)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], ["run_dir", "--help"]),
        (["sed=1"], ["there is no key sed; nearest: seed"]),
        (["run_dir=x", "sed=1"], ["there is no key sed; nearest: seed"]),
        (
            ["run_dir=x", "loop.train_steps=5"],
            ["there is no key loop; nearest: train_dldm.reader.loop, train_policy.loop"],
        ),
        (["run_dir=x", "train_policy.loop.steps=5"], ["it is now called train_policy.loop.train_steps"]),
        (["run_dir=x", "train_policy.loop.batch=5"], ["it is now called train_policy.loop.batch_size"]),
        (["run_dir=x", "data.max_bad=5"], ["it is now called data.max_skipped"]),
        (["run_dir=x", "+dldm.framez=1"], ["dldm.framez", "frames"]),
        (["run_dir=x", "dldm.framez=1"], ["dldm.framez", "frames"]),
        (["run_dir=x", "seed=abc"], ["seed must be int, found 'abc'"]),
        (["run_dir=x", "data.splits=train"], ["data.splits must be a list"]),
        (["run_dir=x", "data.splits=[train[:5%]]"], ["data.splits must be a list", "in quotes"]),
        (["run_dir=x", "hardware.sharding=fdsp"], ["must be none or ddp or fsdp, found 'fdsp'; nearest: fsdp"]),
        (["run_dir=x", "stages=[vdm,dream]"], ["stages", "latents", "dream"]),
        (["run_dir=x", "dldm.num_frames=1"], ["dldm.num_frames must be at least 2", "found 1"]),
        (["run_dir=x", "codec.stride=2"], ["codec.stride is 2", "temporal stride 4"]),
        (["run_dir=x", "model=huge"], ["there is no model called huge", "tiny"]),
        (["--run_dir", "x", "--model", "tinny"], ["model=tinny", "nearest: tiny"]),
        (["--run_dir", "x", "--sed", "1"], ["there is no key sed; nearest: seed"]),
        (["run_dir=${sed}"], ["Interpolation key 'sed' not found; give run_dir=..."]),
        (["run_dir=x", "~sed"], ["~sed: there is no key sed; nearest: seed"]),
        (["run_dir"], ["'run_dir' belongs to no key; write key=value"]),
        (
            ["run_dir=x", "train_dldm.perceptual_weights=no/folder"],
            ["train_dldm.perceptual_weights=no/folder: there is no such file or folder"],
        ),
        (["run_dir=x", "hardware.device=cuda:99"], ["hardware.device=cuda:99", "CUDA device"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_wrong_command_line_is_one_message_and_status_1(call, overrides, words):
    def never(config):
        raise AssertionError("the program must not start")

    status, error = call(never, *overrides)
    assert status == 1
    assert "Traceback" not in error
    assert "HYDRA_FULL_ERROR" not in error
    for word in words:
        assert word in error


@pytest.mark.parametrize(
    "error",
    [
        InputError("the drawer is closed"),
        MissingExtraError("the drawer is closed"),
        *(OSError(number, os.strerror(number), "drawer") for number in module._CURES),
        IsADirectoryError(errno.EISDIR, "Is a directory", ".drawer.tmp", None, "drawer"),
        RuntimeError("I/O error: No space left on the drawer (os error 28)"),
        MemoryError("Unable to allocate 9 TiB for a drawer"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory for the drawer"),
        RuntimeError("can't start new thread in the drawer"),
        type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory in the drawer"),
    ],
    ids=lambda error: f"{type(error).__name__}-{getattr(error, 'errno', '')}",
)
def test_errors_for_a_person_become_one_message(error):
    text = module._message(error)
    assert "drawer" in text or "a file: No space left on device; free some space" in text
    assert "\n" not in text


def test_an_error_for_a_person_leaves_without_a_traceback(call):
    def run(config):
        raise InputError("the drawer is closed")

    assert call(run, "run_dir=x") == (1, "pretrain: error: the drawer is closed\n")


def test_a_limit_of_the_machine_needs_no_file_to_be_told(call):
    def run(config):
        raise OSError(errno.EMFILE, "Too many open files")

    first, last = call(run, "run_dir=x")[1].splitlines()
    assert "Too many open files; this process may open more" in first
    assert last == "Set HYDRA_FULL_ERROR=1 for a full stack trace."


@pytest.mark.parametrize("error", [RuntimeError("ours"), KeyError("ours"), FileNotFoundError(errno.ENOENT, "ours")])
def test_a_bug_keeps_its_traceback(call, error):
    def run(config):
        raise error

    status, text = call(run, "run_dir=x")
    assert status == 1
    assert "Traceback" in text
    assert "HYDRA_FULL_ERROR" in text


def test_a_sweep_goes_on_after_a_job_that_fails_and_names_it(call):
    seen = []

    def run(config):
        seen.append(config.seed)
        if config.seed == 1:
            raise InputError("the drawer is closed")

    status, text = call(run, "run_dir=x_${seed}", "seed=0,1,2", "--multirun")
    assert (status, seen) == (1, [0, 1, 2])
    assert "pretrain: error: the drawer is closed" in text
    assert "1 of the jobs failed: #1 (run_dir=x_$\\{seed\\} seed=1)" in text
    assert "Traceback" not in text


def test_the_runs_of_a_sweep_need_a_run_dir_each(call):
    seen = []
    status, text = call(seen.append, "run_dir=x", "seed=0,1", "--multirun", "hydra.sweep.dir=a,b")
    assert (status, seen) == (1, [])
    assert "run_dir=x is the folder of all runs of this sweep over seed" in text
    assert "write 'run_dir=x/seed_${seed}' in quotes" in text
    for words in (("run_dir=x/seed_${seed}", "seed=0,1"), ("run_dir=x,y",), ("run_dir=x", "seed=0")):
        assert call(seen.append, *words, "--multirun") == (0, "")
    assert [config.run_dir for config in seen] == ["x/seed_0", "x/seed_1", "x", "y", "x"]


def test_ranks_are_joined_by_the_programs_that_train_on_several_and_by_no_other(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", ["vw2-test", "run_dir=x"])
    seen = []
    program(PretrainConfig, config_name="pretrain")(seen.append)()
    assert len(seen) == 1
    for rank, message in ((None, "RANK='' in the environment is no number"), ("2", "without MASTER_ADDR and")):
        if rank is not None:
            monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit):
            program(PretrainConfig, config_name="pretrain", ranks=True)(seen.append)()
        error = capsys.readouterr().err
        assert message in error
        assert "torchrun" in error
    monkeypatch.setenv("WORLD_SIZE", "1")
    program(PretrainConfig, config_name="pretrain", ranks=True)(seen.append)()
    assert len(seen) == 2


def test_every_training_program_runs_on_ranks():
    for name in ("pretrain_on_openx", "train_vdm", "train_dldm", "extract_latents", "train_policy", "finetune"):
        assert getattr(entry_points, name).ranks


def test_a_person_who_asks_gets_the_whole_trace(call, monkeypatch):
    def run(config):
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        raise InputError("the drawer is closed")

    with pytest.raises(InputError, match="the drawer is closed"):
        call(run, "run_dir=x")


@pytest.mark.parametrize(("stop", "status", "name"), [(KeyboardInterrupt, 130, "Ctrl-C"), (Terminated, 143, "SIGTERM")])
@pytest.mark.parametrize("words", [("run_dir=x",), ("run_dir=x_${seed}", "seed=0,1", "--multirun")])
def test_a_stop_is_one_message_and_says_where_to_go_on(call, stop, status, name, words):
    def run(config):
        raise stop("the same command continues from step 4 of vdm")

    text = f"\npretrain: stopped by {name}; the same command continues from step 4 of vdm\n"
    assert call(run, *words) == (status, text)


def test_a_missing_extra_is_named_with_the_command_for_this_checkout():
    with pytest.raises(MissingExtraError) as caught:
        require("no_such_package.part", extra="openx")
    checkout = Path(__file__).resolve().parents[3]
    assert str(caught.value) == (
        'no_such_package.part is not installed; this part of vw2_robot needs the extra "openx": '
        f'pip install -e "{checkout}[openx]"'
    )


@pytest.mark.parametrize(
    ("note", "origin"),
    [
        ('{"archive_info": {}, "url": "file:///tmp/vw2_robot-0.1.0-py3-none-any.whl"}', "file:///tmp/vw2_robot-0.1.0-"),
        (
            '{"vcs_info": {"vcs": "git", "commit_id": "abc1"}, "url": "https://host.example/vw2_robot"}',
            "git+https://host.example/vw2_robot@abc1",
        ),
        (None, "file:///PATH-OF-A-CHECKOUT-OR-WHEEL"),
    ],
)
def test_an_installed_copy_names_the_place_that_pip_took_it_from(monkeypatch, tmp_path, note, origin):
    monkeypatch.setattr(errors, "__file__", str(tmp_path / "site-packages" / "vw2_robot" / "errors.py"))
    installed = types.SimpleNamespace(read_text={"direct_url.json": note}.get)
    monkeypatch.setattr(importlib.metadata, "distribution", {"vw2-robot": installed}.__getitem__)
    assert install_command("train").startswith(f'pip install "vw2-robot[train] @ {origin}')


@pytest.mark.parametrize(("extra", "module"), [("calvin", "hydra"), ("calvin", "gymnasium")])
def test_a_program_without_its_extra_ends_in_one_message(monkeypatch, capsys, extra, module):
    """Of an installation without extras: the simulator's package cannot even be imported there."""
    for name in [name for name in sys.modules if name.startswith("vw2_robot.envs")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(sys, "argv", ["vw2-record"])
    with pytest.raises(SystemExit) as left:
        entry_points.record()
    assert left.value.code == 1
    said = f'record: error: {module} is not installed; this part of vw2_robot needs the extra "{extra}"'
    assert said in capsys.readouterr().err


def test_an_error_inside_an_installed_module_passes_through(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency") as caught:
        require("half_installed", extra="openx")
    assert not isinstance(caught.value, MissingExtraError)


def test_version_is_ours_and_not_that_of_hydra(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["vw2-test", "run_dir=x", "--version"])
    program(PretrainConfig, config_name="pretrain")(None)()
    assert capsys.readouterr().out == f"vw2_robot {vw2_robot.__version__}\n"


HELP_OF_ALL = """
import contextlib, sys
from vw2_robot.command_line import entry_points

for name, program in sorted(vars(entry_points).items()):
    if isinstance(program, entry_points.Program):
        many = name in ("pretrain_on_openx", "rollout", "compare")
        for argument in ("--help", "--keys", "sed=1") if many else ("sed=1",):
            sys.argv = [name, argument]
            with contextlib.suppress(SystemExit):
                program.main()
print("loaded:", *sys.modules, file=sys.stderr)
"""


def test_help_keys_and_wrong_keys_of_all_programs_load_nothing_that_takes_seconds():
    done = subprocess.run([sys.executable, "-c", HELP_OF_ALL], capture_output=True, text=True, check=True)
    *errors, loaded = done.stderr.splitlines()
    for example in ("pretrain-on-openx data=bridge_sample", "vw2-rollout policy=random", "vw2-compare run="):
        assert f"  {example}" in done.stdout
    assert "train_dldm.phase1.train_steps" in done.stdout
    programs = sum(isinstance(found, entry_points.Program) for found in vars(entry_points).values())
    assert sum("there is no key sed" in line for line in errors) == programs
    slow = {"torch", "transformers", "tensorflow", "tensorflow_datasets", "pybullet", "diffusers", "matplotlib"}
    assert not slow & set(loaded.split())
