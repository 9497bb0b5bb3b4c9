import pytest

from vw2_robot.data.openx import SOURCES, find_source, known_source
from vw2_robot.errors import InputError


def test_names_and_aliases_are_unique() -> None:
    names = [name for source in SOURCES for name in (source.name, *source.aliases)]
    assert len(names) == len(set(names))


def test_mixtures_have_the_published_number_of_sets() -> None:
    # `bridge` and `bridge_dataset` are two conversions of one data set.
    one_bridge = [source for source in SOURCES if source.name != "bridge_dataset"]
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


def test_rates_are_those_of_the_sources() -> None:
    assert {source.name: source.hz for source in SOURCES if source.hz and source.hz != int(source.hz)} == {
        "dobbe": 3.75,
        "asu_table_top_converted_externally_to_rlds": 12.5,
    }
    assert all(source.hz is None or 2 <= source.hz <= 30 for source in SOURCES)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"'bridge_datset' is not in the table .*nearest: bridge_dataset"):
        find_source("bridge_datset")
    with pytest.raises(InputError, match="known: fractal20220817_data"):
        find_source("zzzzzzzzzzz")
    assert known_source("my_own_robot") is None
