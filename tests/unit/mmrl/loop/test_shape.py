"""Shapers change advantages and nothing else."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from mmrl.loop.shape import shape
from mmrl.loop.update import TokenMeans, reduce_means
from mmrl.types import Completion, Prompt, Rollout, Sample, Task

PROMPT = Prompt(Task("t", (), (), "", {}), "", np.array([1]), {})


@dataclass(frozen=True)
class AddsEntropy:
    """A + factor * entropy + step."""

    factor: float = 1.0
    needs: ClassVar[frozenset[str]] = frozenset({"old_entropy"})

    def __call__(self, x):
        return x.advantages + np.float32(self.factor) * x.signals["old_entropy"] + np.float32(x.step), {"added": x.signals["old_entropy"]}


@dataclass(frozen=True)
class Wrong:
    kind: str
    needs: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, x):
        return {"nan": x.advantages * np.float32("nan"), "double": x.advantages.astype(float), "short": x.advantages[:1]}[self.kind], {}


def samples(*advantages):
    out = []
    for values in advantages:
        ids = np.arange(len(values))
        rollout = Rollout(PROMPT, Completion(ids, "", np.zeros(len(ids), np.float32), "stop", 0), PROMPT)
        out.append(Sample(rollout, np.array(values, np.float32), np.full(len(ids), 0.1, np.float32)))
    return out


def run(updates, shapers, signals, step=0):
    means = TokenMeans()
    return shape(updates, shapers, signals, step=step, max_steps=9, seed=0, means=means), reduce_means([means])


def test_shapers_follow_one_another_and_metrics_are_token_means():
    """1 + .5 + 2 * .5 = 2.5; entropies .5, .5 and .2 over three tokens, twice."""
    one, other = samples([1.0, -1.0], [0.0])
    signals = {id(one.rollout): {"old_entropy": np.array([0.5, 0.5], np.float32)}, id(other.rollout): {"old_entropy": np.float32([0.2])}}
    (came, rest), metrics = run([[one, other], []], [AddsEntropy(), AddsEntropy(2.0)], signals)
    assert rest == []
    np.testing.assert_allclose(came[0].advantages, [2.5, 0.5])
    np.testing.assert_allclose(came[1].advantages, [0.6], rtol=1e-6)
    assert came[0].token_weights is one.token_weights
    assert came[0].rollout is one.rollout
    assert metrics["added"] == pytest.approx(0.4)


def test_without_shapers_the_samples_are_the_same():
    (sample,) = samples([1.0])
    ((came,),), metrics = run([[sample]], [], {})
    assert came is sample
    assert metrics == {"forwarded": 0.0}


@pytest.mark.parametrize("kind", ["nan", "double", "short"])
def test_a_shaper_that_breaks_the_advantages_is_named(kind):
    (sample,) = samples([1.0, 2.0])
    with pytest.raises(ValueError, match=rf"task t: Wrong\(kind='{kind}'\) must give finite float32 advantages of shape \(2,\)"):
        run([[sample]], [Wrong(kind)], {id(sample.rollout): {}})
