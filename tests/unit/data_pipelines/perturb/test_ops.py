"""What holds for every perturbation."""

import pickle
from hashlib import blake2b

import numpy as np
import pytest

from data_pipelines.perturb import ops
from data_pipelines.perturb.sheet import perturbations
from mmrl.catalog import CATALOG
from mmrl.component import declaration
from mmrl.seeding import stream
from mmrl.types import Media

SQUARE = Media(np.arange(12 * 30 * 30 * 3).reshape(12, 30, 30, 3).astype(np.uint8) ** 2, np.arange(12.0))
ALL = {
    **perturbations(SQUARE),
    "chain": ops.Chain((ops.Flip(), ops.ChannelSwap())),
    "swap of a longer clip": ops.Swap(Media(~np.tile(SQUARE.frames, (2, 1, 1, 1)))),
}
STILL = perturbations(Media(SQUARE.frames[:1]))
DRAWN = {
    "patch_mask", "patch_mask, per frame", "gaussian_noise", "gaussian_noise, VideoSSR", "diffusion_noise", "diffusion_noise, strength 0.5",
    "vogue_view", "zoom_in", "zoom_out", "tilt", "channel_swap", "jitter", "frame_shuffle", "stutter_hold", "frame_drop",
    "frame_drop, previous", "chain", "swap of a longer clip", "segment of swap, with the negative",
}  # fmt: skip


def digest(media: Media) -> str:
    return blake2b(media.frames.tobytes(), digest_size=4).hexdigest()


@pytest.mark.parametrize("name", ALL)
def test_shape_type_and_times_stay_and_the_input_is_not_touched(name):
    before = SQUARE.frames.copy()
    after = ALL[name](SQUARE, stream(0, name))
    assert after.frames.shape == SQUARE.frames.shape
    assert after.frames.dtype == np.uint8
    assert after.timestamps_s is SQUARE.timestamps_s
    assert (SQUARE.frames == before).all()
    assert (after.frames != before).any()


@pytest.mark.parametrize("name", STILL)
def test_a_picture_stays_a_picture(name):
    after = STILL[name](Media(SQUARE.frames[:1]), stream(0, name))
    assert after.frames.shape == (1, 30, 30, 3)
    assert after.timestamps_s is None


@pytest.mark.parametrize("name", ALL)
def test_the_same_key_gives_the_same_bytes_and_another_key_others(name):
    seen = [digest(ALL[name](SQUARE, stream(seed, name))) for seed in (0, 0, 1, 2, 3, 4)]
    assert seen[0] == seen[1]
    assert (len(set(seen)) > 1) == (name in DRAWN)


@pytest.mark.parametrize("name", [name for name, op in ALL.items() if hasattr(op, "strength")])
def test_strength_0_changes_nothing_and_more_changes_more(name):
    def change(strength: float) -> float:
        op = type(ALL[name])(**{**vars(ALL[name]), "strength": strength})
        return np.mean([ops.visibility(SQUARE, op(SQUARE, stream(seed, "strength"))) for seed in range(8)])

    assert change(0) == 0
    assert 0 < change(0.3) < change(1)


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        "patch_mask": "461179c3",
        "gaussian_noise": "36d6b8dc",
        "gaussian_noise, VideoSSR": "d5bb7e2d",
        "diffusion_noise": "1a4d317f",
        "vogue_view": "17f3c5bc",
        "blur": "bce34502",
        "zoom_in": "67960d2f",
        "zoom_out": "f978e317",
        "tilt": "a5bfe960",
        "saturation": "e2ee5fbe",
        "grayscale": "6cc4f09e",
        "channel_swap": "bbb63332",
        "jitter": "823c3ace",
        "frame_shuffle": "054ea07c",
        "stutter_hold": "c33ddc5e",
        "frame_drop": "ad69aa36",
    }.items(),
)
def test_the_bytes_are_those_of_every_machine(name, expected):
    assert digest(ALL[name](SQUARE, stream("pinned", name))) == expected


@pytest.mark.parametrize("name", ALL)
def test_it_pickles(name):
    again = pickle.loads(pickle.dumps(ALL[name]))
    assert digest(again(SQUARE, stream(0, name))) == digest(ALL[name](SQUARE, stream(0, name)))


def test_the_catalog_holds_every_perturbation_that_a_recipe_can_write():
    here = [target for target in CATALOG["perturbation"].values() if target.startswith("data_pipelines.")]  # others need a model
    classes = {declaration(target).target.partition(":")[2] for target in here}
    written_in_code = {"PatchScoreMask", "Swap"}  # they take an array, a clip
    assert classes | written_in_code == {name for name in ops.__all__ if name[0].isupper() and not name.isupper() and "_" not in name}


@pytest.mark.parametrize("name", ["frame_shuffle", "reverse", "freeze", "stutter_hold", "frame_drop", "slow", "fast"])
def test_a_perturbation_of_time_refuses_a_picture(name):
    with pytest.raises(ValueError, match=rf"{name} needs \d or more frames; got 1 \(a picture\)"):
        ALL[name](Media(SQUARE.frames[:1]), stream(0))
