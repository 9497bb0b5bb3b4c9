import numpy as np
import pytest

from vw2_robot.data import latents
from vw2_robot.data.latents import (
    LatentCache,
    LatentWindows,
    anchored,
    finish,
    joined,
    missing_shards,
    read_shards,
    write_shard,
)
from vw2_robot.errors import InputError
from vw2_robot.storage.files import read_json, write_json

FACTS = {"encoder_hash": "e" * 64, "frames_digest": "f" * 64, "hz": [5.0]}


def windows(first: int, count: int) -> LatentWindows:
    rng = np.random.default_rng(first)
    return LatentWindows(
        np.arange(first, first + count, dtype=np.int32) // 2,
        np.arange(count, dtype=np.int32),
        rng.integers(0, 64000, (count, 2, 4)).astype(np.uint16),
        rng.random((count, 2)) < 0.5,
    )


@pytest.fixture
def cache(tmp_path):
    write_shard(tmp_path, 0, windows(0, 5))
    write_shard(tmp_path, 1, windows(5, 3))
    finish(tmp_path, shards=2, facts=FACTS)
    return tmp_path


def test_what_was_written_is_read_back_in_order(cache) -> None:
    found = LatentCache(cache, encoder_hash="e" * 64, frames_digest="f" * 64)
    assert found.facts["hz"] == [5.0]
    for name in ("episode", "start", "codes", "valid"):
        expected = np.concatenate([getattr(windows(0, 5), name), getattr(windows(5, 3), name)])
        np.testing.assert_array_equal(getattr(found.windows, name), expected)
        assert getattr(found.windows, name).dtype == expected.dtype


def test_windows_of_some_episodes(cache) -> None:
    chosen = LatentCache(cache).of_episodes([1, 3])
    assert chosen.episode.tolist() == [1, 1, 3, 3]
    np.testing.assert_array_equal(chosen.codes, LatentCache(cache).windows.codes[[2, 3, 6, 7]])
    assert len(LatentCache(cache).of_episodes([])) == 0


def test_a_shard_is_there_whole_or_not_at_all(tmp_path, monkeypatch) -> None:
    write_shard(tmp_path, 1, windows(0, 2))
    assert missing_shards(tmp_path, 3) == [0, 2]
    real = np.savez

    def die(file, **arrays):
        real(file, **arrays)
        raise KeyboardInterrupt

    monkeypatch.setattr(latents.np, "savez", die)
    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path, 0, windows(0, 2))
    assert missing_shards(tmp_path, 3) == [0, 2]


def test_equal_windows_give_equal_bytes(tmp_path) -> None:
    for number in range(2):
        write_shard(tmp_path, number, windows(0, 4))
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_empty_shards_are_allowed(tmp_path) -> None:
    write_shard(tmp_path, 0, windows(0, 0))
    write_shard(tmp_path, 1, windows(0, 2))
    assert len(read_shards(tmp_path, 2)) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder_hash": "0" * 64}, "made with encoder_hash 00000000, expected eeeeeeee; run vw2-extract-latents"),
        ({"frames_digest": "0" * 64}, "made with frames_digest 00000000, expected ffffffff"),
        ({"format_version": 2}, "format_version 2, this release reads 1"),
    ],
)
def test_a_cache_of_something_else_is_refused(cache, change, message) -> None:
    file = cache / "index.json"
    write_json(file, read_json(file, cure="", sealed=True) | change, sealed=True)
    with pytest.raises(InputError, match=message):
        LatentCache(cache, encoder_hash="e" * 64, frames_digest="f" * 64)
    if "format_version" not in change:
        LatentCache(cache)  # nobody asked whose codes they are


def test_an_unfinished_or_damaged_cache_is_named(cache) -> None:
    shard = cache / "windows-00001.npz"
    whole = shard.read_bytes()
    for content in (whole[:50], b"", b"PK nonsense"):
        shard.write_bytes(content)
        with pytest.raises(InputError, match=r"windows-00001\.npz is damaged"):
            LatentCache(cache)
        with pytest.raises(InputError, match=r"windows-00001\.npz cannot be read, it is damaged"):
            read_shards(cache, 2)
    shard.unlink()
    with pytest.raises(InputError, match=r"windows-00001\.npz is missing"):
        LatentCache(cache)
    for content in ("{", "[]"):
        (cache / "index.json").write_text(content)
        with pytest.raises(InputError, match=r"index\.json"):
            LatentCache(cache)
    (cache / "index.json").unlink()
    with pytest.raises(InputError, match="is no finished latent cache"):
        LatentCache(cache)


@pytest.mark.parametrize("own", [1, 2])
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
@pytest.mark.parametrize("cache_stride", [2, 4])
def test_joined_windows_hold_the_codes_of_clips_that_follow_one_another(own, steps, cache_stride) -> None:
    """Two episodes of 21 and 13 frames, latent steps of 4 frames; a code names the frame that its step begins at."""
    rows = [(e, s) for e, length in enumerate((21, 13)) for s in range(0, length - 4, cache_stride)]
    episode, start = np.array(rows, np.int32).T
    begins = start[:, None] + 4 * np.arange(own)
    valid = begins + 4 < np.array([21, 13])[episode][:, None]
    codes = np.where(valid, 1000 * episode[:, None] + begins, 9999)[..., None].repeat(4, -1).astype(np.uint16)
    shuffled = np.random.default_rng(0).permutation(len(rows))
    windows = LatentWindows(episode[shuffled], start[shuffled], codes[shuffled], valid[shuffled])
    found = joined(windows, ends=windows.start + 4 * own, latent_steps=steps)
    np.testing.assert_array_equal(found.start, windows.start)
    expected = found.start[:, None] + 4 * np.arange(steps)
    last = np.array([21, 13])[found.episode][:, None]
    np.testing.assert_array_equal(found.valid, expected + 4 < last)
    assert found.codes.shape == (len(rows), steps, 4)
    assert found.codes.dtype == np.uint16
    wanted = 1000 * found.episode[:, None] + expected
    np.testing.assert_array_equal(found.codes[found.valid], wanted[found.valid][:, None].repeat(4, -1))


def test_windows_that_never_meet_stay_alone(cache) -> None:
    lonely = LatentCache(cache).windows
    found = joined(lonely, ends=lonely.start + 100, latent_steps=4)
    np.testing.assert_array_equal(found.valid[:, :2], lonely.valid)
    assert not found.valid[:, 2:].any()
    nothing = LatentCache(cache).of_episodes([])
    assert joined(nothing, ends=nothing.start, latent_steps=4).codes.shape == (0, 4, 4)


def test_anchored_windows_count_the_steps_after_each_frame_and_keep_the_codes_before() -> None:
    codes = np.arange(2 * 4, dtype=np.uint16).reshape(2, 4, 1)
    valid = np.array([[True, True, True, False], [True, False, False, False]])
    windows = LatentWindows(np.array([0, 3]), np.array([10, 50]), codes, valid)
    found = anchored(windows, frames=windows.start[:, None] + np.array([0, 8]), condition_every=2)
    assert found.episode.tolist() == [0, 0, 3]  # no step of the last run of the second window is valid
    assert found.start.tolist() == [10, 18, 50]
    assert found.codes[:, :, 0].tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7]]
    assert found.valid.tolist() == [
        [True, True, False, False],
        [False, False, True, False],
        [True, False, False, False],
    ]
