import numpy as np
import pytest
from PIL import Image

from data_pipelines.perturb.sheet import draw_sheet, load_some_media, perturbations
from mmrl.errors import MediaError


@pytest.fixture
def gif(tmp_path, clip):
    first, *rest = (Image.fromarray(frame) for frame in clip.frames)
    first.save(tmp_path / "clip.webp", save_all=True, append_images=rest, duration=200, lossless=True)
    return tmp_path / "clip.webp"


def test_a_picture(tmp_path, picture):
    Image.fromarray(picture.frames[0]).save(tmp_path / "p.png")
    media = load_some_media(tmp_path / "p.png")
    assert (media.frames == picture.frames).all()
    assert not media.is_video
    assert draw_sheet(tmp_path / "p.png", tmp_path / "deep" / "sheet.png", 0) == len(perturbations(media))
    with Image.open(tmp_path / "deep" / "sheet.png") as sheet:
        assert sheet.width == 5 * 252 + 14


def test_an_animation_shows_the_perturbations_of_time_as_well(tmp_path, gif, clip):
    media = load_some_media(gif)
    assert (media.frames == clip.frames).all()
    assert media.timestamps_s == pytest.approx(np.arange(12) / 5)
    still = perturbations(load_some_media(gif)).keys() - {"frame_shuffle", "reverse"}
    assert draw_sheet(gif, tmp_path / "sheet.png", 0) == len(still) + 2


def test_the_same_seed_draws_the_same_pixels(tmp_path, gif):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        draw_sheet(gif, tmp_path / f"{name}.png", seed)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes() != (tmp_path / "c.png").read_bytes()


def test_a_folder_of_frames_and_large_ones_are_shrunk(tmp_path):
    for i in range(3):
        Image.new("RGB", (900, 300), (i, 0, 0)).save(tmp_path / f"{i}.png")
    media = load_some_media(tmp_path)
    assert media.frames.shape == (3, 149, 448, 3)
    assert media.frames[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert media.timestamps_s.tolist() == [0, 1, 2]


def test_square_frames_are_turned_by_quarters(picture, clip):
    assert not {"rotate, 90", "frame_shuffle"} & perturbations(picture).keys()
    square = type(clip)(clip.frames[:, :, :60], clip.timestamps_s)
    assert {"rotate, 90", "rotate, 270", "frame_shuffle"} <= perturbations(square).keys()


def test_what_cannot_be_read_is_a_media_error(tmp_path):
    (tmp_path / "no.mp4").write_bytes(b"not a picture")
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    for i in (1, 2):
        Image.new("RGB", (i, i)).save(tmp_path / "mixed" / f"{i}.png")
    for name, message in (
        ("no.mp4", "cannot be opened as a video"),
        ("none.png", "no such file"),
        ("empty", "no pictures"),
        ("mixed", "frame 1 has 2 x 2 pixels, frame 0 has 1 x 1"),
    ):
        with pytest.raises(MediaError, match=message) as error:
            load_some_media(tmp_path / name)
        assert name in str(error.value)
