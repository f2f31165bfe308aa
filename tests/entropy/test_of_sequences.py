"""Entropies of refiners in sequence: which estimators are valid follows from the members, and those that are are right."""

import pytest
import torch as th

from sb3_energy.entropy import (
    ENTROPY_ESTIMATORS,
    BaseEntropy,
    MixtureEntropy,
    PathEntropy,
    TraceEntropy,
)
from sb3_energy.networks import FieldNetwork
from sb3_energy.refinement.estimators import choose_estimator, valid_estimators
from sb3_energy.refiners import REFINERS, Flow, Langevin, RefinerSequence, SteinVariationalGradientDescent
from sb3_energy.types import Head
from tests.entropy.policies import N_FEATURES, Setting, refinement_of, taught_head
from tests.laws import knn_entropy_on_box

CHAIN = ["base", "soft_value", "smc"]
VALID = {
    ("flow", "langevin"): [*CHAIN, "mixture"],
    ("flow", "mala"): CHAIN,
    ("mala", "langevin"): [*CHAIN, "mixture"],
    ("langevin", "mala"): CHAIN,
    ("langevin", "langevin"): [*CHAIN, "mixture", "path"],
    ("flow", "svgd"): CHAIN,
    ("svgd", "svgd"): [*CHAIN, "trace"],
    ("svgd", "langevin"): CHAIN,
    ("snis", "langevin"): CHAIN,
    ("mppi", "langevin"): CHAIN,
    ("langevin", "mppi"): ["base"],
    ("flow", "derivative_free"): ["base"],
}


@pytest.mark.parametrize("names", VALID, ids=" ".join)
def test_what_is_valid_follows_from_the_members(names):
    made = refinement_of(list(names))
    assert valid_estimators(made.refiner) == VALID[names]
    assert type(choose_estimator(None, None, made)).__name__ == "BaseEntropy"
    with pytest.raises(ValueError, match=r"entropy_estimator must be one of .* with \w+ and \w+, got 'divergence'"):
        choose_estimator("divergence", None, made)


@pytest.mark.parametrize("name", sorted(REFINERS))
def test_of_a_single_refiner_it_is_what_it_lists(name):
    assert valid_estimators(REFINERS[name]()) == valid_estimators(REFINERS[name]) == list(REFINERS[name].estimators)


def test_noise_must_be_whole_where_a_density_follows_it():
    half = dict(refiner_kwargs=[dict(noise_scale=0.5), None], n_particles=1)
    assert type(choose_estimator("mixture", None, refinement_of(["langevin", "langevin"], **half))) is MixtureEntropy
    with pytest.raises(ValueError, match=r"'path' needs steps with noise_scale=1, got 0\.5"):
        choose_estimator("path", None, refinement_of(["langevin", "langevin"], **half))
    last = dict(refiner_kwargs=[None, dict(noise_scale=0.5)], n_particles=1)
    with pytest.raises(ValueError, match=r"'mixture' needs steps with noise_scale=1, got 0\.5"):
        choose_estimator("mixture", None, refinement_of(["langevin", "langevin"], **last))


def halves(refiner, **kwargs):
    """A refiner in two turns, and its steps in one."""
    both = dict(refiner_kwargs=[kwargs, kwargs], refiner_steps=[2, 1])
    return refinement_of([refiner, refiner], n_particles=1 if refiner == "langevin" else 8, **both), refinement_of(
        refiner, refiner_kwargs=kwargs, refiner_steps=3, n_particles=1 if refiner == "langevin" else 8
    )


@pytest.mark.parametrize(
    "refiner, estimator", [("langevin", MixtureEntropy(4)), ("langevin", PathEntropy()), ("svgd", TraceEntropy())]
)
def test_two_turns_of_a_refiner_are_estimated_as_its_steps_in_one(refiner, estimator):
    th.manual_seed(0)
    reverse = FieldNetwork(N_FEATURES, 2, 2, [8])
    answers = []
    for made in halves(refiner, step_size=0.1):
        th.manual_seed(1)
        with th.no_grad():
            answers.append(estimator.estimate(Setting(made, 2, reverse=reverse).context(6)).log_prob)
    th.testing.assert_close(*answers)


class Known(th.nn.Module):
    """A velocity in closed form, from the base at .693 with .39 to a Gaussian at 0 with .8, along straight lines."""

    def bind(self, features):
        return Head(velocity=self.velocity)

    @staticmethod
    def velocity(x, t):
        t = t.unsqueeze(-1)
        mean, std = (1.0 - t) * 0.693, ((1.0 - t) * 0.39 + t * 0.8)
        return -0.693 + (0.8 - 0.39) * (x - mean) / std


def test_the_bounds_hold_the_entropy_of_chains_after_a_flow():
    th.manual_seed(0)
    policy = Setting(refinement_of(["flow", "langevin"], refiner_kwargs=[None, dict(step_size=0.1)]), 1, Known())
    truth = knn_entropy_on_box(policy.latent(20_000))
    estimate, records = policy.estimate(MixtureEntropy(), 300, chunk=100)
    assert records["entropy_lower"] < truth < records["entropy_upper"]
    assert estimate == pytest.approx(truth, abs=0.1)


BIASES = [("base", 1, -0.66), ("base", 2, -1.30), ("soft_value", 1, -0.02), ("soft_value", 2, -0.05)]


@pytest.mark.parametrize("name, dimension, bias", BIASES)
def test_the_bias_after_a_learned_flow_and_a_chain_is_what_the_page_says(name, dimension, bias):
    policy = Setting(refinement_of(["flow", "mala"]), dimension, taught_head("flow", dimension))
    th.manual_seed(1)
    truth = knn_entropy_on_box(policy.latent(20_000))
    estimate, _ = policy.estimate(ENTROPY_ESTIMATORS[name](), 20_000, chunk=5000)
    assert estimate - truth == pytest.approx(bias, abs=0.06)


def test_an_estimator_of_one_s_own_is_valid_if_it_names_all_members(monkeypatch):
    class OfBoth(BaseEntropy):
        refiners = ("flow", Langevin)

    monkeypatch.setitem(ENTROPY_ESTIMATORS, "of_both", OfBoth)
    assert "of_both" in valid_estimators(RefinerSequence((Flow(), Langevin()), (1, 1)))
    assert "of_both" not in valid_estimators(RefinerSequence((Flow(), SteinVariationalGradientDescent()), (1, 1)))
