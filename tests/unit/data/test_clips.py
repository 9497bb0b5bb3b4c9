from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vw2_robot.data.clips import Augmentation, ClipSampler, effective_hz, frame_offsets, make_windows, padded_frames
from vw2_robot.data.episodes import Episode
from vw2_robot.data.frame_cache import FrameCache, cache_frames
from vw2_robot.distributed.batch_share import BatchShare
from vw2_robot.errors import InputError

LENGTHS = (12, 3, 30, 5, 9, 4)
RATES = (5.0, 5.0, 10.0, 15.0, 5.0, 5.0)


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> FrameCache:
    """A cache whose pixels say where they come from: red = episode, green = frame."""
    episodes = []
    for number, (length, hz) in enumerate(zip(LENGTHS, RATES, strict=True)):
        images = tuple(np.full((8, 8, 3), (number, index, 77), np.uint8) for index in range(length))
        episodes.append(Episode("numbered", str(number), "", hz, images))
    out = tmp_path_factory.mktemp("frames") / "cache"
    cache_frames(episodes, out, height=8, width=8, description={}, episodes_per_shard=2)
    return FrameCache(out)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> FrameCache:
    """Two still videos: one random image repeated."""
    rng = np.random.default_rng(0)
    episodes = [
        Episode("still", str(number), "", 5.0, (rng.integers(0, 256, (16, 20, 3), dtype=np.uint8),) * 9)
        for number in range(2)
    ]
    out = tmp_path_factory.mktemp("photos") / "cache"
    cache_frames(episodes, out, height=16, width=20, description={})
    return FrameCache(out)


def sampler(cache: FrameCache, **options: Any) -> ClipSampler:
    return ClipSampler(cache, range(len(cache.episodes)), **{"num_frames": 9, "seed": 0, **options})


def seconds(clip: np.ndarray) -> list[int]:
    return clip[:, 0, 0, 1].tolist()


@settings(max_examples=200, deadline=None)
@given(
    length=st.integers(0, 60),
    clip=st.integers(2, 20),
    stride=st.integers(1, 6),
    cache_stride=st.integers(1, 9),
    hz=st.sampled_from((3.0, 3.75, 10.0, 12.5, 30.0)),
    target_hz=st.sampled_from((None, 3.0, 5.0, 10.0)),
)
def test_windows_agree_with_a_slow_reading_of_the_specification(
    length: int, clip: int, stride: int, cache_stride: int, hz: float, target_hz: float | None
) -> None:
    windows = make_windows(
        length, num_frames=clip, temporal_stride=stride, cache_stride=cache_stride, hz=hz, target_hz=target_hz
    )
    ratio = max(1.0, hz / target_hz) if target_hz else 1.0
    padded = clip + (-(clip - 1)) % stride
    starts, number = [], 0
    while (start := int(number * cache_stride * ratio + 0.5)) + int(stride * ratio + 0.5) <= length - 1:
        starts.append(start)
        number += 1
    assert windows.start.tolist() == starts
    for row, start in enumerate(starts):
        wanted = [start + int(index * ratio + 0.5) for index in range(padded)]
        assert windows.frame_ids[row].tolist() == [min(frame, length - 1) for frame in wanted]
        real = [frame <= length - 1 for frame in wanted]
        steps = range(1, (padded - 1) // stride + 1)
        assert windows.valid[row].tolist() == [all(real[stride * (k - 1) + 1 : stride * k + 1]) for k in steps]
        assert windows.valid[row, 0]


@given(st.integers(2, 50), st.floats(0.5, 60), st.one_of(st.none(), st.floats(0.5, 60)))
def test_offsets_start_at_zero_never_repeat_and_keep_the_rate(clip: int, hz: float, target_hz: float | None) -> None:
    offsets = frame_offsets(clip, hz=hz, target_hz=target_hz)
    assert offsets[0] == 0
    assert (np.diff(offsets) >= 1).all()
    assert abs(offsets[-1] / hz - (clip - 1) / effective_hz(hz, target_hz)) <= 0.5001 / hz


def test_a_fractional_rate_keeps_its_fraction() -> None:
    assert frame_offsets(6, hz=12.5, target_hz=5.0).tolist() == [0, 3, 5, 8, 10, 13]
    assert frame_offsets(4, hz=3.0, target_hz=10.0).tolist() == [0, 1, 2, 3]
    assert (effective_hz(12.5, 5.0), effective_hz(3.0, 10.0), effective_hz(3.0, None)) == (5.0, 3.0, 3.0)


def test_a_gap_says_how_long_a_latent_step_lasts() -> None:
    def steps(hz: float, **options: Any) -> list[int]:
        return frame_offsets(5, hz=hz, gap_seconds=0.6, **options).tolist()

    assert steps(10.0, temporal_stride=1) == [0, 6, 12, 18, 24]
    assert steps(3.75, temporal_stride=1) == [0, 2, 5, 7, 9]  # 2.25 frames: the fraction is kept until rounding
    assert steps(1.0, temporal_stride=1) == [0, 1, 2, 3, 4]  # at least one frame
    assert steps(10.0, temporal_stride=4) == [0, 2, 3, 5, 6]
    assert steps(5.0, temporal_stride=4) == [0, 1, 2, 2, 3]  # three frames in that time, shown in four images
    assert effective_hz(10.0, None, gap_seconds=0.6, temporal_stride=4) == pytest.approx(4 / 0.6)


@given(st.integers(1, 6), st.integers(1, 8), st.floats(0.5, 60), st.floats(0.05, 3))
def test_a_latent_step_lasts_its_gap_and_never_less_than_a_frame(
    stride: int, steps: int, hz: float, gap_seconds: float
) -> None:
    ends = frame_offsets(1 + stride * steps, hz=hz, gap_seconds=gap_seconds, temporal_stride=stride)[::stride]
    assert (np.diff(ends) >= 1).all()
    assert (np.abs(ends - np.arange(steps + 1) * max(1.0, gap_seconds * hz)) <= 0.5001).all()


@given(st.integers(0, 50), st.integers(1, 4), st.integers(1, 5), st.floats(1, 30), st.floats(0.05, 2))
def test_windows_with_a_gap_start_once_each_and_reach_as_far_as_they_can(
    length: int, stride: int, cache_stride: int, hz: float, gap_seconds: float
) -> None:
    windows = make_windows(
        length,
        num_frames=1 + 2 * stride,
        cache_stride=cache_stride,
        hz=hz,
        temporal_stride=stride,
        gap_seconds=gap_seconds,
    )
    first = frame_offsets(1 + stride, hz=hz, gap_seconds=gap_seconds, temporal_stride=stride)[-1]
    everything = frame_offsets(2000, hz=hz, gap_seconds=gap_seconds, temporal_stride=stride)[::cache_stride]
    assert windows.start.tolist() == sorted({start for start in everything.tolist() if start + first < length})


def test_two_ways_to_say_the_time_are_one_too_many() -> None:
    with pytest.raises(InputError, match="target_hz or gap_seconds, not both"):
        frame_offsets(5, hz=5.0, target_hz=5.0, gap_seconds=0.6)


def test_a_clip_is_filled_up_to_whole_latent_steps() -> None:
    assert [padded_frames(clip, 4) for clip in (2, 5, 6, 9, 93)] == [5, 5, 9, 9, 93]


def test_pixels_are_the_frames_that_episode_and_start_say(frames: FrameCache) -> None:
    batch = sampler(frames, seed=3).batch(0, 64)
    assert batch.pixels.shape == (64, 9, 8, 8, 3)
    assert batch.valid.shape == (64, 2)
    for row in range(64):
        length = LENGTHS[batch.episode[row]]
        assert set(batch.pixels[row, ..., 0].ravel()) == {batch.episode[row]}
        wanted = [batch.start[row] + index for index in range(9)]
        assert seconds(batch.pixels[row]) == [min(frame, length - 1) for frame in wanted]
        assert batch.valid[row].tolist() == [wanted[4] < length, wanted[8] < length]


def test_every_start_with_a_valid_step_is_drawn_equally_often(frames: FrameCache) -> None:
    taken = sampler(frames)
    batch = taken.batch(0, 4000)
    pairs = set(zip(batch.episode.tolist(), batch.start.tolist(), strict=True))
    wanted = {(number, start) for number, length in enumerate(LENGTHS) for start in range(length - 4)}
    assert pairs == wanted  # three or four frames hold no latent step: never drawn
    assert len(taken) == len(wanted)
    counts = np.unique(batch.episode * 100 + batch.start, return_counts=True)[1]
    assert counts.min() > 0.5 * 4000 / len(wanted)
    assert counts.max() < 1.6 * 4000 / len(wanted)
    assert batch.valid[:, 0].all()


def test_starts_may_be_kept_to_full_clips_and_short_episodes_stay(frames: FrameCache) -> None:
    batch = sampler(frames, min_valid_steps=2).batch(0, 2000)
    pairs = set(zip(batch.episode.tolist(), batch.start.tolist(), strict=True))
    full = {(number, start) for number, length in enumerate(LENGTHS) for start in range(length - 8)}
    assert pairs == full | {(3, 0)}  # five frames: one valid step, taken from its first frame


def test_each_source_is_read_at_its_own_rate(frames: FrameCache) -> None:
    batch = sampler(frames, target_hz=5.0, num_frames=5, seed=1).batch(0, 200)
    steps = {2: 2, 0: 1, 4: 1}  # 10 Hz: every second frame; 15 Hz: five frames are no step of 12
    assert set(batch.episode.tolist()) == set(steps)
    for row in range(200):
        length, step = LENGTHS[batch.episode[row]], steps[int(batch.episode[row])]
        assert seconds(batch.pixels[row]) == [min(batch.start[row] + step * index, length - 1) for index in range(5)]


def test_a_batch_is_a_function_of_seed_and_step(frames: FrameCache) -> None:
    options = Augmentation(crop_min_scale=0.5, flip=0.5, brightness=0.2)
    first, second = (sampler(frames, augmentation=options) for _ in range(2))
    second.batch(3, 5)  # history does not matter
    for name in ("pixels", "valid", "episode", "start"):
        np.testing.assert_array_equal(getattr(first.batch(7, 6), name), getattr(second.batch(7, 6), name))
    assert first.batch(7, 6).start.tolist() != first.batch(8, 6).start.tolist()
    assert first.batch(7, 6).start.tolist() != sampler(frames, seed=1).batch(7, 6).start.tolist()


def test_ranks_divide_the_batch_of_one_process(photos: FrameCache) -> None:
    taken = sampler(photos, num_frames=5, augmentation=Augmentation(crop_min_scale=0.5, color=0.3))
    whole = taken.batch(2, 6)
    for ranks, micro_batches in ((3, 1), (2, 3), (1, 2)):
        for share in (BatchShare(6, micro_batches, rank, ranks) for rank in range(ranks)):
            part = taken.batch(2, 6, share.rows)
            np.testing.assert_array_equal(part.pixels, whole.pixels[share.rows])
            np.testing.assert_array_equal(part.start, whole.start[share.rows])


@pytest.mark.parametrize(
    "options",
    [
        Augmentation(crop_min_scale=0.4),
        Augmentation(flip=0.5),
        Augmentation(brightness=0.4),
        Augmentation(contrast=0.4),
        Augmentation(color=0.4),
    ],
    ids=["crop", "flip", "brightness", "contrast", "color"],
)
def test_augmentation_changes_clips_but_all_frames_alike(photos: FrameCache, options: Augmentation) -> None:
    plain = sampler(photos, num_frames=5).batch(0, 32)
    changed = sampler(photos, num_frames=5, augmentation=options).batch(0, 32)
    assert changed.episode.tolist() == plain.episode.tolist()
    assert (changed.pixels == changed.pixels[:, :1]).all()
    differs = (changed.pixels != plain.pixels).any(axis=(1, 2, 3, 4))
    assert differs.sum() >= 8
    assert len({clip.tobytes() for clip in changed.pixels}) >= 3


def test_flip_mirrors_left_and_right(photos: FrameCache) -> None:
    plain = sampler(photos, num_frames=5).batch(0, 16).pixels
    flipped = sampler(photos, num_frames=5, augmentation=Augmentation(flip=1.0)).batch(0, 16).pixels
    np.testing.assert_array_equal(flipped, plain[:, :, :, ::-1])


def test_jitter_stays_within_its_bounds(photos: FrameCache) -> None:
    plain = sampler(photos, num_frames=5).batch(0, 16).pixels.astype(float)
    brighter = sampler(photos, num_frames=5, augmentation=Augmentation(brightness=0.1)).batch(0, 16).pixels
    assert (brighter >= np.floor(plain * 0.9 - 0.5)).all()
    assert (brighter <= np.ceil(plain * 1.1 + 0.5)).all()


def test_changing_the_cache_is_impossible_through_a_batch(photos: FrameCache) -> None:
    options = Augmentation(crop_min_scale=0.5, flip=1.0, brightness=0.5)
    before = photos.read(0, range(9))
    sampler(photos, num_frames=5, augmentation=options).batch(0, 8)
    np.testing.assert_array_equal(photos.read(0, range(9)), before)


@pytest.mark.parametrize(
    "options", [{"crop_min_scale": 0.0}, {"crop_min_scale": 1.1}, {"flip": 2.0}, {"brightness": 1.0}, {"color": -0.1}]
)
def test_impossible_augmentation_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="found Augmentation"):
        Augmentation(**options)


def test_no_episode_long_enough_is_refused(frames: FrameCache) -> None:
    with pytest.raises(InputError, match="the longest has 3 frames, a step needs 5"):
        ClipSampler(frames, [1], num_frames=9, seed=0)
    with pytest.raises(InputError, match="none of 0 episodes"):
        ClipSampler(frames, [], num_frames=9, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 1}, "min_valid_steps|frames >= 2"),
        ({"target_hz": 0.0}, "positive rates"),
        ({"min_valid_steps": 3}, r"must lie in 1\.\.2"),
    ],
)
def test_impossible_sampler_settings_are_refused(frames: FrameCache, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sampler(frames, **options)


def test_a_cache_stride_below_one_is_refused() -> None:
    with pytest.raises(InputError, match="cache_stride must be at least 1, found 0"):
        make_windows(10, num_frames=9, cache_stride=0, hz=5.0)
