import numpy as np
import pytest
from PIL import Image

from mmrl.types import Media


def photo(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 [F, H, W, 3] that looks like a photo to a filter: soft coloured spots with some grain."""
    rng = np.random.default_rng(seed)
    spots = rng.integers(0, 256, (frames, 5, 6, 3), np.uint8)
    soft = np.stack([np.asarray(Image.fromarray(spot).resize((width, height), Image.Resampling.BICUBIC)) for spot in spots])
    return np.clip(soft + rng.normal(0, 6, soft.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def clip() -> Media:
    """Twelve frames of 60 x 90 pixels, half a second apart."""
    return Media(photo(12, 60, 90), np.arange(12) / 2)


@pytest.fixture(scope="session")
def picture() -> Media:
    return Media(photo(1, 90, 75, seed=1))


@pytest.fixture(scope="session")
def numbered() -> Media:
    """Ten frames of one grey: frame i has the value 20 * i."""
    return Media(np.broadcast_to((20 * np.arange(10, dtype=np.uint8))[:, None, None, None], (10, 4, 6, 3)).copy(), np.arange(10) / 3)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
