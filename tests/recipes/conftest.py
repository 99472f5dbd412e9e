from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with random weights."""
    from mmrl.tiny import Made, WarmUp, build_tiny

    return build_tiny(tmp_path_factory.mktemp("model"), Made(warm_up=WarmUp(steps=0)))
