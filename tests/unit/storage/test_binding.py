import pytest

from vw2_robot.errors import InputError
from vw2_robot.storage.binding import bind_folder, check_same_config
from vw2_robot.storage.files import read_json, write_json

TEXTS = {"holds": "a recording with another configuration", "advice": "Use another out=, or delete this one"}


def test_a_folder_is_bound_once_and_another_configuration_is_refused_with_its_keys(tmp_path):
    file = tmp_path / "config.json"
    bind_folder(tmp_path, {"seed": 1, "data": {"hz": 5.0}}, file=file, **TEXTS)
    bind_folder(tmp_path, {"seed": 1, "data": {"hz": 5.0}}, file=file, **TEXTS)
    with pytest.raises(InputError, match=r"another configuration; these keys differ: data\.hz \(5\.0 -> 6\.0\)\. Use"):
        bind_folder(tmp_path, {"seed": 1, "data": {"hz": 6.0}}, file=file, **TEXTS)
    assert read_json(file, cure="") == {"seed": 1, "data": {"hz": 5.0}}


def test_a_folder_in_which_nothing_began_gets_the_new_configuration(tmp_path):
    file = tmp_path / "config.json"
    bind_folder(tmp_path, {"seed": 1}, file=file, **TEXTS)
    bind_folder(tmp_path, {"seed": 2}, file=file, begun=False, **TEXTS)
    assert read_json(file, cure="") == {"seed": 2}


def test_old_keys_of_a_stored_configuration_are_read_under_their_present_names(tmp_path):
    file = tmp_path / "config.json"
    write_json(file, {"horizon": 8}, sealed=True)
    bind_folder(tmp_path, {"chunk_size": 8}, file=file, **TEXTS)
    assert read_json(file, cure="") == {"chunk_size": 8}


def test_a_missing_key_differs(tmp_path):
    with pytest.raises(InputError, match=r"these keys differ: b \(None -> 1\)"):
        check_same_config(tmp_path, {}, {"b": 1}, **TEXTS)
