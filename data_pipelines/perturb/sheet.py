"""All perturbations of one picture or video on a contact sheet."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_pipelines.perturb.ops import (
    Blur,
    ChannelSwap,
    DiffusionNoise,
    Fast,
    Flip,
    FrameDrop,
    FrameShuffle,
    Freeze,
    GaussianNoise,
    Grayscale,
    Invert,
    Jitter,
    PatchMask,
    PatchScoreMask,
    Reverse,
    Rotate,
    Saturation,
    Segment,
    Slow,
    StutterHold,
    Swap,
    Tilt,
    VogueView,
    ZoomIn,
    ZoomOut,
)
from data_pipelines.tasks.contact_sheet import CARD, EDGE, INK, PAD, PAPER
from data_pipelines.video.decode import probe, read_frames
from data_pipelines.video.pictures import TIMES, Frames, picture_kind, read_image
from mmrl.errors import MediaError
from mmrl.seeding import stream
from mmrl.types import Media

if TYPE_CHECKING:
    from mmrl.protocols import Perturbation

LOADED = 24
"""Frames taken of a video."""
SIDE = 448
"""Longer side of the frames that are perturbed, in pixels: on larger ones the cells of a mask could not be seen on the sheet."""
PICTURE, STILL, STILLS = 224, 96, 6
"""Width of a picture's cell; width and number of the stills of a video's cell."""


def draw_sheet(source: str | Path, out_png: str | Path, seed: int) -> int:
    """Draw every perturbation of a picture or video on one PNG file; return how many there are.

    Perturbations of time are drawn for videos only, quarter turns for square frames only. The same call draws the same pixels. Raises
    MediaError for a file that cannot be read.
    """
    media = load_some_media(Path(source))
    cells = [("original", media)]
    cells += [(name, op(media, stream(seed, "perturb", name))) for name, op in perturbations(media).items()]
    sheet = drawn(cells)
    out_png = Path(out_png)
    out_png.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out_png, format="PNG")
    return len(cells) - 1


def perturbations(media: Media) -> "Mapping[str, Perturbation]":
    """Name -> every perturbation that fits the media, with its default values."""
    height, width = media.frames.shape[1:3]
    found: dict[str, Perturbation] = {
        "patch_mask": PatchMask(),
        "patch_score_mask, by contrast": PatchScoreMask(contrast(media.frames, 14), 0.3),
        "gaussian_noise": GaussianNoise(),
        "gaussian_noise, VideoSSR": GaussianNoise(35 / 255, 70 / 255),
        "diffusion_noise": DiffusionNoise(),
        "diffusion_noise, strength 0.5": DiffusionNoise(strength=0.5),
        "vogue_view": VogueView(),
        "blur": Blur(),
        "zoom_in": ZoomIn(),
        "zoom_out": ZoomOut(),
        "rotate": Rotate(),
        "flip": Flip(),
        "flip, vertical": Flip(horizontal=False, vertical=True),
        "tilt": Tilt(),
        "saturation": Saturation(),
        "grayscale": Grayscale(),
        "invert": Invert(),
        "channel_swap": ChannelSwap(),
        "jitter": Jitter(),
    }
    if height == width:
        found |= {"rotate, 90": Rotate(90), "rotate, 270": Rotate(270)}
    if media.is_video and len(media.frames) > 5:
        count = len(media.frames)
        negative = Media(~media.frames, media.timestamps_s)
        found |= {
            "patch_mask, per frame": PatchMask(per_frame=True),
            "frame_shuffle": FrameShuffle(),
            "reverse": Reverse(),
            "freeze": Freeze(),
            "stutter_hold": StutterHold(),
            "frame_drop": FrameDrop(),
            "frame_drop, previous": FrameDrop(fill="previous"),
            "slow": Slow(),
            "fast": Fast(),
            "segment of flip": Segment(Flip(), count // 3, count // 3),
            "segment of swap, with the negative": Segment(Swap(negative), count // 3, count // 3),
        }
    return found


def contrast(frames: np.ndarray, cells: int) -> np.ndarray:
    """float64 [F, cells, cells]: the standard deviation of each cell's values; stands in for a model's patch scores."""
    rows, columns = (np.array_split(np.arange(size), min(cells, size)) for size in frames.shape[1:3])
    return np.stack(
        [np.stack([frames[:, r[0] : r[-1] + 1, c[0] : c[-1] + 1].std(axis=(1, 2, 3)) for c in columns], axis=1) for r in rows], axis=1
    )


def load_some_media(path: Path) -> Media:
    """A picture, or the first LOADED frames of a video, an animation or a folder of pictures, shrunk to SIDE if they are larger.

    A folder's pictures without a `timestamps.json` count as one second apart. Raises MediaError.
    """
    if not path.exists():
        raise MediaError(f"{path}: no such file")
    if path.is_file() and picture_kind(path) == "still":
        frame = Image.fromarray(read_image(path))
        frame.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        return Media(np.array(frame)[None])
    source = Frames(path, fps=1.0) if path.is_dir() and not (path / TIMES).exists() else path
    found = probe(source)
    scale = SIDE / max(found.height, found.width)
    size = (max(1, round(found.height * scale)), max(1, round(found.width * scale))) if scale < 1 else None
    return read_frames(source, range(min(found.num_frames, LOADED)), size)


def drawn(cells: list[tuple[str, Media]]) -> Image.Image:
    """Labelled cells: pictures five in a row; of a video STILLS frames, two cells in a row."""
    video = cells[0][1].is_video
    columns, width = (2, STILLS * (STILL + 4) - 4) if video else (5, PICTURE)
    strips = [(label, strip(media, STILL if video else PICTURE)) for label, media in cells]
    high = strips[0][1].height + 20
    rows = -(-len(strips) // columns)
    sheet = Image.new("RGB", (columns * (width + 2 * PAD) + PAD, rows * (high + 2 * PAD) + PAD), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for i, (label, picture) in enumerate(strips):
        left, top = PAD + i % columns * (width + 2 * PAD), PAD + i // columns * (high + 2 * PAD)
        pen.rectangle([left - 6, top - 6, left + width + 5, top + high + 5], fill=CARD, outline=EDGE)
        pen.text((left, top), label, fill=INK, font=font)
        sheet.paste(picture, (left, top + 20))
    return sheet


def strip(media: Media, width: int) -> Image.Image:
    """The picture, or evenly spaced stills side by side, each `width` wide."""
    count = len(media.frames)
    kept = range(count) if count <= STILLS else [i * (count - 1) // (STILLS - 1) for i in range(STILLS)]
    height = max(1, round(media.frames.shape[1] * width / media.frames.shape[2]))
    line = Image.new("RGB", (len(kept) * (width + 4) - 4, height), CARD)
    for i, frame in enumerate(kept):
        line.paste(Image.fromarray(media.frames[frame]).resize((width, height), Image.Resampling.LANCZOS), (i * (width + 4), 0))
    return line
