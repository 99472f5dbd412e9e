import pytest

from data_pipelines.video.budget import QwenPixels, timelens_input


@pytest.mark.parametrize(
    ("pixels", "height", "width", "expected"),
    [
        (QwenPixels(28), 1080, 1920, (1092, 1932)),  # 38.6 and 68.6 tokens round to 39 and 69
        (QwenPixels(28, max_pixels=1280 * 784), 1080, 1920, (728, 1316)),  # scale sqrt(2073600 / 1003520) = 1.4375: 26.8, 47.7 rounded down
        (QwenPixels(28, min_pixels=256 * 784), 100, 200, (336, 644)),  # scale sqrt(200704 / 20000) = 3.168: 11.3, 22.6 rounded up
        (QwenPixels(32), 1080, 1920, (1088, 1920)),
        (QwenPixels(28), 10, 1000, (28, 1008)),  # qwen-vl-utils lifts a thin side first
        (QwenPixels(28, "qwen2_5_vl"), 10, 1000, (28, 560)),  # the processor rounds it to 0, which is too few pixels
    ],
)
def test_image_sizes(pixels, height, width, expected):
    assert pixels.image_size(height, width) == expected


def test_a_frames_share_of_the_video():
    """VideoSSR trains on 128² to 256² pixels a frame: 48 frames of 720 x 1280 get 252 x 448 scaled to 65536 pixels."""
    pixels = QwenPixels(28, min_pixels=128**2, max_pixels=256**2)
    assert pixels.frame_pixels(48) == (16384, 65536)
    assert pixels.video_size(720, 1280, 48) == (168, 336)  # scale 3.75: 192 x 341.3
    assert QwenPixels(28, total_pixels=40_000 * 784).frame_pixels(100) == (128 * 784, 768 * 784)  # 800 tokens a frame: the cap holds
    assert QwenPixels(28, total_pixels=20_000 * 784).frame_pixels(100) == (128 * 784, 400 * 784)  # two frames make one token block
    assert QwenPixels(28, total_pixels=1_000 * 784).frame_pixels(100) == (128 * 784, int(128 * 784 * 1.05))  # 20 tokens: too few


def test_timelens_budget():
    """Acceptance check 6 of TimeLens: 110 s at 2 fps -> 220 frames, 14336 · 784 · 2 / 220 = 102176.58 pixels each; 448 frames at most."""
    frames, pixels = timelens_input(28)
    assert len(frames(3300, 30.0)) == 220
    assert pixels.frame_pixels(220)[1] == pytest.approx(102_176.58, abs=0.005)
    assert len(frames(30_000, 30.0)) == 448
    assert pixels.frame_pixels(448)[0] == 64 * 784
    assert pixels.video_size(720, 1280, 220) == (224, 420)
    assert timelens_input(32)[1].frame_pixels(220)[1] == pytest.approx(14336 * 1024 * 2 / 220)
    assert timelens_input(28, min_tokens=16, total_tokens=3584)[0].max_frames == 448


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: QwenPixels(28, "qwen"), "rule must be one of qwen_vl_utils, qwen2_5_vl, qwen3_vl; got 'qwen'"),
        (lambda: QwenPixels(0), "factor must be at least 1; got 0"),
        (lambda: QwenPixels(28, min_pixels=9000, max_pixels=8000), "min_pixels must not be above max_pixels = 8000; got 9000"),
        (lambda: QwenPixels(28, max_pixels=8000).video_size(720, 1280, 4), "the least number of pixels, 100352, is above the most, 8000"),
        (lambda: QwenPixels(28).image_size(0, 5), "height and width must be at least 1; got 0 x 5"),
        (lambda: QwenPixels(28).image_size(10, 2010), "10 x 2010: the longer side is more than 200 times the shorter"),
        (lambda: QwenPixels(28, max_pixels=9408).image_size(28, 5000), "28 x 5000 pixels within 9408 would get a side of 0 at factor 28"),
        (lambda: QwenPixels(28).video_size(720, 1280, 0), "num_frames must be at least 1; got 0"),
        (lambda: QwenPixels(32, "qwen3_vl").video_size(720, 1280, 1), "needs at least temporal_patch = 2 frames; got 1"),
        (lambda: QwenPixels(32, "qwen3_vl").frame_pixels(8), "ask video_size"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
