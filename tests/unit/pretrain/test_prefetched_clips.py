import threading

import numpy as np
import pytest

from vw2_robot.data.blocks import WindowOptions
from vw2_robot.data.episodes import Episode, Part
from vw2_robot.data.sharded_stream import ShardedStream
from vw2_robot.data.stream import StreamOptions
from vw2_robot.distributed.batch_share import BatchShare
from vw2_robot.errors import InputError
from vw2_robot.pretrain.clips import StreamedClips
from vw2_robot.pretrain.prefetched_clips import PrefetchedClips

SMALL, LARGE = (BatchShare(size, 1, 0, 1) for size in (3, 6))


class Video:
    name = "video"

    def parts(self):
        return [Part(str(part), 2) for part in range(4)]

    def read(self, part, *, start=0):
        for number in range(start, 2):
            images = tuple(np.full((4, 4, 3), (part, number, index), np.uint8) for index in range(8))
            yield Episode(self.name, f"{part}/{number}", "", 5.0, images)


def streamed():
    options = StreamOptions(WindowOptions(5), height=4, width=4, shuffle_bytes=4000)
    return StreamedClips(ShardedStream([(Video(), 1.0)], options, seed=1, shards=3, threads=2))


def prefetched(ahead=2):
    return PrefetchedClips(streamed(), ahead=ahead, pinned=False)


def test_read_ahead_clips_are_those_of_reading_them_one_by_one_also_after_a_change_of_the_share():
    shares = [SMALL, SMALL, SMALL, LARGE, LARGE, SMALL]
    plain = streamed()
    wanted = [plain.batch(step, share).pixels.tobytes() for step, share in enumerate(shares)]
    plain.close()
    clips = prefetched()
    assert [clips.batch(step, share).pixels.tobytes() for step, share in enumerate(shares)] == wanted
    clips.close()


def test_the_state_is_that_after_the_batch_that_was_handed_out():
    clips = prefetched()
    states = [clips.state()]
    batches = []
    for step in range(5):
        batches.append(clips.batch(step, SMALL).pixels.tobytes())
        states.append(clips.state())
    clips.close()
    for begin in (0, 3):
        again = prefetched(ahead=1)
        again.batch(0, LARGE)  # read ahead, and forgotten
        again.restore(states[begin])
        assert [again.batch(step, SMALL).pixels.tobytes() for step in range(begin, 5)] == batches[begin:]
        assert again.state() == states[-1]
        again.close()


class Failing:
    """Clips whose third batch cannot be read."""

    def __init__(self):
        self.threads = set()

    def batch(self, step, share):
        self.threads.add(threading.current_thread())
        if step == 2:
            raise InputError("the third batch is damaged")
        return step

    def snapshot(self):
        return None

    def close(self):
        pass


def test_an_error_of_the_thread_is_raised_where_its_batch_is_wanted_and_close_ends_the_thread():
    clips = PrefetchedClips(found := Failing(), ahead=2, pinned=False)
    assert [clips.batch(step, SMALL) for step in range(2)] == [0, 1]
    with pytest.raises(InputError, match="the third batch is damaged"):
        clips.batch(2, SMALL)
    clips.close()
    (reader,) = found.threads - {threading.current_thread()}
    assert not reader.is_alive()
