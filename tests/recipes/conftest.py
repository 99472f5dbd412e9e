from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with random weights."""
    from mmrl.tiny import Made, build_tiny
    from mmrl.tiny_lessons import MazeLessons

    return build_tiny(tmp_path_factory.mktemp("model"), Made(lessons=MazeLessons(steps=0)))
