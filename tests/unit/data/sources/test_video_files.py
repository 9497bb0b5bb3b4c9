"""Video files: every image at its time, cheap jumps, and damage that is named."""

import io
import os
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from vw2_robot.data.sources import video_files
from vw2_robot.data.sources.video_files import describe_video, frames_at_rate, jpegs_at, timed_frames
from vw2_robot.errors import InputError

pytest.importorskip("av", reason="PyAV is not installed (extra video)")


def opened(jpeg):
    return np.asarray(Image.open(io.BytesIO(jpeg)))


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.webm", "libvpx-vp9"), ("a.mp4", "libsvtav1")])
def test_every_codec_gives_the_images_in_order_with_their_times(tmp_path, video, number_of, name, codec):
    path = video(tmp_path / name, range(30), codec=codec)
    frames = list(timed_frames(path))
    assert [number_of(frame.image()) for frame in frames] == list(range(30))
    np.testing.assert_allclose([frame.time for frame in frames], np.arange(30) / 10, atol=2e-3)
    facts = describe_video(path)
    assert (facts.hz, facts.height, facts.width) == (10.0, 48, 64)
    assert facts.seconds == pytest.approx(3.0, abs=0.05)


def test_a_video_whose_title_is_no_text_is_read(tmp_path, video, number_of):
    path = video(tmp_path / "a.mp4", range(3))
    written = path.read_bytes()
    assert b"Lavf" in written  # the name of the program that wrote it
    path.write_bytes(written.replace(b"Lavf", b"\xff\xfe\xff\xfe"))
    assert describe_video(path).hz == 10.0
    assert [number_of(frame.image()) for frame in timed_frames(path)] == [0, 1, 2]


def test_colors_come_back(tmp_path, video, image):
    frame = next(iter(timed_frames(video(tmp_path / "a.mp4", [5, 5, 5])))).image()
    assert np.abs(frame.astype(int) - image(5)).mean() < 4


def test_stretches_of_one_file_are_read_in_one_pass(tmp_path, video, number_of):
    path = video(tmp_path / "a.mp4", range(60))
    stretches = list(jpegs_at(path, [(1.5, 4), (1.9, 3), (5.0, 10)], 10.0))
    found = [[number_of(opened(jpeg)) for jpeg in stretch] for stretch in stretches]
    assert found == [[15, 16, 17, 18], [19, 20, 21], list(range(50, 60))]


def test_a_later_stretch_is_reached_without_decoding_what_lies_before(tmp_path, video):
    path = video(tmp_path / "a.mp4", range(200))
    first = next(iter(timed_frames(path, start_seconds=15.0)))
    assert 14.0 < first.time <= 15.0


def test_a_stretch_that_the_file_does_not_hold_is_named(tmp_path, video):
    path = video(tmp_path / "a.mp4", range(20))
    with pytest.raises(InputError, match=r"a\.mp4: 5 of 10 images from 1\.500 s .* number 5, at 2\.000 s"):
        list(jpegs_at(path, [(1.5, 10)], 10.0))


def test_a_video_of_varying_rate_comes_out_even(tmp_path, video, number_of):
    times = [0, 100, 400, 500, 510, 600]  # two images left out after the second; one too many near the fifth
    path = video(tmp_path / "a.mkv", range(6), times=times)
    assert [number_of(frame.image()) for frame in frames_at_rate(path, 10.0)] == [0, 1, 1, 1, 2, 3, 5]


def test_a_video_that_jumps_by_hours_is_damaged(tmp_path, video):
    path = video(tmp_path / "a.mkv", range(3), times=[0, 100, 7_200_000])
    with pytest.raises(InputError, match=r"a\.mkv jumps from 0\.10 s to 7200\.00 s"):
        list(frames_at_rate(path, 10.0))


def remux(path, to, *, sound_s=0.0, stays=0, options=None):
    """Copy a video, with sound from the beginning on, and a last image that stays for `stays` ms."""
    av = pytest.importorskip("av")
    with av.open(str(path)) as source, av.open(str(to), "w", options=options or {}) as container:
        video = container.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.dts is not None]
        packets[-1].duration = packets[-1].duration if not stays else int(stays / 1000 / packets[-1].time_base)
        sound = container.add_stream("pcm_s16le", rate=8000) if sound_s else None
        for second in range(int(sound_s)):
            wave = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
            wave.sample_rate, wave.pts = 8000, 8000 * second
            packets += sound.encode(wave)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            if packet.stream.type == "video":
                packet.stream = video
            container.mux(packet)
    return to


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_a_last_image_may_stay_for_seconds_and_does_not_change_the_rate(tmp_path, video, ending):
    times = [100 * i for i in range(10)] + [900 + 400 * i for i in range(1, 4)]
    path = video(tmp_path / "a.mkv", range(13), times=times, codec="libvpx-vp9")
    path = remux(path, tmp_path / f"stays.{ending}", stays=6000)
    assert describe_video(path).hz == 10.0
    assert describe_video(path).seconds == pytest.approx(8.1, abs=0.1)
    assert [frame.time for frame in frames_at_rate(path, 10.0)][-1] == pytest.approx(2.1, abs=0.01)


def test_a_browser_s_recording_that_tells_neither_rate_nor_length_is_measured(tmp_path, video, number_of):
    path = remux(
        video(tmp_path / "a.webm", range(20), codec="libvpx-vp9"), tmp_path / "live.mkv", options={"live": "1"}
    )
    facts = describe_video(path)
    assert (facts.hz, facts.seconds) == (10.0, None)
    assert [number_of(frame.image()) for frame in frames_at_rate(path, 10.0)] == list(range(20))


@pytest.mark.parametrize("tagged", [True, False])  # Matroska has one length for all streams, perhaps a tag for each
def test_a_video_that_begins_later_than_its_sound_is_whole_and_a_cut_one_is_not(tmp_path, video, tagged):
    plain = video(tmp_path / "a.mkv", range(30), times=[5000 + 100 * i for i in range(30)], codec="libvpx-vp9")
    path = remux(plain, tmp_path / "sound.mkv", sound_s=12)
    for file in (plain, path):
        content = file.read_bytes()
        assert b"DURATION" in content
        file.write_bytes(content if tagged else content.replace(b"DURATION", b"IDENTITY"))
        assert describe_video(file).hz == 10.0
        assert len(list(frames_at_rate(file, 10.0))) == 30
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(InputError, match=r"sound\.mkv ends at \d\.\d+ s.*: it is cut"):
        list(timed_frames(path))


def test_images_beyond_the_limit_are_refused_before_they_are_decoded(tmp_path, video, monkeypatch):
    path = video(tmp_path / "a.mp4", range(3))
    monkeypatch.setattr(video_files, "MAX_PIXELS", 48 * 64 - 1)
    for read in (describe_video, lambda path: list(timed_frames(path))):
        with pytest.raises(InputError, match=r"a\.mp4 has images of 64 x 48, at most 3071 pixels are read"):
            read(path)


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_a_video_held_sideways_is_set_upright(tmp_path, video, image, turn):
    ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    path, turned = video(tmp_path / "a.mp4", [9] * 4), tmp_path / "turned.mp4"
    copy = [ffmpeg, "-v", "error", "-display_rotation", str(turn), "-i", str(path), "-c", "copy", str(turned)]
    subprocess.run(copy, check=True)
    raw = [ffmpeg, "-v", "error", "-i", str(turned), "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    frame = next(iter(timed_frames(turned))).image()
    shown = np.frombuffer(subprocess.run(raw, check=True, capture_output=True).stdout, np.uint8)
    np.testing.assert_allclose(frame, shown.reshape(frame.shape), atol=2)
    np.testing.assert_allclose(frame, np.rot90(image(9), turn // 90), atol=30)


def cut(path, share):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def scratch(path):
    content = bytearray(path.read_bytes())
    for position in range(len(content) // 3, len(content) // 2, 7):  # among the images, which lie before the index
        content[position] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("a.mp4", lambda path: cut(path, 0.5), "cannot be read as a video|is damaged after"),
        (
            "front.mp4",
            lambda path: cut(path, 0.7),
            r"is damaged after \d|ends at 1\d\.\d+ s, its header says 30\.00 s: it is cut",
        ),
        ("a.webm", lambda path: cut(path, 0.6), r"ends at [12]\d\.\d+ s, its header says 30\.\d+ s: it is cut"),
        ("a.mp4", scratch, r"is damaged after \d"),
        ("a.mp4", lambda path: path.write_bytes(b""), "cannot be read as a video"),
        ("a.mp4", lambda path: path.write_text("<html>404</html>"), "cannot be read as a video"),
        ("a.mp4", os.remove, "does not exist"),
    ],
)
def test_damage_is_an_error_that_names_the_file(tmp_path, video, name, damage, said):
    options = {"movflags": "faststart"} if name == "front.mp4" else None
    codec = "libvpx-vp9" if name.endswith("webm") else "libx264"
    path = video(tmp_path / name, range(300), codec=codec, options=options)
    damage(path)
    with pytest.raises(InputError, match=f"{name} ({said})") as caught:
        list(timed_frames(path))
    assert str(tmp_path) in str(caught.value)


def test_sound_alone_is_no_video(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "song.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(InputError, match=r"song\.mkv holds no video \(streams: audio\)"):
        describe_video(path)


def test_two_readers_of_one_file_do_not_disturb_each_other(tmp_path, video, number_of):
    path = video(tmp_path / "a.mp4", range(20))
    pairs = zip(
        timed_frames(path), timed_frames(shutil.copy(path, tmp_path / "b.mp4")), timed_frames(path), strict=True
    )
    assert [{number_of(frame.image()) for frame in three} for three in pairs] == [{n} for n in range(20)]
