"""One test over the whole registry: a new estimator is tested by its line in ``ENTROPY_ESTIMATORS``."""

import dataclasses
import pickle

import pytest
import torch as th

from sb3_energy.entropy import ENTROPY_ESTIMATORS
from sb3_energy.networks import FieldNetwork
from sb3_energy.policies.heads import HEADS
from sb3_energy.refinement.estimators import choose_estimator, valid_estimators
from sb3_energy.refiners import REFINERS
from sb3_energy.types import EntropyContext
from tests.entropy.policies import N_FEATURES, Setting, covering, refinement_of

each_estimator = pytest.mark.parametrize("name", sorted(ENTROPY_ESTIMATORS))
each_refiner = pytest.mark.parametrize("refiner", sorted(REFINERS))

SETTINGS = {"path": dict(n_particles=1)}
"""What an estimator needs beside a valid refiner."""


def valid_refiner(name):
    """The first refiner for whose particles an estimator is valid, one with noise if there is one."""
    return next(refiner for refiner, cls in REFINERS.items() if name in valid_estimators(cls) and refiner != "none")


def setting_of(name, dimension=2):
    """A small policy whose entropy the estimator can say, with networks that were not taught."""
    refiner = valid_refiner(name)
    refinement = refinement_of(refiner, **(dict(n_particles=4) | SETTINGS.get(name, {})))
    return Setting(refinement, dimension, _head(refiner, dimension), FieldNetwork(N_FEATURES, dimension, dimension, [8]))


def _head(refiner, dimension):
    field = REFINERS[refiner].head
    return None if field is None else HEADS[field](N_FEATURES, dimension, net_arch=[8])


def estimated(name, context):
    with th.no_grad():
        return ENTROPY_ESTIMATORS[name]().estimate(context)


@each_estimator
def test_it_is_a_frozen_value(name):
    estimator = ENTROPY_ESTIMATORS[name]()
    assert dataclasses.is_dataclass(estimator)
    assert pickle.loads(pickle.dumps(estimator)) == estimator
    with pytest.raises(dataclasses.FrozenInstanceError):
        estimator.anything = 1


@each_estimator
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("dimension", [1, 2])
def test_it_answers_once_for_each_observation(name, batch, dimension):
    th.manual_seed(0)
    found = estimated(name, setting_of(name, dimension).context(batch))
    assert found.log_prob.shape == (batch, 1) and th.isfinite(found.log_prob).all() and not found.log_prob.requires_grad
    for record, values in (found.records or {}).items():
        assert record.startswith("entropy_") and values.shape == (batch,) and th.isfinite(values).all()
    assert found.loss is None or (found.loss.shape == () and found.loss.requires_grad)
    assert (found.loss is not None) == getattr(ENTROPY_ESTIMATORS[name], "learns_reverse", False)


@each_estimator
@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_it_answers_in_the_numbers_it_was_asked_in(name, dtype):
    th.manual_seed(0)
    setting = setting_of(name)
    for module in (setting.head, setting.reverse):
        if module is not None:
            module.to(dtype)
    assert estimated(name, setting.context(3, dtype)).log_prob.dtype == dtype


@each_estimator
def test_observations_do_not_mix(name):
    """The context of two observations, of which the second becomes another one: the first one's answer stays."""
    th.manual_seed(0)
    setting = setting_of(name)
    base = covering(2, 2)
    answers = []
    for mean in (0.693, -1.5):
        moved = base._replace(mean=th.tensor([[0.693, 0.693], [mean, mean]]))
        th.manual_seed(1)
        answers.append(estimated(name, setting.context(2, base=moved)).log_prob)
    assert th.equal(answers[0][0], answers[1][0])
    assert name == "base" or not th.equal(answers[0][1], answers[1][1])


@each_estimator
def test_it_asks_for_what_can_be_had(name):
    asked, context = [], setting_of(name).context(3)

    def propose(n, uniform_fraction):
        assert isinstance(n, int) and n >= 1 and 0.0 <= uniform_fraction <= 1.0
        asked.append("proposals")
        return context.propose(n, uniform_fraction)

    def simulate(n_chains):
        assert isinstance(n_chains, int) and n_chains >= 1
        asked.append("chains")
        return context.simulate(n_chains)

    def anneal(n_particles):
        assert isinstance(n_particles, int) and n_particles >= 1
        asked.append("particles to anneal")
        return context.anneal(n_particles)

    estimated(name, EntropyContext(context.base_log_prob, propose, simulate, context.reverse, anneal))
    assert set(asked) == {"base": set(), "soft_value": {"proposals"}, "smc": {"particles to anneal"}}.get(name, {"chains"})
    assert len(asked) <= 1 or name == "soft_value"


@each_refiner
def test_a_refiner_s_estimators_are_in_the_registry(refiner):
    cls = REFINERS[refiner]
    assert cls.estimators and set(cls.estimators) <= set(ENTROPY_ESTIMATORS)
    assert len(set(cls.estimators)) == len(cls.estimators) and "base" in cls.estimators


@each_refiner
def test_a_refiner_s_first_estimator_is_valid_with_its_defaults(refiner):
    refinement = refinement_of(refiner)
    default = choose_estimator(None, None, refinement)
    assert type(default) is ENTROPY_ESTIMATORS[REFINERS[refiner].estimators[0]]


@each_refiner
@each_estimator
def test_a_pair_is_valid_as_the_refiner_says_it_is(refiner, name):
    refinement = refinement_of(refiner, **SETTINGS.get(name, {}))
    if name in valid_estimators(REFINERS[refiner]):
        assert type(choose_estimator(name, None, refinement)) is ENTROPY_ESTIMATORS[name]
        return
    with pytest.raises(ValueError) as caught:
        choose_estimator(name, None, refinement)
    valid = valid_estimators(REFINERS[refiner])
    expected = f"entropy_estimator must be one of {valid} with {REFINERS[refiner].__name__}, got {name!r}"
    assert str(caught.value) == expected
