import pytest

from mmrl.engines.hf import HFEngine


@pytest.fixture
def engine(processor, shared_policy):
    """Samples from `shared_policy`, as version 4."""
    made = HFEngine()
    made.attach(processor)
    made.load_policy(shared_policy, 4)
    return made
