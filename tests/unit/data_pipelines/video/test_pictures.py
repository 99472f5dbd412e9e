import json
import struct

import numpy as np
import pytest
from PIL import Image

from data_pipelines.video.decode import Frames, Limits, open_media, probe, read_frames
from mmrl.errors import MediaError

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]


def flat(colour, size=(20, 10)) -> Image.Image:
    return Image.new("RGB", size, colour)


def write_animation(path, durations=(100, 30, 200, 50), **options) -> None:
    first, *others = [flat(colour) for colour in COLOURS[: len(durations)]]
    first.save(path, save_all=True, append_images=others, duration=list(durations), **options)


def means(frames: np.ndarray) -> list[tuple[int, ...]]:
    return [tuple(int(value) for value in frame.reshape(-1, 3).mean(0).round()) for frame in frames]


ANIMATED = [("a.gif", {"loop": 0}), ("a.webp", {"lossless": True, "loop": 0}), ("a.png", {"loop": 0})]


@pytest.mark.parametrize(("name", "options"), ANIMATED)
def test_animations_keep_their_own_durations_and_are_played_once(tmp_path, name, options):
    write_animation(tmp_path / name, **options)
    (tmp_path / name).rename(tmp_path / "renamed.mp4")  # content counts
    found = probe(tmp_path / "renamed.mp4")
    assert (found.num_frames, found.width, found.height) == (4, 20, 10)
    assert found.duration_s == pytest.approx(0.38)
    assert found.fps == pytest.approx(4 / 0.38)
    media = read_frames(tmp_path / "renamed.mp4", [2, 0, 3, 2])
    assert means(media.frames) == [COLOURS[2], COLOURS[0], COLOURS[3], COLOURS[2]]
    np.testing.assert_allclose(media.timestamps_s, [0.13, 0, 0.33, 0.13])
    assert read_frames(tmp_path / "renamed.mp4", [1], (6, 8)).frames.shape == (1, 6, 8, 3)
    assert len(open_media(tmp_path / "renamed.mp4").frames) == 4


def test_frames_that_state_no_duration_stay_for_a_tenth_of_a_second(tmp_path):
    write_animation(tmp_path / "a.gif", durations=(0, 0, 50))
    np.testing.assert_allclose(probe(tmp_path / "a.gif").timestamps_s, [0, 0.1, 0.2])


def test_the_stand_in_picture_of_an_apng_is_not_a_frame(tmp_path):
    stand_in, *frames = [flat(colour) for colour in COLOURS]
    stand_in.save(tmp_path / "a.png", save_all=True, append_images=frames, default_image=True, duration=40)
    assert means(open_media(tmp_path / "a.png").frames) == COLOURS[1:]


def test_transparent_parts_of_animations_lie_on_white(tmp_path):
    clear = Image.new("RGBA", (4, 4), (9, 9, 9, 0))
    clear.save(tmp_path / "a.webp", save_all=True, append_images=[Image.new("RGBA", (4, 4), (9, 9, 9, 255))], lossless=True, duration=50)
    assert means(open_media(tmp_path / "a.webp").frames) == [(255, 255, 255), (9, 9, 9)]


@pytest.mark.parametrize(("name", "options"), ANIMATED)
def test_cut_animations_are_refused(tmp_path, name, options):
    noise = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    first, *others = [Image.fromarray(pixels) for pixels in noise]
    first.save(
        tmp_path / "whole", format={"gif": "GIF", "webp": "WEBP", "png": "PNG"}[name[2:]], save_all=True, append_images=others, **options
    )
    whole = (tmp_path / "whole").read_bytes()
    (tmp_path / name).write_bytes(whole[: int(len(whole) * 0.6)])
    with pytest.raises(MediaError, match=name):
        open_media(tmp_path / name)


def test_limits_hold_for_animations(tmp_path):
    write_animation(tmp_path / "a.gif")
    with pytest.raises(MediaError, match=r"a.gif: frames of 20 x 10 pixels are more than 199"):
        probe(tmp_path / "a.gif", limits=Limits(frame_pixels=199))
    with pytest.raises(MediaError, match=r"a.gif: 4 frames of 20 x 10 pixels are more than 799 pixels in all"):
        open_media(tmp_path / "a.gif", limits=Limits(total_pixels=799))
    with pytest.raises(MediaError, match=r"a.gif: not read within the limit"):
        probe(tmp_path / "a.gif", limits=Limits(seconds=1e-6))


def test_a_gif_that_declares_a_huge_screen_is_refused(tmp_path):
    write_animation(tmp_path / "a.gif")
    content = bytearray((tmp_path / "a.gif").read_bytes())
    struct.pack_into("<HH", content, 6, 65535, 65535)
    (tmp_path / "a.gif").write_bytes(content)
    with pytest.raises(MediaError, match=r"a.gif: .*pixels"):
        probe(tmp_path / "a.gif")


# --- folders and lists of frames -------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    shelf = tmp_path / "frames"
    shelf.mkdir()
    for number, colour in zip((1, 2, 10, 20), COLOURS, strict=True):
        flat(colour).save(shelf / f"frame-{number}.png")
    return shelf


def test_a_folder_is_read_in_natural_order(folder):
    media = read_frames(Frames(folder, fps=2), [3, 0, 1])
    assert means(media.frames) == [COLOURS[3], COLOURS[0], COLOURS[1]]
    assert media.timestamps_s.tolist() == [1.5, 0, 0.5]
    found = probe(Frames(folder, fps=2))
    assert (found.num_frames, found.fps, found.duration_s, found.width, found.height) == (4, 2, 2.0, 20, 10)


def test_a_folder_can_say_its_times_itself(folder):
    with pytest.raises(MediaError, match=r"frames: nothing says when its frames are shown; give fps or timestamps_s"):
        probe(folder)
    (folder / "timestamps.json").write_text('{"timestamps_s": [5, 5.5, 7, 9]}')
    assert open_media(folder).timestamps_s.tolist() == [0, 0.5, 2, 4]
    (folder / "timestamps.json").write_text('{"fps": 4}')
    assert read_frames(folder, [2]).timestamps_s.tolist() == [0.5]
    assert open_media(Frames(folder, timestamps_s=[0, 1, 2, 3])).timestamps_s.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("{", "is not"),
        ("[1]", "is not"),
        ("{}", "one of the two"),
        ({"fps": 1, "timestamps_s": [0, 1, 2, 3]}, "one of the two"),
        ({"fps": 0}, "a number above 0"),
        ({"fps": "x"}, "a number above 0"),
        ({"fps": -1}, "increasing"),
        ({"timestamps_s": [0, 1]}, "4 frames need 4 increasing seconds"),
        ({"timestamps_s": [0, 1, 1, 2]}, "4 frames need 4 increasing seconds"),
    ],
)
def test_bad_times_of_a_folder_are_named(folder, said, message):
    (folder / "timestamps.json").write_text(said if isinstance(said, str) else json.dumps(said))
    with pytest.raises(MediaError, match=rf"timestamps.json: .*{message}"):
        probe(folder)


def test_frames_in_memory(folder):
    media = open_media(Frames([flat(colour) for colour in COLOURS[:3]], fps=10), [2, 1])
    assert means(media.frames) == [COLOURS[2], COLOURS[1]]
    assert media.timestamps_s.tolist() == [0.2, 0.1]


def test_frames_of_different_sizes_need_a_size(folder):
    flat(COLOURS[2], (30, 10)).save(folder / "frame-10.png")
    with pytest.raises(MediaError, match=r"frames: frame 2 has 30 x 10 pixels, frame 0 has 20 x 10; give a size"):
        open_media(Frames(folder, fps=1))
    assert open_media(Frames(folder, fps=1), size=(5, 5)).frames.shape == (4, 5, 5, 3)


def test_an_empty_folder_and_a_stranger_in_it_are_named(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MediaError, match="empty: holds no pictures"):
        probe(Frames(tmp_path / "empty", fps=1))
    (folder / "frame-3.png").write_text("no picture")
    with pytest.raises(MediaError, match=r"frame-3.png: cannot be read as a picture"):
        open_media(Frames(folder, fps=1))


# --- still pictures ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"])
def test_still_pictures_have_no_times(tmp_path, form):
    flat((200, 100, 50)).save(tmp_path / "p", format=form)
    media = open_media(tmp_path / "p")
    assert not media.is_video
    assert media.frames.shape == (1, 10, 20, 3)
    assert np.abs(np.array(means(media.frames)[0]) - (200, 100, 50)).max() <= 4
    assert open_media(tmp_path / "p", [0], (4, 6)).frames.shape == (1, 4, 6, 3)
    with pytest.raises(ValueError, match="only frame 0"):
        open_media(tmp_path / "p", [1])
    with pytest.raises(MediaError, match="is a still picture, not a video"):
        probe(tmp_path / "p")


def test_a_picture_in_memory(tmp_path):
    media = open_media(flat(COLOURS[0]))
    assert not media.is_video
    assert means(media.frames) == [COLOURS[0]]
