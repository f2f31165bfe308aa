"""The entropy by annealed sequential Monte Carlo, against quadrature."""

from functools import partial

import pytest
import torch as th

from benchmarks.wells import Wells
from sb3_energy.entropy import AnnealedEntropy, SoftValueEntropy, soft_value
from sb3_energy.refinement.arguments import RefinementArguments
from sb3_energy.types import EntropyContext
from tests.entropy.policies import ENERGIES, _propose, covering
from tests.laws import entropy


def context(base, energy, temperature=1.0, **refinement):
    way = RefinementArguments(**refinement).make_refinement()
    return EntropyContext(
        th.zeros(len(base.mean), 1),
        partial(_propose, base, energy),
        lambda n_chains: pytest.fail("no chains of the policy's own refiner are needed"),
        anneal=lambda n: way.annealed(n).simulate(base, energy, temperature),
    )


@pytest.mark.parametrize("dimension", [1, 2])
@pytest.mark.parametrize("refinement", [{}, dict(box="reflect"), dict(refiner="flow"), dict(precondition=False)])
def test_it_matches_quadrature_whatever_the_refiner_and_the_box(dimension, refinement):
    th.manual_seed(0)
    found = AnnealedEntropy().estimate(context(covering(dimension, 1000), ENERGIES[dimension], **refinement))
    assert -found.log_prob.mean().item() == pytest.approx(entropy(ENERGIES[dimension], dimension), abs=0.05)


def test_it_is_right_in_six_dimensions_where_importance_sampling_is_not():
    wells = Wells([0.6, -0.6], 0.1, [2.0, 1.0])
    th.manual_seed(0)
    asked = context(wells.base(200, 6, std=0.3), wells)
    found = AnnealedEntropy().estimate(asked)
    assert -found.log_prob.mean().item() == pytest.approx(6 * wells.entropy, abs=0.4)
    assert (found.records["entropy_n_rungs"] >= 2.0).all() and (found.records["entropy_effective_sample_size"] > 8.0).all()
    sixteen = SoftValueEntropy(16).estimate(asked)
    assert sixteen.records["entropy_effective_sample_size"].mean() < 4.0
    assert soft_value(*asked.propose(16, 0.5)).log_normalizer.mean() < 6 * wells.log_normalizer - 1.0


def test_an_effective_sample_size_sees_only_what_was_proposed():
    """The base fits the heavier mode, and sixteen proposals find no other: a good number, and a wrong estimate."""
    wells = Wells([0.6, -0.6], 0.1, [2.0, 1.0])
    th.manual_seed(0)
    found = soft_value(*context(wells.base(500, 6), wells).propose(16, 0.5))
    assert found.effective_sample_size.mean().item() == pytest.approx(6.0, abs=0.5)
    assert found.log_normalizer.mean() < 6 * wells.log_normalizer - 1.0


def test_it_is_the_entropy_at_the_temperature():
    th.manual_seed(0)
    energy = ENERGIES[1]
    found = AnnealedEntropy().estimate(context(covering(1, 1000), energy, temperature=3.0))
    exact = entropy(lambda a: energy(a) / 3.0, 1)
    assert abs(exact - entropy(energy, 1)) > 0.05
    assert -found.log_prob.mean().item() == pytest.approx(exact, abs=0.03)


def test_it_needs_particles_to_anneal():
    with pytest.raises(ValueError, match=r"entropy_estimator='smc' needs EntropyContext\.anneal, .*, got None"):
        AnnealedEntropy().estimate(EntropyContext(th.zeros(1, 1), lambda n, f: None, lambda n: None))


@pytest.mark.parametrize("name", ["n_particles", "n_steps", "moves"])
def test_its_numbers_are_checked(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        AnnealedEntropy(**{name: 0})
