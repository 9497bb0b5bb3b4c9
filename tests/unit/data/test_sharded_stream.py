"""Global batches from logical shards: equal for any number of ranks, also after a resume with another number."""

import json
from itertools import pairwise

import numpy as np
import pytest

from vw2_robot.data.blocks import WindowOptions
from vw2_robot.data.clips import Augmentation
from vw2_robot.data.episodes import Episode, Part
from vw2_robot.data.sharded_stream import ShardedStream, default_shards, shards_of_batch
from vw2_robot.data.stream import ClipStream, StreamOptions
from vw2_robot.distributed.batch_share import BatchShare
from vw2_robot.errors import InputError


class Files:
    """A source of 12 files with 3 episodes each; in one of them an image is damaged."""

    name = "files"

    def __init__(self):
        self.opened = set()

    def parts(self):
        return [Part(f"part-{number}", 3) for number in range(12)]

    def read(self, part, *, start=0):
        self.opened.add(part)
        for number in range(start, 3):
            images = [np.full((4, 4, 3), (part, number, index), np.uint8) for index in range(6 + part % 4)]
            if (part, number) == (5, 1):
                images[2] = b"no image"
            yield Episode(self.name, f"{part}/{number}", "", 5.0, tuple(images))


OPTIONS = StreamOptions(
    WindowOptions(num_frames=5, temporal_stride=2),
    height=4,
    width=4,
    shuffle_bytes=12_000,
    interleaved_readers=1,
    augmentation=Augmentation(brightness=0.5),
)


class Run:
    """All ranks of a run, in this process."""

    def __init__(self, world_size, *, shards, threads=0, state=None):
        self.streams = [
            ShardedStream(
                [(Files(), 1.0)], OPTIONS, seed=3, shards=shards, threads=threads, gather=lambda _: self.snapshots
            )
            for _ in range(world_size)
        ]
        for stream in self.streams if state is not None else ():
            stream.restore(json.loads(state))

    def batch(self, step, batch_size, micro_batches=1):
        """The global batch of a step, put together from the shares of the ranks."""
        pixels = np.zeros((batch_size, 5, 4, 4, 3), np.uint8)
        names = [("", 0)] * batch_size
        # What `gather` would see: the positions of all ranks before any of them goes on.
        self.snapshots = [stream.snapshot() for stream in self.streams]
        for rank, stream in enumerate(self.streams):
            rows = BatchShare(batch_size, micro_batches, rank, len(self.streams)).rows
            part = stream.batch(step, batch_size, rows)
            pixels[rows] = part.pixels
            for row, *name in zip(rows, part.episode_id, part.start.tolist(), strict=True):
                names[row] = tuple(name)
        return names, pixels.tobytes()

    def state(self):
        self.snapshots = [stream.snapshot() for stream in self.streams]
        states = [json.dumps(stream.state()) for stream in self.streams]
        assert len(set(states)) == 1
        return states[0]


@pytest.mark.parametrize("shards", [1, 4, 6, 12])
def test_the_batches_of_any_number_of_ranks_are_equal_also_after_a_resume_with_another_number(shards):
    sizes = [12, 12, 12, 6, 6, 6]  # the second phase of a training has batches of another size
    whole = Run(1, shards=shards)
    wanted = [whole.batch(step, size) for step, size in enumerate(sizes)]
    assert len({name for names, _ in wanted for name in names}) > 40
    for world_size, micro_batches, threads in ((2, 1, 2), (3, 1, 0), (2, 3, 0)):
        run = Run(world_size, shards=shards, threads=threads)
        found = [run.batch(step, size, micro_batches) for step, size in enumerate(sizes[:4])]
        state = run.state()
        found += [run.batch(step, size, micro_batches) for step, size in enumerate(sizes[4:], 4)]
        assert found == wanted
        other = Run(4 - world_size, shards=shards, state=state)
        assert [other.batch(step, 6) for step in (4, 5)] == wanted[4:]


def test_a_rewound_rank_goes_on_behind_its_snapshot():
    stream = ShardedStream([(Files(), 1.0)], OPTIONS, seed=3, shards=4, threads=2)
    first = stream.batch(0, 8).pixels
    snapshot = stream.snapshot()
    second = stream.batch(1, 8).pixels
    stream.rewind(snapshot)
    np.testing.assert_array_equal(stream.batch(1, 8).pixels, second)
    stream.rewind({})
    np.testing.assert_array_equal(stream.batch(0, 8).pixels, first)
    stream.close()


def test_neighboring_positions_have_neighboring_shards_and_all_shards_get_their_turn():
    for batch_size, shards in ((12, 4), (12, 8), (6, 12), (6, 16), (5, 3), (1, 7)):
        turns = [shards_of_batch(step, batch_size, shards) for step in range(16)]
        assert {shard for given in turns for shard in given.tolist()} == set(range(shards))
        assert all(a <= b for given in turns for a, b in pairwise(given.tolist()))


def test_a_rank_opens_only_the_shards_of_its_rows():
    source = Files()
    stream = ShardedStream([(source, 1.0)], OPTIONS, seed=3, shards=12, threads=0)
    for step in range(4):
        stream.batch(step, 6, np.array([2, 3]))
    assert len(source.opened) <= 5  # 4 of 12 shards


def test_shards_that_the_ranks_do_not_divide_are_named(caplog):
    stream = ShardedStream([(Files(), 1.0)], OPTIONS, seed=3, shards=4, threads=0)
    stream.batch(0, 6, np.array([2, 3]))
    assert "some of the 4 shards of the stream belong to several ranks" in caplog.text


def test_damage_in_all_shards_of_a_rank_is_counted_together():
    class Damaged(Files):
        def read(self, part, *, start=0):
            yield from (Episode(self.name, f"{part}/{n}", "", 5.0, (b"no image",) * 6) for n in range(start, 2))
            yield Episode(self.name, f"{part}/2", "", 5.0, (np.zeros((4, 4, 3), np.uint8),) * 6)

    stream = ShardedStream([(Damaged(), 1.0)], OPTIONS, seed=3, shards=4, threads=0)
    with pytest.raises(InputError, match="11 where 10 were allowed"):
        stream.batch(0, 400)
    assert len(stream.skipped) == 11


def test_a_position_of_a_stream_without_shards_continues_in_one_shard():
    options = OPTIONS
    with ClipStream([(Files(), 1.0)], options, seed=3, threads=0) as old:
        old.batch(9)
        state = json.loads(json.dumps(old.state()))
        wanted = old.batch(7).pixels
    stream = ShardedStream([(Files(), 1.0)], options, seed=3, shards=1, threads=0)
    stream.restore(state)
    np.testing.assert_array_equal(stream.batch(0, 7).pixels, wanted)
    with pytest.raises(InputError, match=r"had 1 shards, now it has 4; continue with data\.stream_shards=1"):
        ShardedStream([(Files(), 1.0)], options, seed=3, shards=4).restore(state)


def test_a_shard_whose_episodes_are_all_held_out_goes_on_to_its_next_epoch():
    stream = ShardedStream(
        [(Files(), 1.0)], OPTIONS, seed=3, shards=12, threads=0, keep=lambda episode: episode.episode_id[0] != "1"
    )
    names = {name for step in range(40) for name in stream.batch(step, 12).episode_id}
    assert len(names) == 9 * 3
    nothing = ShardedStream([(Files(), 1.0)], OPTIONS, seed=3, shards=12, threads=0, keep=lambda episode: False)
    with pytest.raises(InputError, match=r"shard 0 of 12 finds no clip .* fewer shards \(data\.stream_shards\)"):
        nothing.batch(0, 12)


def test_the_default_is_eight_shards_or_half_the_number_of_files():
    assert default_shards([(Files(), 1.0)]) == 6

    class Single(Files):
        def parts(self):
            return [Part("only", 30)]

    assert default_shards([(Single(), 1.0), (Single(), 2.0)]) == 1
