"""All perturbations: `op(media, rng) -> Media`, uint8 in and out, same shape, same timestamps. See docs/perturbations.md."""

from data_pipelines.perturb.blur import Blur
from data_pipelines.perturb.colour import ChannelSwap, Grayscale, Invert, Jitter, Saturation
from data_pipelines.perturb.compose import VIDEOSSR_KINDS, Chain, Segment, VogueView, visibility
from data_pipelines.perturb.geometry import Flip, Rotate, Tilt, ZoomIn, ZoomOut
from data_pipelines.perturb.masks import PatchMask, PatchScoreMask
from data_pipelines.perturb.noise import DiffusionNoise, GaussianNoise
from data_pipelines.perturb.temporal import Fast, FrameDrop, FrameShuffle, Freeze, Reverse, Slow, StutterHold, Swap

__all__ = [
    "VIDEOSSR_KINDS",
    "Blur",
    "Chain",
    "ChannelSwap",
    "DiffusionNoise",
    "Fast",
    "Flip",
    "FrameDrop",
    "FrameShuffle",
    "Freeze",
    "GaussianNoise",
    "Grayscale",
    "Invert",
    "Jitter",
    "PatchMask",
    "PatchScoreMask",
    "Reverse",
    "Rotate",
    "Saturation",
    "Segment",
    "Slow",
    "StutterHold",
    "Swap",
    "Tilt",
    "VogueView",
    "ZoomIn",
    "ZoomOut",
    "visibility",
]
