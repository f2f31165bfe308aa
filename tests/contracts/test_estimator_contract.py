"""One test over the whole registry: a new estimator is tested by its line in ``ENTROPY_ESTIMATORS``."""

import dataclasses
import math
import pickle

import pytest
import torch as th

from sb3_energy.entropy import ENTROPY_ESTIMATORS

each_estimator = pytest.mark.parametrize("name", sorted(ENTROPY_ESTIMATORS))


def uniform_box(batch, dtype=th.float32):
    """Proposals of a flat energy on the box [-1, 1]², drawn from the target itself."""
    return lambda n, uniform_fraction: (
        th.zeros(batch, n, dtype=dtype),
        th.full((batch, n), -2.0 * math.log(2.0), dtype=dtype),
    )


@each_estimator
def test_it_is_a_frozen_value(name):
    estimator = ENTROPY_ESTIMATORS[name]()
    assert dataclasses.is_dataclass(estimator)
    assert pickle.loads(pickle.dumps(estimator)) == estimator
    with pytest.raises(dataclasses.FrozenInstanceError):
        estimator.anything = 1


@each_estimator
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_a_uniform_policy_has_the_volume_s_entropy(name, batch, dtype):
    base_log_prob = th.full((batch, 1), -2.0 * math.log(2.0), dtype=dtype)
    estimate = ENTROPY_ESTIMATORS[name]().log_prob(base_log_prob, uniform_box(batch, dtype))
    assert estimate.shape == (batch, 1) and estimate.dtype == dtype
    th.testing.assert_close(estimate, base_log_prob)


@each_estimator
def test_it_asks_for_proposals_that_can_be_drawn(name):
    asked = []

    def propose(n, uniform_fraction):
        asked.append((n, uniform_fraction))
        return uniform_box(3)(n, uniform_fraction)

    ENTROPY_ESTIMATORS[name]().log_prob(th.zeros(3, 1), propose)
    assert len(asked) <= 1
    assert all(isinstance(n, int) and n >= 1 and 0.0 <= fraction <= 1.0 for n, fraction in asked)
