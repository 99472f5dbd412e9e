"""How long each perturbation takes, against a loop over the frames with Pillow: prints a table, and writes JSON with --out.

COMMAND  OMP_NUM_THREADS=1 python scripts/bench_perturb.py --out docs/results/perturb.json
EXPECT   5 x and more on a clip; 4 x for quarter turns

Both sides take and give uint8 arrays, so that Pillow's side converts: that is what a pipeline with arrays on both ends pays. The time
of its operation alone, on pictures that exist already, is given as well. The sides take turns, one process, one thread.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from data_pipelines.perturb import ops
from mmrl.metrics import machine, source_commit, write_json
from mmrl.protocols import Perturbation
from mmrl.types import Media

Pictures = list[Image.Image]
ROTATE = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180}
DRAWS = np.random.default_rng(0)


def swapped(image: Image.Image) -> Image.Image:
    red, green, blue = image.split()
    return Image.merge("RGB", (blue, green, red))


def masked(cells: np.ndarray) -> Callable[[Image.Image], Image.Image]:
    def mask(image: Image.Image) -> Image.Image:
        pen = ImageDraw.Draw(image)
        for row, column in np.argwhere(cells[: -(-image.height // 14), : -(-image.width // 14)]):
            pen.rectangle([column * 14, row * 14, column * 14 + 13, row * 14 + 13], fill=0)
        return image

    return mask


def zoomed_in(image: Image.Image) -> Image.Image:
    width, height = int(image.width / 1.4), int(image.height / 1.4)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height)).resize(image.size, Image.Resampling.LANCZOS)


def zoomed_out(image: Image.Image) -> Image.Image:
    width, height = int(image.width / 1.3), int(image.height / 1.3)
    canvas = Image.new("RGB", image.size)
    canvas.paste(image.resize((width, height), Image.Resampling.LANCZOS), ((image.width - width) // 2, (image.height - height) // 2))
    return canvas


def jittered(image: Image.Image) -> Image.Image:
    return ImageEnhance.Contrast(ImageEnhance.Brightness(image).enhance(1.1)).enhance(0.9)


def noisy(frame: np.ndarray, sigma: float, gain: float = 1.0) -> np.ndarray:
    return np.clip(np.rint(gain * frame + DRAWS.normal(0, sigma, frame.shape)), 0, 255).astype(np.uint8)


def vogue(image: Image.Image) -> Image.Image:
    turned = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).rotate(7)
    return Image.fromarray(noisy(np.asarray(jittered(turned)), 102.0))


def each(change: Callable[[Image.Image], Image.Image]) -> Callable[[Pictures], Pictures]:
    return lambda pictures: [change(picture) for picture in pictures]


def in_order(order: Callable[[int], Any]) -> Callable[[Pictures], Pictures]:
    return lambda pictures: [pictures[i] for i in order(len(pictures))]


CELLS = np.random.default_rng(1).random((128, 128)) < 0.6
SIDES: dict[str, tuple[Perturbation, Callable[[Pictures], Pictures]]] = {
    "patch_mask": (ops.PatchMask(), each(masked(CELLS))),
    "gaussian_noise": (ops.GaussianNoise(0.4), each(lambda image: Image.fromarray(noisy(np.asarray(image), 102.0)))),
    "gaussian_noise, VideoSSR": (ops.VIDEOSSR_KINDS["noise"], each(lambda image: Image.fromarray(noisy(np.asarray(image), 50.0)))),
    "diffusion_noise": (ops.DiffusionNoise(), each(lambda image: Image.fromarray(noisy(np.asarray(image), 128.8, 0.863)))),
    "vogue_view": (ops.VogueView(), each(vogue)),
    "blur": (ops.Blur(), each(lambda image: image.filter(ImageFilter.GaussianBlur(2)))),
    "zoom_in": (ops.ZoomIn(1.4, 1.4), each(zoomed_in)),
    "zoom_out": (ops.ZoomOut(1.3, 1.3), each(zoomed_out)),
    "rotate 180": (ops.Rotate(180), each(lambda image: image.transpose(ROTATE[180]))),
    "rotate 90": (ops.Rotate(90), each(lambda image: image.transpose(ROTATE[90]))),
    "flip": (ops.Flip(), each(ImageOps.mirror)),
    "tilt": (ops.Tilt(), each(lambda image: image.rotate(7))),
    "saturation": (ops.Saturation(2.0), each(lambda image: ImageEnhance.Color(image).enhance(2.0))),
    "grayscale": (ops.Grayscale(), each(lambda image: image.convert("L").convert("RGB"))),
    "invert": (ops.Invert(), each(ImageOps.invert)),
    "channel_swap": (ops.ChannelSwap((2, 1, 0)), each(swapped)),
    "jitter": (ops.Jitter(), each(jittered)),
    "frame_shuffle": (ops.FrameShuffle(), in_order(DRAWS.permutation)),
    "reverse": (ops.Reverse(), in_order(lambda count: range(count)[::-1])),
    "freeze": (ops.Freeze(), in_order(lambda count: [0] * count)),
    "stutter_hold": (ops.StutterHold((4,)), in_order(lambda count: [i * 4 // count * count // 4 for i in range(count)])),
    "frame_drop": (ops.FrameDrop(), lambda pictures: [Image.new("RGB", p.size) if i % 2 else p for i, p in enumerate(pictures)]),
    "slow": (ops.Slow(), in_order(lambda count: [i // 2 for i in range(count)])),
    "fast": (ops.Fast(), in_order(lambda count: [min(2 * i, count - 1) for i in range(count)])),
}
DIFFERENT = {
    "patch_mask", "gaussian_noise", "gaussian_noise, VideoSSR", "diffusion_noise", "vogue_view", "tilt", "jitter", "frame_shuffle",
    "frame_drop",
}  # fmt: skip
"""The two sides draw other numbers: their results cannot be compared value by value."""
TEMPORAL = {"frame_shuffle", "reverse", "freeze", "stutter_hold", "frame_drop", "slow", "fast"}


def frames_of(count: int, side: int) -> np.ndarray:
    """Soft coloured spots with grain, uint8 [count, side, side, 3]."""
    rng = np.random.default_rng(side)
    spots = [
        Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize((side, side), Image.Resampling.BICUBIC) for _ in range(count)
    ]
    return np.stack([np.clip(np.asarray(spot) + rng.normal(0, 6, (side, side, 3)), 0, 255).astype(np.uint8) for spot in spots])


def seconds(work: Callable[[], Any]) -> float:
    """CPU time of the process, so that others on the machine count less."""
    began = time.process_time()
    work()
    return time.process_time() - began


def compared(name: str, frames: np.ndarray, rounds: int) -> dict[str, Any]:
    """Medians over rounds in which the sides take turns, in ms, and the median of the rounds' ratios."""
    op, by_pillow = SIDES[name]
    media = Media(frames, np.arange(len(frames), dtype=np.float64) if len(frames) > 1 else None)
    rng = np.random.default_rng(0)

    def with_pillow() -> np.ndarray:
        return np.stack([np.asarray(picture) for picture in by_pillow([Image.fromarray(frame) for frame in frames])])

    difference = np.abs(op(media, rng).frames.astype(int) - with_pillow())  # also the warm-up
    times: dict[str, list[float]] = {"mmrl": [], "pillow": [], "pillow_alone": []}
    for _ in range(rounds):
        times["mmrl"].append(seconds(lambda: op(media, rng)))
        times["pillow"].append(seconds(with_pillow))
        pictures = [Image.fromarray(frame) for frame in frames]
        times["pillow_alone"].append(seconds(lambda pictures=pictures: by_pillow(pictures)))
    ratios = [theirs / ours for ours, theirs in zip(times["mmrl"], times["pillow"], strict=True)]
    point = {"op": name, "frames": len(frames), "side": frames.shape[1]}
    point |= {f"{side}_ms": round(1000 * statistics.median(values), 3) for side, values in times.items()}
    point |= {"ratio": round(statistics.median(ratios), 2), "ratio_min": round(min(ratios), 2), "ratio_max": round(max(ratios), 2)}
    return point if name in DIFFERENT else point | {"mean_difference": round(float(difference.mean()), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file to write; needs a commit")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--only", help="one perturbation")
    wanted = parser.parse_args()
    known = source_commit()
    if wanted.out and known is None:
        parser.error("--out: no commit to name; commit first")
    points = []
    for frames in (frames_of(48, 256), frames_of(1, 1024)):
        for name in SIDES if wanted.only is None else [wanted.only]:
            if len(frames) > 1 or name not in TEMPORAL:
                points.append(compared(name, frames, wanted.rounds))
                print("  ".join(f"{key} {value}" for key, value in points[-1].items()), flush=True)
    if wanted.out:
        versions = {name: version(name) for name in ("numpy", "pillow")} | {"python": sys.version.split()[0]}
        command = " ".join(["python", *sys.argv])
        write_json(
            wanted.out,
            {
                "commit": known,
                "command": command,
                "machine": machine(),
                "versions": versions,
                "clock": "CPU time of the process",
                "rounds": wanted.rounds,
                "points": points,
            },
        )


if __name__ == "__main__":
    main()
