import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vw2_robot.data.episodes import Episode
from vw2_robot.data.frame_cache import FrameCache, cache_frames, split_episodes
from vw2_robot.data.images import resize_frame
from vw2_robot.errors import InputError
from vw2_robot.storage.arrays import read_arrays, write_arrays

LENGTHS = (3, 1, 5, 2, 4, 3, 2)


def make_episode(number: int, *, length: int | None = None, seed: int | None = None) -> Episode:
    length = LENGTHS[number % len(LENGTHS)] if length is None else length
    rng = np.random.default_rng(number if seed is None else seed)
    images = tuple(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8) for _ in range(length))
    return Episode("made_up", f"train/{number:06d}", f"do thing {number}", 5.0 + number, images)


EPISODES = [make_episode(number) for number in range(7)]


def cache(out: Path, episodes: Any = EPISODES, **options: Any) -> None:
    defaults = {"height": 6, "width": 8, "description": {"path": "x"}, "episodes_per_shard": 3}
    cache_frames(episodes, out, **{**defaults, **options})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_what_was_cached_is_read_back(tmp_path: Path) -> None:
    cache(tmp_path / "c")
    frames = FrameCache(tmp_path / "c")
    assert [episode.length for episode in frames.episodes] == list(LENGTHS)
    assert (frames.height, frames.width, frames.description) == (6, 8, {"path": "x"})
    for number, (cached, original) in enumerate(zip(frames.episodes, EPISODES, strict=True)):
        assert (cached.source, cached.episode_id) == (original.source, original.episode_id)
        assert (cached.instruction, cached.hz) == (original.instruction, original.hz)
        np.testing.assert_array_equal(frames.read(number, range(len(original))), np.stack(original.images))
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [
        "episodes.npz",
        "index.json",
        "plan.json",
        *(f"shard-0000{number}.{kind}" for number in range(3) for kind in ("jsonl", "npy")),
    ]


def test_frames_are_read_in_the_order_asked_for_and_belong_to_the_caller(tmp_path: Path) -> None:
    cache(tmp_path / "c")
    frames = FrameCache(tmp_path / "c")
    taken = frames.read(2, [4, 0, 4])
    np.testing.assert_array_equal(taken, np.stack([EPISODES[2].images[index] for index in (4, 0, 4)]))
    taken[:] = 0
    np.testing.assert_array_equal(frames.read(2, [4])[0], EPISODES[2].images[4])
    batch = frames.read_batch(np.array([6, 0]), np.array([[1, 0], [2, 2]]))
    np.testing.assert_array_equal(batch[0, 0], EPISODES[6].images[1])
    np.testing.assert_array_equal(batch[1, 1], EPISODES[0].images[2])


@pytest.mark.parametrize("frame", [-1, 3])
def test_a_frame_outside_the_episode_is_not_taken_from_its_neighbor(tmp_path: Path, frame: int) -> None:
    cache(tmp_path / "c")
    with pytest.raises(IndexError, match="which has 3 frames"):
        FrameCache(tmp_path / "c").read(0, [frame])


class Killed(BaseException):
    """Stands for the end of the process: nothing in the code may catch it."""


def test_killed_before_or_after_any_rename_and_started_again_gives_identical_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache(tmp_path / "whole")
    wanted, renames = (
        contents(tmp_path / "whole"),
        3 + 2 * 3,
    )  # plan, table, index, and two files for each of three shards
    real_replace = Path.replace
    for last, after in [(last, after) for last in range(renames) for after in (False, True)]:
        done = 0

        def replace(self: Path, target: Path, last: int = last, after: bool = after) -> Path:
            nonlocal done
            if done == last and not after:
                raise Killed
            result = real_replace(self, target)
            if done == last:
                raise Killed
            done += 1
            return result

        out = tmp_path / f"killed-{last}-{after}"
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", replace)
            with pytest.raises(Killed):
                cache(out)
        cache(out)
        assert contents(out) == wanted


def test_finished_shards_are_not_redone(tmp_path: Path) -> None:
    out = tmp_path / "c"

    def interrupted() -> Iterator[Episode]:
        yield from EPISODES[:5]
        raise Killed

    with pytest.raises(Killed):
        cache(out, interrupted())
    before = (out / "shard-00000.npy").stat()
    unreadable = [Episode(e.source, e.episode_id, e.instruction, e.hz, (b"",) * len(e)) for e in EPISODES[:3]]
    cache(out, [*unreadable, *EPISODES[3:]])  # would fail if the first three were decoded again
    after = (out / "shard-00000.npy").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert len(FrameCache(out).episodes) == 7
    cache(out, iter(()))  # finished: the episodes are not looked at


KILLED_WHILE_CACHING = """
import os, pathlib, sys
import numpy as np
from vw2_robot.data.episodes import Episode
from vw2_robot.data.frame_cache import cache_frames

def episodes():
    for number in range(5):
        if number == 4:
            os.kill(os.getpid(), 9)
        yield Episode("s", str(number), "", 5.0, (np.full((6, 8, 3), number, np.uint8),) * 4)

cache_frames(episodes(), pathlib.Path(sys.argv[1]), height=6, width=8, description={}, episodes_per_shard=3)
"""


def test_a_real_kill_signal_leaves_a_folder_that_can_be_continued(tmp_path: Path) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_CACHING, str(tmp_path / "c")],
        cwd=Path(__file__).resolve().parents[3],
        check=False,
    )
    assert killed.returncode == -9
    with pytest.raises(InputError, match="is unfinished"):
        FrameCache(tmp_path / "c")
    episodes = [Episode("s", str(number), "", 5.0, (np.full((6, 8, 3), number, np.uint8),) * 4) for number in range(5)]
    for name in ("c", "whole"):
        cache(tmp_path / name, episodes, description={})
    assert contents(tmp_path / "c") == contents(tmp_path / "whole")


def test_continuing_with_other_episodes_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "c"
    cache(out)
    (out / "index.json").unlink()
    with pytest.raises(InputError, match=r"was begun with other episodes.*train/000000.*train/000006"):
        cache(out, EPISODES[::-1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 7}, "height: 6 there, 7 requested"),
        ({"description": {"path": "y"}}, "description: .*'x'.* there"),
        ({"aspect": "pad"}, "aspect: 'stretch' there, 'pad' requested"),
    ],
)
def test_a_folder_of_another_plan_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    cache(tmp_path / "c")
    with pytest.raises(InputError, match=message):
        cache(tmp_path / "c", **options)


def test_a_folder_with_other_files_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="is no frame cache"):
        cache(tmp_path)
    assert contents(tmp_path) == {"thesis.tex": b"years of work"}


def test_the_digest_knows_content_but_not_shards(tmp_path: Path) -> None:
    cache(tmp_path / "a")
    cache(tmp_path / "b", episodes_per_shard=2)
    cache(tmp_path / "c", [*EPISODES[:6], make_episode(6, seed=99)])
    digests = [FrameCache(tmp_path / name).digest for name in "abc"]
    assert digests[0] == digests[1] != digests[2]


def test_bad_episodes_are_skipped_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = Episode("made_up", "train/bad", "", 5.0, (EPISODES[0].images[0], b"no image"))
    empty = Episode("made_up", "train/empty", "", 5.0, ())
    seen: list[tuple[int, int]] = []
    cache(
        tmp_path / "c",
        [EPISODES[0], bad, EPISODES[1], empty],
        max_skipped=2,
        progress=lambda *state: seen.append(state),
    )
    frames = FrameCache(tmp_path / "c")
    assert [episode.episode_id for episode in frames.episodes] == ["train/000000", "train/000001"]
    np.testing.assert_array_equal(frames.read(1, [0])[0], EPISODES[1].images[0])
    assert seen == [(2, 4), (2, 4)]
    assert "train/bad, frame 1 of 2" in caplog.text
    assert "train/empty: 0 frames" in caplog.text
    assert json.loads((tmp_path / "c/index.json").read_text())["skipped"] == [
        ["made_up", "train/bad"],
        ["made_up", "train/empty"],
    ]


def test_too_many_bad_episodes_stop_the_run_and_repaired_ones_are_taken(tmp_path: Path) -> None:
    bad = [Episode("made_up", e.episode_id, e.instruction, e.hz, (b"",) * len(e)) for e in EPISODES]
    with pytest.raises(InputError, match=r"too many unreadable episodes: 3 where 2 were allowed; the last: .*000005"):
        cache(tmp_path / "c", [*EPISODES[:3], *bad[3:6], EPISODES[6]], max_skipped=2)
    cache(tmp_path / "c")
    assert len(FrameCache(tmp_path / "c").episodes) == 7


def test_no_episode_and_repeated_ids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no episode to store"):
        cache(tmp_path / "a", [])
    with pytest.raises(InputError, match=r"'train/000001'\) occurs twice"):
        cache(tmp_path / "b", [EPISODES[0], EPISODES[1], EPISODES[1]])


def test_missing_unfinished_damaged_and_foreign_caches_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist or is no frame cache"):
        FrameCache(tmp_path / "none")
    cache(tmp_path / "c")

    def broken(name: str) -> Path:
        return Path(shutil.copytree(tmp_path / "c", tmp_path / name))

    (broken("unfinished") / "index.json").unlink()
    with pytest.raises(InputError, match="is unfinished: run the command"):
        FrameCache(tmp_path / "unfinished")

    index = broken("version") / "index.json"
    index.write_text(json.dumps({"format_version": 99}))
    with pytest.raises(InputError, match=r"format version 99 \(decoded\), this program reads 3"):
        FrameCache(tmp_path / "version")

    (broken("table") / "episodes.npz").unlink()
    with pytest.raises(InputError, match=r"episodes\.npz"):
        FrameCache(tmp_path / "table")

    (broken("json") / "index.json").write_text("{")
    with pytest.raises(InputError, match=r"index\.json is damaged"):
        FrameCache(tmp_path / "json")

    shard = broken("cut") / "shard-00000.npy"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"shard-00000\.npy cannot be read, it is damaged"):
        FrameCache(tmp_path / "cut").read(0, [0])

    shutil.copy(tmp_path / "c/shard-00001.npy", broken("other") / "shard-00000.npy")
    shutil.copy(tmp_path / "c/shard-00002.npy", tmp_path / "other/shard-00001.npy")
    with pytest.raises(InputError, match=r"shard-00001\.npy holds uint8"):
        FrameCache(tmp_path / "other").read(3, [0])


def test_a_changed_pixel_is_noticed_when_its_episode_is_first_read(tmp_path: Path) -> None:
    cache(tmp_path / "c")
    shard = tmp_path / "c/shard-00000.npy"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1  # the last frame of the third episode
    shard.write_bytes(data)
    frames = FrameCache(tmp_path / "c")
    frames.read(0, [0])
    for _ in range(2):
        with pytest.raises(
            InputError, match=r"shard-00000\.npy is damaged: .* made_up, episode train/000002 .* delete"
        ):
            frames.read(2, [0])
    FrameCache(tmp_path / "c", verify=False).read(2, [0])


# ------------------------------------------------------------------------------------------------------- compressed


def photo(seed: int, *, height: int = 30, width: int = 40) -> Image.Image:
    """A smooth image, so that JPEG and PNG make it smaller."""
    small = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encoded(seed: int, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    photo(seed, **options).save(buffer, format=kind)
    return buffer.getvalue()


MIXED = [
    Episode("mixed", "jpeg", "", 5.0, tuple(encoded(n, "JPEG") for n in range(5))),
    Episode("mixed", "png", "", 5.0, tuple(encoded(n, "PNG") for n in range(5, 8))),
    Episode("mixed", "arrays", "", 5.0, tuple(np.asarray(photo(n)) for n in range(8, 12))),
    # More bytes than its pixels in the cache.
    Episode("mixed", "large", "", 5.0, (encoded(12, "JPEG", height=600, width=800), encoded(13, "JPEG"))),
    Episode("mixed", "damaged", "", 5.0, (b"no image",)),
]


@pytest.mark.parametrize("aspect", ["stretch", "pad"])
@pytest.mark.parametrize("threads", [0, 2])
def test_a_compressed_cache_gives_the_pixels_split_and_digest_of_a_decoded_one(
    tmp_path: Path, aspect: str, threads: int
) -> None:
    options = {"height": 20, "width": 20, "aspect": aspect}
    cache(tmp_path / "decoded", MIXED, **options)
    cache(tmp_path / "compressed", MIXED, storage="compressed", **options)
    decoded, compressed = (FrameCache(tmp_path / name, threads=threads) for name in ("decoded", "compressed"))
    assert decoded.digest == compressed.digest
    assert [e.sha256 for e in decoded.episodes] == [e.sha256 for e in compressed.episodes]
    splits = [
        np.concatenate(split_episodes(frames, validation_fraction=0.4, seed=3)) for frames in (decoded, compressed)
    ]
    np.testing.assert_array_equal(*splits)
    for index, episode in enumerate(decoded.episodes):
        every = [*range(episode.length), 0, episode.length - 1, episode.length - 1]
        np.testing.assert_array_equal(decoded.read(index, every), compressed.read(index, every))
    batch = (np.array([3, 0, 2]), np.array([[1, 1, 0], [4, 0, 2], [3, 2, 2]]))
    np.testing.assert_array_equal(decoded.read_batch(*batch), compressed.read_batch(*batch))
    stored = (tmp_path / "compressed/shard-00000.images").read_bytes()
    assert MIXED[0].images[4] in stored  # the source's own bytes
    assert len((tmp_path / "compressed/shard-00001.images").read_bytes()) < 2 * 20 * 20 * 3


def test_scaled_decoding_gives_a_cache_of_another_digest_in_both_storages(tmp_path: Path) -> None:
    large = Episode("mixed", "large", "", 5.0, (encoded(1, "JPEG", height=120, width=160),))
    found = {}
    for decode in ("scaled", "full"):
        for storage in ("decoded", "compressed"):
            out = tmp_path / f"{decode}-{storage}"
            cache(out, [large], height=50, width=50, decode=decode, storage=storage)
            frames = FrameCache(out)
            found[decode, storage] = (frames.digest, frames.read(0, [0]).tobytes())
    assert found["scaled", "decoded"] == found["scaled", "compressed"]
    assert found["full", "decoded"] == found["full", "compressed"]
    assert all(a != b for a, b in zip(found["scaled", "decoded"], found["full", "decoded"], strict=True))


def test_a_compressed_cache_is_continued_and_is_not_mixed_with_a_decoded_one(tmp_path: Path) -> None:
    cache(tmp_path / "whole", MIXED, storage="compressed")

    def interrupted() -> Iterator[Episode]:
        yield from MIXED[:4]
        raise Killed

    with pytest.raises(Killed):
        cache(tmp_path / "killed", interrupted(), storage="compressed")
    cache(tmp_path / "killed", MIXED, storage="compressed")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    with pytest.raises(InputError, match="storage: 'compressed' there, None requested"):
        cache(tmp_path / "whole", MIXED)


def test_a_changed_byte_of_a_compressed_cache_is_noticed_when_its_episode_is_first_read(tmp_path: Path) -> None:
    cache(tmp_path / "c", MIXED, storage="compressed", height=20, width=20)
    for name, place in (("shard-00000.images", 700), ("shard-00000.ends.npy", -8 * 11)):
        file = tmp_path / "c" / name
        good = file.read_bytes()
        data = bytearray(good)
        data[place] ^= 1
        file.write_bytes(data)
        with pytest.raises(InputError, match=rf"shard-00000\.(images|ends\.npy) .*; delete {tmp_path}/c and make it"):
            FrameCache(tmp_path / "c").read(0, [0])
        file.write_bytes(good[:-1])
        with pytest.raises(InputError, match=rf"shard-00000\.(images|ends\.npy) .*; delete {tmp_path}/c and make it"):
            FrameCache(tmp_path / "c").read(0, [0])
        file.write_bytes(good)
    FrameCache(tmp_path / "c").read(0, [0])


def test_a_table_or_plan_that_does_not_fit_the_index_is_refused(tmp_path: Path) -> None:
    cache(tmp_path / "c")
    cache(tmp_path / "other", [*EPISODES[:6], make_episode(6, seed=99)])
    cache(tmp_path / "cut", EPISODES[:6])
    message = rf"{tmp_path}/c.*; delete {tmp_path}/c and make it again"
    for name, damaged in (
        ("plan.json", (tmp_path / "c/plan.json").read_bytes().replace(b'"path": "x"', b'"path": "y"')),
        ("index.json", (tmp_path / "c/index.json").read_bytes().replace(b'"frames": 20', b'"frames": 21')),
        ("episodes.npz", (tmp_path / "other/episodes.npz").read_bytes()),
        ("episodes.npz", (tmp_path / "cut/episodes.npz").read_bytes()),
        ("episodes.npz", (tmp_path / "c/episodes.npz").read_bytes()[:-1]),
    ):
        file = tmp_path / "c" / name
        good = file.read_bytes()
        assert good != damaged
        file.write_bytes(damaged)
        with pytest.raises(InputError, match=message):
            FrameCache(tmp_path / "c")
        file.write_bytes(good)
    # With columns that contradict one another, or the place of a text, although every checksum is right.
    whole = read_arrays(tmp_path / "c/episodes.npz", cure="")
    for column, value in (("length", 1), ("offset", 1), ("shard", 5), ("instruction_ends", 99)):
        changed = whole[column].copy()
        changed[3] = value
        write_arrays(tmp_path / "c/episodes.npz", {**whole, column: changed})
        with pytest.raises(InputError, match=message):
            list(FrameCache(tmp_path / "c").episodes)


def test_a_cache_of_an_earlier_release_is_refused_since_its_split_was_another(tmp_path: Path) -> None:
    for name, storage, version in (("c", "decoded", 1), ("d", "compressed", 2)):
        cache(tmp_path / name, storage=storage)
        for file in ("plan.json", "index.json"):
            content = json.loads((tmp_path / name / file).read_text())
            content.pop("sha256_of_the_rest", None)
            (tmp_path / name / file).write_text(json.dumps({**content, "format_version": version}))
        with pytest.raises(InputError, match=f"format version {version}.*; delete {tmp_path}/{name} and make it again"):
            FrameCache(tmp_path / name)
        with pytest.raises(InputError, match=f"format_version: {version} there, {version + 2} requested"):
            cache(tmp_path / name, storage=storage)


HOLD = """
import pathlib, sys
from vw2_robot.storage.locks import lock_folder
lock = lock_folder(pathlib.Path(sys.argv[1]), what="making a frame cache")
print("held", flush=True)
sys.stdin.read()
"""


def test_one_process_at_a_time_makes_a_cache_and_a_finished_one_is_everybody_s(tmp_path: Path) -> None:
    cache(tmp_path / "done")
    for name in ("new", "done"):
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path / name)],
            cwd=Path(__file__).resolve().parents[3],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with holder:
            assert holder.stdout is not None
            holder.stdout.readline()
            if name == "new":
                with pytest.raises(
                    InputError, match=r"new is in use by another run: making a frame cache, process \d+"
                ):
                    cache(tmp_path / name)
            else:
                cache(tmp_path / name)
                FrameCache(tmp_path / name).read(0, [0])
    cache(tmp_path / "new")
    assert contents(tmp_path / "new") == contents(tmp_path / "done")


def test_pixels_are_on_disk_before_the_rows_and_rows_before_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(Path(f"/proc/self/fd/{fd}").readlink().name), fsync(fd)))
    monkeypatch.setattr(Path, "replace", lambda self, to: (events.append(f"rename {to.name}"), replace(self, to))[1])
    cache(tmp_path / "c", EPISODES[:2])
    assert events == [
        event
        for name in ("plan.json", "shard-00000.npy", "shard-00000.jsonl", "episodes.npz", "index.json")
        for event in (f".{name}.tmp", f"rename {name}", "c")
    ]


def test_equal_videos_are_never_on_both_sides_of_the_split(tmp_path: Path) -> None:
    copies = [make_episode(100 + number, seed=number, length=len(EPISODES[number])) for number in range(7)]
    cache(tmp_path / "c", [*EPISODES, *copies])
    frames = FrameCache(tmp_path / "c")
    for seed in range(20):
        training, validation = split_episodes(frames, validation_fraction=0.3, seed=seed)
        assert sorted([*training, *validation]) == list(range(14))
        assert {number % 7 for number in training}.isdisjoint(number % 7 for number in validation)
        assert len(validation) == 4  # two videos of seven, each twice


def test_the_split_does_not_depend_on_order_names_or_shards(tmp_path: Path) -> None:
    cache(tmp_path / "a")
    renamed = [Episode("other", f"x{e.episode_id}", "", 1.0, e.images) for e in EPISODES[::-1]]
    cache(tmp_path / "b", renamed, episodes_per_shard=2)
    held_out = [
        {frames.episodes[number].sha256 for number in split_episodes(frames, validation_fraction=0.3, seed=1)[1]}
        for frames in (FrameCache(tmp_path / "a"), FrameCache(tmp_path / "b"))
    ]
    assert held_out[0] == held_out[1]


def test_small_splits_leave_something_on_both_sides(tmp_path: Path) -> None:
    cache(tmp_path / "two", EPISODES[:2])
    cache(tmp_path / "one", [EPISODES[0], make_episode(9, seed=0, length=3)])
    two, one = FrameCache(tmp_path / "two"), FrameCache(tmp_path / "one")
    for fraction in (0.01, 0.99):
        assert [len(side) for side in split_episodes(two, validation_fraction=fraction, seed=0)] == [1, 1]
    # The second one holds one video under two names.
    for frames, fraction in ((two, 0.0), (one, 0.5)):
        assert [side.tolist() for side in split_episodes(frames, validation_fraction=fraction, seed=0)] == [[0, 1], []]
    with pytest.raises(InputError, match=r"must lie in \[0, 1\)"):
        split_episodes(two, validation_fraction=1.0, seed=0)


def test_stretch_fills_and_pad_keeps_the_shape() -> None:
    frame = np.full((20, 40, 3), 200, np.uint8)
    assert (resize_frame(frame, height=16, width=16) == 200).all()
    padded = resize_frame(frame, height=16, width=16, aspect="pad")
    assert (padded[4:12] == 200).all()
    assert not padded[:4].any()
    assert not padded[12:].any()
    tall = resize_frame(np.full((999, 10, 3), 200, np.uint8), height=16, width=16, aspect="pad")
    assert (tall.any(axis=(0, 2))).sum() == 1


def test_resizing_averages_over_what_a_pixel_covers() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255  # nearest or plain bilinear sampling would give 0 or 255
    small = resize_frame(stripes, height=8, width=8)
    assert small.min() >= 120
    assert small.max() <= 136
    same = np.asarray(Image.fromarray(stripes))
    np.testing.assert_array_equal(resize_frame(same, height=64, width=64), stripes)


@pytest.mark.parametrize("options", [{"height": 0}, {"episodes_per_shard": 0}, {"aspect": "crop"}])
def test_impossible_settings_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="frame cache"):
        cache(tmp_path / "c", **options)
    assert not (tmp_path / "c").exists()
