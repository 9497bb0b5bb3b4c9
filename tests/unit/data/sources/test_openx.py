import pytest

from vw2_robot.data.sources.openx import OpenXSource, action_rules, all_sources, copy_command, find_source, known_source
from vw2_robot.errors import InputError


def test_names_and_aliases_are_unique() -> None:
    names = [name for source in all_sources() for name in (source.name, *source.aliases)]
    assert len(names) == len(set(names))


def test_published_mixtures_have_the_published_number_of_sets() -> None:
    # `bridge` and `bridge_dataset` are two conversions of one data set.
    one_bridge = [source for source in all_sources() if source.same_as is None]
    assert sum(source.octo_weight > 0 for source in one_bridge) == 25
    assert sum(source.openvla_weight > 0 for source in one_bridge) == 27


@pytest.mark.parametrize("name", ["bridge_dataset", "bridge_orig"])
def test_bridge_is_read_from_image_0_at_5_hz(name: str) -> None:
    source = find_source(name)
    assert (source.image_key, source.hz, source.language_key) == ("image_0", 5, ("language_instruction",))


def test_short_and_long_names_of_converted_sets_are_the_same_row() -> None:
    assert find_source("ucsd_kitchen_dataset") is find_source("ucsd_kitchen_dataset_converted_externally_to_rlds")


def test_instruction_of_language_table_is_its_own_key() -> None:
    assert find_source("language_table").language_key == ("observation", "instruction")


def test_the_wrist_is_never_the_image_of_a_set_that_has_an_outside_view() -> None:
    only_wrist = {source.name for source in all_sources() if source.wrist_only}
    assert only_wrist == {
        "nyu_door_opening_surprising_effectiveness",
        "dobbe",
        "berkeley_gnm_recon",
        "berkeley_gnm_cory_hall",
        "berkeley_gnm_sac_son",
        "berkeley_mvp_converted_externally_to_rlds",
        "berkeley_rpt_converted_externally_to_rlds",
    }
    for source in all_sources():
        if source.name not in only_wrist:
            assert not any(word in key for key in source.image_keys for word in ("wrist", "hand", "gripper")), source


def test_rates_are_those_of_the_sources() -> None:
    assert {source.name: source.hz for source in all_sources() if source.hz and source.hz != int(source.hz)} == {
        "dobbe": 3.75,
        "asu_table_top_converted_externally_to_rlds": 12.5,
    }
    assert all(source.hz is None or 1 <= source.hz <= 50 for source in all_sources())


def test_every_row_names_a_rule_that_is_explained_and_every_rule_is_used() -> None:
    assert {source.action for source in all_sources()} == set(action_rules())


def test_licences_are_stated_or_unknown() -> None:
    assert {source.license for source in all_sources()} == {"mit", "cc-by-4.0", "unknown", "your own"}


def test_copy_commands_put_a_set_where_it_is_looked_for() -> None:
    assert copy_command(find_source("viola"), "/data/") == (
        "mkdir -p /data/viola && gsutil -m cp -r gs://gresearch/robotics/viola/0.1.0 /data/viola/"
    )
    assert copy_command(find_source("fmb"), "gs://mine") == (
        "gsutil -m cp -r gs://gresearch/robotics/fmb/0.0.1 gs://mine/fmb/"
    )
    # Four folders of the address are cut, `bridge_dataset/1.0.0` is left.
    assert copy_command(find_source("bridge_dataset"), "/data") == (
        'wget -r -np -nH --cut-dirs=4 -R "index.html*" -P /data '
        "https://rail.eecs.berkeley.edu/datasets/bridge_release/data/tfds/bridge_dataset/"
    )
    assert copy_command(find_source("vw2_arms"), "/data") == (
        "vw2-record env=other_robots format=rlds out=/data/vw2_other_robots"
    )


def test_a_row_of_ones_own_needs_three_things() -> None:
    row = OpenXSource("my_robot", "camera/front", 7.0)
    assert (row.image_keys, row.wrist_only, row.octo_weight) == (("camera/front",), False, 0.0)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"'bridge_datset' is not in the table .*nearest: bridge_dataset"):
        find_source("bridge_datset")
    with pytest.raises(InputError, match="known: fractal20220817_data"):
        find_source("zzzzzzzzzzz")
    assert known_source("my_own_robot") is None
