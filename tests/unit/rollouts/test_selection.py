import pytest
from hypothesis import given
from hypothesis import strategies as st

from vw2_robot.contracts import EvalSequence
from vw2_robot.errors import InputError
from vw2_robot.rollouts.selection import parse_shard, select, shard_folder, shard_sequences

CHAINS = [EvalSequence(number, {}, ("open",)) for number in range(20)]


def numbers(chains):
    return [chain.number for chain in chains]


def test_numbers_and_ranges_choose_chains_in_the_benchmarks_order():
    assert numbers(select(CHAINS, [])) == list(range(20))
    assert numbers(select(CHAINS, ["0:3"])) == [0, 1, 2]
    assert numbers(select(CHAINS, [17, "2:4", "3:5"])) == [2, 3, 4, 17]


@pytest.mark.parametrize("spec", ["a", "3:", ":3", "5:5", "-1", "1:2:3", ""])
def test_what_is_no_range_is_refused(spec):
    with pytest.raises(InputError, match=r"neither a chain number nor a range"):
        select(CHAINS, [spec])


def test_a_chain_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(InputError, match="18:25 asks for chain 20, but there are chains 0 to 19"):
        select(CHAINS, ["18:25"])


@given(st.integers(1, 30), st.integers(0, 20))
def test_shards_hold_every_chain_once_and_are_even(count, length):
    shards = [numbers(shard_sequences(CHAINS[:length], f"{i}/{count}")) for i in range(count)]
    assert [number for numbers_ in shards for number in numbers_] == list(range(length))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("shard", ["3", "3/3", "-1/3", "a/3", "1/", "1/0"])
def test_what_is_no_shard_is_refused(shard):
    with pytest.raises(ValueError, match="expected i/n"):
        parse_shard(shard)


def test_folders_of_shards_sort_by_number():
    assert shard_folder("2/12") == "shard_02_of_12"
    assert numbers(shard_sequences(CHAINS, None)) == list(range(20))
