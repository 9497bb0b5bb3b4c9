from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vw2_robot.data.episodes import Part
from vw2_robot.data.shards import Chunk, epoch_chunks

SIZES = st.lists(st.integers(0, 7), min_size=1, max_size=6).filter(any)


def parts(sizes: list[int] | tuple[int, ...]) -> list[Part]:
    return [Part(f"file-{number}", size) for number, size in enumerate(sizes)]


def episodes(chunks: list[Chunk]) -> list[tuple[int, int]]:
    return [(chunk.part, number) for chunk in chunks for number in range(chunk.start, chunk.stop or 0)]


def share(sizes: list[int], epoch: int, shard: int, shards: int, weight: float = 1.0) -> list[tuple[int, int]]:
    return episodes(epoch_chunks(parts(sizes), seed=(5, 0), epoch=epoch, weight=weight, shard=shard, shards=shards))


@settings(deadline=None)
@given(SIZES, st.integers(0, 5), st.integers(1, 7))
def test_shards_of_an_epoch_hold_every_episode_once(sizes: list[int], epoch: int, shards: int) -> None:
    shares = [share(sizes, epoch, shard, shards) for shard in range(shards)]
    found = Counter(episode for one in shares for episode in one)
    assert found == Counter((part, number) for part, size in enumerate(sizes) for number in range(size))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@settings(deadline=None)
@given(SIZES, st.sampled_from((0.25, 0.5, 0.75, 2.0, 2.25)), st.integers(1, 4))
def test_a_weight_multiplies_the_number_of_visits(sizes: list[int], weight: float, shards: int) -> None:
    found: Counter[tuple[int, int]] = Counter()
    for epoch in range(4):
        for shard in range(shards):
            found.update(share(sizes, epoch, shard, shards, weight))
    assert set(found.values()) == {int(4 * weight)}
    assert len(found) == sum(sizes)


def test_whole_files_stay_whole_where_there_are_enough() -> None:
    for shard in range(3):
        chunks = epoch_chunks(parts((10,) * 30), seed=(1,), epoch=0, weight=1.0, shard=shard, shards=3)
        assert [(chunk.start, chunk.stop) for chunk in chunks] == [(0, 10)] * 10


def test_one_file_is_cut_rather_than_leaving_a_rank_without_work() -> None:
    assert [share([10], 0, shard, 3) for shard in range(3)] == [
        [(0, number) for number in range(3)],
        [(0, number) for number in range(3, 6)],
        [(0, number) for number in range(6, 10)],
    ]


def test_files_come_in_another_order_in_each_epoch_and_with_each_seed() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        chunks = epoch_chunks(parts((1,) * 9), seed=(seed,), epoch=epoch, weight=1.0, shard=0, shards=1)
        return [chunk.part for chunk in chunks]

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in range(2) for epoch in range(3)}) == 6


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_files_of_unknown_length_are_never_cut(shards: int) -> None:
    unknown = [Part("a", None), Part("b", 4), Part("c", None)]
    found = [
        chunk
        for shard in range(shards)
        for chunk in epoch_chunks(unknown, seed=(0,), epoch=0, weight=1.0, shard=shard, shards=shards)
    ]
    assert sorted(chunk.part for chunk in found) == [0, 1, 2]
    assert {(chunk.start, chunk.stop, len(chunk)) for chunk in found} == {(0, None, 1)}
