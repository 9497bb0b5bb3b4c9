import gc
import hashlib
import json
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vw2_robot.data.blocks import WindowOptions
from vw2_robot.data.clips import Augmentation, make_windows
from vw2_robot.data.episodes import Episode, Part, SkippedEpisodes, encode_jpeg
from vw2_robot.data.frame_cache import FrameCache, cache_frames
from vw2_robot.data.stream import ClipStream, StreamOptions
from vw2_robot.errors import InputError

FRAMES, STRIDE = 5, 2
CUT = WindowOptions(num_frames=FRAMES, temporal_stride=STRIDE)
Place = tuple[str, str, int]


class Shelf:
    """A source in memory: a list of parts, each a list of episodes or of errors that reading them raises."""

    def __init__(self, name: str, parts: Sequence[Sequence[Episode | InputError]], *, unknown: bool = False) -> None:
        self.name, self.content, self.unknown = name, parts, unknown
        self.reads: list[tuple[int, int]] = []

    def parts(self) -> Sequence[Part]:
        return [Part(f"part-{n}", None if self.unknown else len(part)) for n, part in enumerate(self.content)]

    def read(self, part: int, *, start: int = 0) -> Iterator[Episode]:
        self.reads.append((part, start))
        for item in self.content[part][start:]:
            if isinstance(item, InputError):
                raise item
            yield item


def numbered(name: str, number: int, length: int, *, hz: float = 5.0) -> Episode:
    """Red says which episode, green which frame."""
    images = tuple(encode_jpeg(np.full((8, 8, 3), (8 * number, 8 * index, 77), np.uint8)) for index in range(length))
    return Episode(name, str(number), f"task {number}", hz, images)


def shelf(lengths: Sequence[Sequence[int]], name: str = "shelf", **options: Any) -> Shelf:
    numbers = iter(range(10_000))
    return Shelf(name, [[numbered(name, next(numbers), length) for length in part] for part in lengths], **options)


LENGTHS = ((9, 2, 12), (), (20,), (5, 6, 7, 8, 3), (14, 4))


@pytest.fixture(scope="module")
def books() -> Shelf:
    return shelf(LENGTHS)


def windows_of(source: Shelf, *, cut: WindowOptions = CUT) -> Counter[Place]:
    return Counter(
        (source.name, episode.episode_id, start)
        for part in source.content
        for episode in part
        if isinstance(episode, Episode)
        for start in make_windows(
            len(episode), num_frames=cut.num_frames, cache_stride=1, hz=episode.hz, temporal_stride=cut.temporal_stride,
            target_hz=cut.target_hz, gap_seconds=cut.gap_seconds,
        ).start.tolist()
    )  # fmt: skip


def open_stream(*sources: Shelf | tuple[Any, float], **options: Any) -> ClipStream:
    weighted = [source if isinstance(source, tuple) else (source, 1.0) for source in sources]
    own = {"seed": 0, "threads": 0}
    own |= {key: options.pop(key) for key in ("seed", "rank", "world_size", "threads", "keep") if key in options}
    look = StreamOptions(options.pop("cut", CUT), **{"height": 8, "width": 8, "shuffle_bytes": 9000, **options})
    return ClipStream(weighted, look, **own)


def places(stream: ClipStream, clips: int, *, batch_size: int = 7) -> list[Place]:
    found: list[Place] = []
    while len(found) < clips:
        batch = stream.batch(min(batch_size, clips - len(found)))
        found += zip(batch.source, batch.episode_id, batch.start.tolist(), strict=True)
    return found


def epoch_places(stream: ClipStream) -> Counter[Place]:
    return Counter(
        place
        for batch in stream.epoch(5)
        for place in zip(batch.source, batch.episode_id, batch.start.tolist(), strict=True)
    )


# ------------------------------------------------------------------------------------------------------------ order


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 9), max_size=4), min_size=1, max_size=4).filter(
        lambda parts: any(length > STRIDE for part in parts for length in part)
    ),
    ranks=st.integers(1, 3),
    readers=st.integers(1, 3),
    shuffle_bytes=st.sampled_from((1, 5000, 10**7)),
    unknown=st.booleans(),
    seed=st.integers(0, 3),
)
def test_every_window_comes_once_in_an_epoch_over_all_ranks(
    lengths: list[list[int]], ranks: int, readers: int, shuffle_bytes: int, unknown: bool, seed: int
) -> None:
    source = shelf(lengths, unknown=unknown and ranks == 1)
    seen: list[Counter[Place]] = [Counter(), Counter()]
    whole = True
    for rank in range(ranks):
        options = {
            "rank": rank,
            "world_size": ranks,
            "interleaved_readers": readers,
            "shuffle_bytes": shuffle_bytes,
            "seed": seed,
        }
        try:
            with open_stream(source, **options) as stream:
                for found in seen:
                    found += epoch_places(stream)
        except InputError as error:
            if "finds no clip in epoch" not in str(error):
                raise
            whole = False  # a rank whose few episodes are all too short in some epoch
    assert seen[0] == windows_of(source)
    assert seen[1] == windows_of(source) or not whole


@pytest.mark.parametrize("shuffle_bytes", [1, 9000, 10**7])
def test_the_order_is_the_same_for_any_number_of_threads(books: Shelf, shuffle_bytes: int) -> None:
    orders = []
    for threads in (0, 1, 3):
        with open_stream(books, threads=threads, shuffle_bytes=shuffle_bytes) as stream:
            orders.append(places(stream, 200, batch_size=threads + 5))
    assert orders[0] == orders[1] == orders[2]


def test_the_order_changes_with_seed_epoch_and_rank(books: Shelf) -> None:
    total = windows_of(books).total()
    first, second = (places(open_stream(books, seed=seed), 2 * total) for seed in (0, 1))
    assert first[:total] != first[total:]
    assert first != second
    halves = [places(open_stream(books, rank=rank, world_size=2), 20) for rank in range(2)]
    assert halves[0] != halves[1]


def test_a_block_mixes_the_windows_of_all_its_episodes(books: Shelf) -> None:
    order = places(open_stream(books, shuffle_bytes=10**7), windows_of(books).total())
    neighbors = sum(a[1] == b[1] and b[2] == a[2] + 1 for a, b in pairwise(order))
    assert neighbors < len(order) / 4


def test_weights_multiply_the_size_and_hold_all_along() -> None:
    one, two = (shelf([[12] * 10] * 4, name=name) for name in ("one", "two"))
    stream = open_stream((one, 2.0), (two, 0.5), shuffle_bytes=30_000)
    found = Counter()
    for _ in range(2):
        names = [name for batch in stream.epoch(10) for name in batch.source]
        found.update(names)
        half = Counter(names[: len(names) // 2])
        assert 0.1 < half["two"] / half["one"] < 0.4  # 0.25 is meant
    per_pass = windows_of(one).total()
    assert found == {"one": 4 * per_pass, "two": per_pass}


def test_windows_are_cut_in_seconds_in_each_source() -> None:
    fast = Shelf("fast", [[numbered("fast", 1, 31, hz=15.0)]])
    slow = Shelf("slow", [[numbered("slow", 2, 11, hz=5.0)]])
    cut = WindowOptions(num_frames=3, temporal_stride=1, gap_seconds=0.6)
    with open_stream(fast, slow, cut=cut) as stream:
        for batch in stream.epoch(4):
            green = np.rint(batch.pixels[:, :, 0, 0, 1] / 8).astype(int)
            for source, start, frames in zip(batch.source, batch.start, green, strict=True):
                gap, last = {"fast": (9, 30), "slow": (3, 10)}[source]
                assert frames.tolist() == [min(start + gap * step, last) for step in range(3)]


def test_only_chosen_episodes_are_used(books: Shelf) -> None:
    found = epoch_places(open_stream(books, keep=lambda episode: episode.episode_id in "13"))
    assert {place[1] for place in found} == {"3"}  # episode 1 has two frames


# ----------------------------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize("threads", [0, 2])
def test_pixels_and_masks_are_those_of_the_frame_cache(tmp_path: Path, threads: int) -> None:
    rng = np.random.default_rng(0)
    texture = [encode_jpeg(rng.integers(0, 256, (24, 30, 3), dtype=np.uint8)) for _ in range(12)]
    source = Shelf("noise", [[Episode("noise", str(n), f"do {n}", 7.5, tuple(texture[n : n + 8])) for n in range(4)]])
    cache_frames(source.read(0), tmp_path / "cache", height=16, width=20, description={})
    cache = FrameCache(tmp_path / "cache")
    cut = WindowOptions(num_frames=4, temporal_stride=2, target_hz=5.0)
    clips = 0
    with open_stream(source, cut=cut, height=16, width=20, threads=threads) as stream:
        for batch in stream.epoch(4):
            for row, name in enumerate(batch.episode_id):
                number = [episode.episode_id for episode in cache.episodes].index(name)
                windows = make_windows(8, num_frames=4, cache_stride=1, hz=7.5, temporal_stride=2, target_hz=5.0)
                which = windows.start.tolist().index(batch.start[row])
                np.testing.assert_array_equal(batch.pixels[row], cache.read(number, windows.frame_ids[which]))
                assert batch.valid[row].tolist() == windows.valid[which].tolist()
                assert (batch.instruction[row], batch.hz[row]) == (f"do {name}", 7.5)
                clips += 1
    assert clips == 4 * len(windows.start)


def test_the_real_episodes_come_as_in_the_frame_cache(shared_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorflow_datasets")
    from vw2_robot.data.sources.rlds import RldsSource

    source = RldsSource(shared_dir / "openx" / "bridge_dataset")
    cache_frames(source.read(0), tmp_path / "cache", height=32, width=48, description={})
    cache = FrameCache(tmp_path / "cache")
    names = [episode.episode_id for episode in cache.episodes]
    clips = 0
    with open_stream(source, cut=WindowOptions(9), height=32, width=48, threads=2) as stream:
        for batch in stream.epoch(16):
            for row, name in enumerate(batch.episode_id):
                start, number = int(batch.start[row]), names.index(name)
                wanted = [min(start + index, cache.episodes[number].length - 1) for index in range(9)]
                np.testing.assert_array_equal(batch.pixels[row], cache.read(number, wanted))
                assert batch.instruction[row] == cache.episodes[number].instruction
                clips += 1
    assert clips == sum(max(0, episode.length - 4) for episode in cache.episodes)


def test_augmentation_is_a_function_of_the_place_in_the_order(books: Shelf) -> None:
    changed = Augmentation(flip=0.5, brightness=0.3)
    batches = []
    for threads in (0, 3):
        with open_stream(books, threads=threads, augmentation=changed) as stream:
            batches.append([stream.batch(9).pixels for _ in range(4)])
    with open_stream(books) as stream:
        plain = [stream.batch(9).pixels for _ in range(4)]
    np.testing.assert_array_equal(batches[0], batches[1])
    assert (np.array(batches[0]) != np.array(plain)).any(axis=(2, 3, 4, 5)).mean() > 0.9


# ----------------------------------------------------------------------------------------------------------- resume


def sequence_hash(stream: ClipStream, clips: int) -> "hashlib._Hash":
    digest = hashlib.sha256()
    while clips:
        batch = stream.batch(min(8, clips))
        clips -= len(batch.start)
        digest.update(repr((batch.source, batch.episode_id, batch.start.tolist(), batch.epoch.tolist())).encode())
        digest.update(batch.pixels.tobytes())
    return digest


@pytest.mark.parametrize("shuffle_bytes", [2000, 30_000, 10**7])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_in_pieces_sees_the_thousand_clips_of_an_uninterrupted_one(ranks: int, shuffle_bytes: int) -> None:
    sources = [shelf([[9, 2, 12], [20], [5, 6, 7, 8, 3], [14, 4, 11]], name="a"), shelf([[7] * 6] * 3, name="b")]
    rng = np.random.default_rng(ranks)
    for rank in range(ranks):
        options = {"rank": rank, "world_size": ranks, "shuffle_bytes": shuffle_bytes}
        with open_stream(*sources, **options) as stream:
            whole = places(stream, 1000)
        pieces: list[Place] = []
        state = None
        stops = [*sorted(rng.integers(1, 1000, 5).tolist()), 1000]
        for number, stop in enumerate(stops):
            with open_stream(*sources, **options, threads=number % 3) as stream:
                if state is not None:
                    stream.restore(json.loads(state))
                pieces += places(stream, stop - len(pieces))
                state = json.dumps(stream.state())
                assert len(state) < 2000
        assert pieces == whole
        with open_stream(*sources, **options, threads=2) as one, open_stream(*sources, **options) as other:
            assert sequence_hash(one, 200).digest() == sequence_hash(other, 200).digest()


def test_a_restore_in_the_same_stream_goes_back(books: Shelf) -> None:
    with open_stream(books, threads=2) as stream:
        places(stream, 33)
        state = stream.state()
        first = places(stream, 90)
        stream.restore(state)
        assert places(stream, 90) == first


def test_a_position_of_the_first_release_is_read(books: Shelf) -> None:
    with open_stream(books) as stream:
        places(stream, 33)
        state = stream.state()
        wanted = places(stream, 50)
    old = json.loads(json.dumps(state))
    old["bad"] = old.pop("skipped")
    old["block"]["lanes"] = old["block"].pop("readers")  # an old name
    names = {
        "frames": "num_frames",
        "stride_s": "temporal_stride",
        "gap_s": "gap_seconds",
        "lanes": "interleaved_readers",  # an old name
    }
    for before, now in names.items():
        old["made_with"][before] = old["made_with"].pop(now)
    with open_stream(books) as stream:
        stream.restore(old)
        assert places(stream, 50) == wanted


def test_a_restore_reads_no_more_than_its_block() -> None:
    source = shelf([[10] * 10] * 20)
    with open_stream(source, shuffle_bytes=20_000) as stream:
        places(stream, 1000)
        state = stream.state()
    source.reads.clear()
    with open_stream(source, shuffle_bytes=20_000) as stream:
        stream.restore(state)
        places(stream, 1)
    assert len(source.reads) <= 4  # two open files and those behind them, of twenty


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seed": 1}, "seed: 0 then, 1 now"),
        ({"world_size": 2}, "world_size: 1 then, 2 now"),
        ({"shuffle_bytes": 8000}, "shuffle_bytes: 9000 then, 8000 now"),
        ({"cut": WindowOptions(num_frames=9, temporal_stride=STRIDE)}, "frames: 5 then, 9 now"),
    ],
)
def test_a_position_in_another_stream_is_refused(books: Shelf, changed: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        open_stream(books, **changed).restore(open_stream(books).state())


def test_a_position_in_other_data_is_refused(books: Shelf) -> None:
    with pytest.raises(InputError, match=r"sources: .*shelf"):
        open_stream(shelf([[9, 9]])).restore(open_stream(books).state())


# ----------------------------------------------------------------------------------------------------------- damage


def damaged_shelf() -> Shelf:
    torn = list(numbered("torn", 4, 9).images)
    torn[6] = torn[6][:100]
    return Shelf(
        "torn",
        [
            [numbered("torn", 0, 9), InputError("record 1 is damaged"), numbered("torn", 2, 9)],
            [numbered("torn", 3, 9), Episode("torn", "4", "", 5.0, tuple(torn)), Episode("torn", "5", "", 5.0, ())],
            [numbered("torn", 6, 9), InputError("file ends"), InputError("file ends"), numbered("torn", 9, 9)],
        ],
    )


def test_damage_is_named_and_the_rest_is_read_in_every_epoch(caplog: pytest.LogCaptureFixture) -> None:
    source = damaged_shelf()
    wanted = Counter(
        place for place in windows_of(source) if place[1] != "9" and not (place[1] == "4" and place[2] > 1)
    )
    with open_stream(source, threads=2, interleaved_readers=1) as stream:
        for _ in range(3):
            assert epoch_places(stream) == wanted
        assert sorted(stream.skipped) == [
            "torn, episode 4, frame 6",
            "torn, part-0, episode 1",
            "torn, part-1, episode 2",
            "torn, part-2, episode 1",
            "torn, part-2, episode 2",
        ]
    assert len(caplog.messages) == 5
    assert "left out: record 1 is damaged" in caplog.messages


def test_too_much_damage_stops_the_run_behind_the_last_good_clip() -> None:
    with open_stream(damaged_shelf(), max_skipped=2, threads=2) as stream:
        with pytest.raises(
            InputError, match=r"too many unreadable images and files: \d where 2 were allowed; the last: "
        ):
            places(stream, 1000)
        with pytest.raises(InputError, match="too many unreadable"):  # and stays stopped
            stream.batch(1)


def test_damage_counts_on_after_a_resume() -> None:
    with open_stream(damaged_shelf()) as stream:
        epoch_places(stream)
        state = stream.state()
    with open_stream(damaged_shelf()) as stream:
        stream.restore(json.loads(json.dumps(state)))
        whole = places(stream, 60)
        assert len(stream.skipped) == 5
    with open_stream(damaged_shelf()) as stream:
        epoch_places(stream)
        assert places(stream, 60) == whole


class Choosy(Shelf):
    """A source that leaves out bad episodes by itself and says so in `bad`."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.skipped = SkippedEpisodes(10_000)

    def read(self, part: int, *, start: int = 0) -> Iterator[Episode]:
        for item in self.content[part][start:]:
            if isinstance(item, InputError):
                self.skipped.add(item)
            else:
                yield item


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_episodes_that_a_source_leaves_out_shift_nothing(ranks: int) -> None:
    bad = InputError("empty")
    parts = [[bad, *(numbered("choosy", 10 * part + number, 9) for number in range(4)), bad, bad] for part in range(3)]
    source = Choosy("choosy", parts)
    seen: Counter[Place] = Counter()
    named: set[str] = set()
    for rank in range(ranks):
        with open_stream(source, rank=rank, world_size=ranks, shuffle_bytes=5000) as stream:
            seen += epoch_places(stream)
            named |= set(stream.skipped)
        with open_stream(source, rank=rank, world_size=ranks, shuffle_bytes=5000) as stream:
            places(stream, 30)
            state = stream.state()
            rest = places(stream, 60)
        with open_stream(source, rank=rank, world_size=ranks, shuffle_bytes=5000) as stream:
            stream.restore(state)
            assert places(stream, 60) == rest
    assert seen == windows_of(source)
    assert named == {f"choosy, part-{part}, episode {number}" for part in range(3) for number in (0, 5, 6)}


@pytest.mark.parametrize("readers", [1, 2])
def test_what_a_source_leaves_out_counts_once_however_many_epochs(readers: int) -> None:
    bad = InputError("empty")
    parts = [[bad, bad, numbered("choosy", 0, 9), bad, numbered("choosy", 1, 9), bad], [numbered("choosy", 2, 9), bad]]
    source = Choosy("choosy", parts)
    source.skipped = SkippedEpisodes(3)
    with open_stream(source, interleaved_readers=readers, shuffle_bytes=1) as stream:
        for _ in range(4):
            assert epoch_places(stream) == windows_of(source)
        assert len(stream.skipped) == 5
    with (
        open_stream(source, interleaved_readers=readers, max_skipped=4) as stream,
        pytest.raises(InputError, match="5 where 4 were"),
    ):
        epoch_places(stream)
    assert source.skipped.messages == []


def test_a_part_shorter_than_promised_is_named() -> None:
    class Short(Shelf):
        def read(self, part: int, *, start: int = 0) -> Iterator[Episode]:
            yield from list(super().read(part, start=start))[: max(0, 2 - start)]

    source = Short("short", [[numbered("short", number, 9) for number in range(5)]])
    with open_stream(source, interleaved_readers=1) as stream:
        assert {place[1] for place in epoch_places(stream)} == {"0", "1"}
        assert "5 episodes were promised" in stream.skipped["short, part-0, episode 2"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: open_stream(), "needs a source"),
        (lambda: open_stream(shelf([[9]]), rank=1), "rank 1 below world_size 1"),
        (lambda: open_stream(shelf([[]])), "shelf holds no episode"),
        (lambda: open_stream((shelf([[9]]), 0.0)), "weight must be positive"),
        (
            lambda: open_stream(shelf([[9]]), cut=WindowOptions(5, target_hz=5.0, gap_seconds=0.6)),
            "target_hz or gap_seconds",
        ),
        (lambda: open_stream(shelf([[9]]), cut=WindowOptions(1)), "frames >= 2"),
        (lambda: open_stream(shelf([[2, 2]])).batch(1), "finds no clip in epoch 0 of shelf"),
        (lambda: open_stream(shelf([[9]]), rank=1, world_size=3).batch(1), "shard 1 of 3 finds no clip"),
    ],
)
def test_impossible_streams_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_impossible_options_are_refused() -> None:
    for options in ({"height": 0}, {"shuffle_bytes": 0}, {"interleaved_readers": 0}, {"max_skipped": -1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            StreamOptions(CUT, **{"height": 8, "width": 8, **options})


# ----------------------------------------------------------------------------------------------------------- memory


class Counted(Shelf):
    """Makes its images when read, and counts how many bytes of them are alive."""

    def __init__(self, parts: int, episodes: int, length: int, size: int) -> None:
        super().__init__("counted", [[numbered("counted", 0, 1)] * episodes] * parts)
        self.length, self.size, self.alive, self.peak = length, size, 0, 0

    def read(self, part: int, *, start: int = 0) -> Iterator[Episode]:
        for number in range(start, len(self.content[part])):
            images = tuple(np.full((self.size, self.size, 3), number, np.uint8) for _ in range(self.length))
            for image in images:
                self.alive += image.nbytes
                weakref.finalize(image, self._freed, image.nbytes)
            self.peak = max(self.peak, self.alive)
            yield Episode(self.name, f"{part}/{number}", "", 5.0, images)
            del images, image

    def _freed(self, nbytes: int) -> None:
        self.alive -= nbytes


@pytest.mark.parametrize("threads", [0, 2])
def test_images_held_stay_within_the_shuffle_buffer(threads: int) -> None:
    source = Counted(parts=6, episodes=20, length=10, size=16)
    episode_bytes = 10 * 16 * 16 * 3
    limit = 16 * episode_bytes
    with open_stream(source, shuffle_bytes=limit, threads=threads, interleaved_readers=1) as stream:
        for _ in range(150):
            stream.batch(8)
        # One episode over for each block, one in the hand of the reader, and those of clips that are under way.
        assert limit / 2 <= source.peak <= limit + (3 + (32 if threads else 8)) * episode_bytes
        stream.close()
    gc.collect()
    assert source.peak < 6 * 20 * episode_bytes / 2


def test_images_that_no_window_shows_are_dropped_at_once() -> None:
    source = Counted(parts=2, episodes=40, length=21, size=16)
    cut = WindowOptions(num_frames=2, temporal_stride=1, target_hz=0.5, window_stride=2)  # every tenth frame
    with open_stream(source, cut=cut, shuffle_bytes=10**9, interleaved_readers=1) as stream:
        stream.batch(4)
        assert source.alive <= (80 * 3 + 21) * 16 * 16 * 3


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def resident_growth(batches: int) -> float:
    """Return the largest over the smallest resident memory while a stream runs, once it has warmed up."""
    rng = np.random.default_rng(0)
    image = [encode_jpeg(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(8)]

    class Video(Shelf):
        def read(self, part: int, *, start: int = 0) -> Iterator[Episode]:
            for number in range(start, 100):
                length = 20 + (7 * number + part) % 40
                images = tuple(image[(number + index) % 8] + bytes([part, number, index]) for index in range(length))
                yield Episode("video", f"{part}/{number}", "", 5.0, images)

    source = Video("video", [[numbered("video", 0, 1)] * 100] * 8)
    found = []
    with open_stream(source, cut=WindowOptions(9), threads=2, shuffle_bytes=16 * 2**20) as stream:
        for number in range(batches):
            stream.batch(8)
            if number >= batches // 5:
                found.append(resident_bytes())
    return max(found) / min(found)


@pytest.mark.slow
def test_resident_memory_is_flat_over_three_hundred_batches() -> None:
    assert resident_growth(300) < 1.05


@pytest.mark.slow
def test_resident_memory_is_flat_over_ten_thousand_batches() -> None:
    assert resident_growth(10_000) < 1.05
