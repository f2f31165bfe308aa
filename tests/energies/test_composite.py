"""Sums of energies: closed forms, operators, what they are made of, and policies that follow them."""

import math
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.logger import KVWriter, Logger

from sb3_energy import PGAC, EnergySAC
from sb3_energy.autodiff import energy_and_grad, gradient_of
from sb3_energy.energies import (
    ENERGIES,
    Composite,
    FunctionEnergy,
    GuidedPotential,
    PotentialEnergy,
    QEnergy,
    Summable,
    is_finite_energy,
)
from sb3_energy.refiners import Langevin, refine
from sb3_energy.schedules import LinearRamp
from sb3_energy.types import Target
from tests.energies.own_energies import Weighted, detached, keeps_last, nan, quadratic, through_numpy

SMALL = dict(learning_starts=20, batch_size=16, buffer_size=200, seed=0, device="cpu")
POLICY = dict(net_arch=[16], n_particles=4, refiner_steps=2)
OBS = np.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]], np.float32)


def make(energy, algorithm=EnergySAC, energy_kwargs=None, **kwargs):
    policy_kwargs = POLICY | dict(energy=energy, energy_kwargs=energy_kwargs) | kwargs.pop("policy_kwargs", {})
    return algorithm("MlpPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs, **(SMALL | kwargs))


def gaussian(observations, actions, mean=0.0, std=1.0):
    return (actions - mean).square().sum(-1) / (2.0 * std**2)


def effort(observations, actions):
    return actions.square().sum(-1)


def infinite_above(observations, actions, limit=0.0, above=True):
    outside = actions[..., 0] > limit if above else actions[..., 0] <= limit
    return th.where(outside, math.inf, 0.0 * actions[..., 0])


def nan_later(observations, actions):
    return th.where(observations[:, None, 2] > 0.5, math.nan, 0.0) + actions.square().sum(-1)


# Closed forms


@pytest.mark.parametrize("weights", [(1.0, 1.0), (2.0, 0.5)])
def test_a_sum_is_the_product_of_gaussians(weights):
    means, stds = (0.8, -0.4), (0.5, 0.9)
    parts = [FunctionEnergy(gaussian, dict(mean=mean, std=std)) for mean, std in zip(means, stds, strict=True)]
    total = weights[0] * parts[0] + weights[1] * parts[1]
    precisions = [weight / std**2 for weight, std in zip(weights, stds, strict=True)]
    mean = sum(p * m for p, m in zip(precisions, means, strict=True)) / sum(precisions)
    std = sum(precisions) ** -0.5
    x = th.linspace(-3.0, 3.0, 601, dtype=th.float64).reshape(1, -1, 1)
    fn = total.bind(None, th.zeros(1, 1))
    density = (-fn(x)).softmax(dim=1)
    expected = (-gaussian(None, x, mean, std)).softmax(dim=1)
    th.testing.assert_close(density, expected, rtol=0, atol=1e-12)
    generator = th.Generator().manual_seed(0)
    starts = th.randn(1, 20_000, 1, generator=generator)
    ends = refine(Langevin(0.1 * std**2), starts, Target(fn), n_steps=150, generator=generator).particles
    assert ends.mean().item() == pytest.approx(mean, abs=0.02) and ends.std().item() == pytest.approx(std, rel=0.03)


def cubic(weight, actions):
    return weight * actions.pow(3).sum(-1)


@gradient_of(cubic)
def cubic_by_hand(weight, actions):
    calls.append(1)
    return weight * actions.pow(3).sum(-1), 3.0 * weight * actions.square()


calls: list[int] = []


@dataclass(frozen=True)
class Cubic:
    weight: float = 1.0

    def bind(self, networks, obs):
        return partial(cubic, self.weight)


def test_the_gradient_is_the_sum_of_the_terms_own_rules():
    actions = th.randn(2, 3, 2, generator=th.Generator().manual_seed(0), dtype=th.float64)
    fn = (FunctionEnergy(gaussian) + 0.5 * Composite((Cubic(2.0),))).bind(None, th.zeros(2, 3))
    calls.clear()
    energies, gradients = energy_and_grad(fn, actions)
    assert calls and not gradients.requires_grad
    th.testing.assert_close(gradients, actions + 3.0 * actions.square())
    th.testing.assert_close(energies, fn(actions))
    by_autograd = energy_and_grad(fn, actions, create_graph=True)[1]
    assert by_autograd.requires_grad
    th.testing.assert_close(by_autograd.detach(), gradients)


# Operators


def test_operators_make_the_same_as_the_constructor():
    cost = FunctionEnergy(effort)
    made = QEnergy() + 0.1 * cost
    assert made == Composite(terms=("q", effort), weights=(1.0, 0.1)) == Composite([QEnergy, cost], [1, np.float64(0.1)])
    assert made.terms == (QEnergy(), cost) and made.weights == (1.0, 0.1)
    assert (effort + QEnergy()).terms == (cost, QEnergy())
    assert np.float64(0.5) * QEnergy() == QEnergy() * 0.5 == Composite(("q",), (0.5,))
    assert Composite() == Composite(("q",)) != QEnergy()


def test_sums_of_sums_are_expanded():
    inner = QEnergy() + 0.1 * FunctionEnergy(effort)
    assert 2.0 * inner == Composite(("q", effort), (2.0, 0.2))
    assert inner + inner * 2.0 == Composite(("q", effort, "q", effort), (1.0, 0.1, 2.0, 0.2))
    assert list((inner + inner).named()) == ["q", "effort", "q_2", "effort_2"]


def test_terms_take_arguments_and_names_of_the_users_own(monkeypatch):
    monkeypatch.setitem(ENERGIES, "mine", Weighted)
    terms = [("q", dict(aggregate="min")), ["mine", {}], (gaussian, dict(std=2.0)), Cubic, Weighted()]
    made = Composite(terms)
    assert made.terms[0] == QEnergy("min") and made.terms[2] == FunctionEnergy(gaussian, dict(std=2.0))
    assert [type(term) for term in made.terms] == [QEnergy, Weighted, FunctionEnergy, Cubic, Weighted]
    assert list(made.named()) == ["q", "mine", "gaussian", "Cubic", "mine_2"]


@dataclass(frozen=True)
class OwnSummable(Summable):
    def bind(self, networks, obs):
        return partial(cubic, 1.0)


def test_a_users_class_gets_the_operators():
    assert (3.0 * OwnSummable() + "q").terms == (OwnSummable(), QEnergy())


def goal(observations, actions):
    return actions.square().sum(-1)


def goal_2(observations, actions):
    return actions.abs().sum(-1)


@pytest.mark.parametrize(
    ("terms", "names"),
    [
        ((goal, goal), ["goal", "goal_2"]),
        ((goal, goal_2, goal), ["goal", "goal_2", "goal_3"]),
        ((goal_2, goal), ["goal_2", "goal"]),
        ((goal_2, goal, goal), ["goal_2", "goal", "goal_3"]),
    ],
)
def test_names_of_terms_are_unique_and_no_term_is_lost(terms, names):
    energy = Composite(terms)
    assert list(energy.named()) == names and tuple(term.function for term in energy.named().values()) == terms


def test_a_term_of_weight_0_is_not_evaluated():
    fn = Composite((effort, nan), (1.0, 0.0)).bind(None, th.zeros(1, 3))
    assert th.isfinite(fn(th.zeros(1, 2, 1))).all()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (dict(terms=()), TypeError, "terms must be a list of at least one energy"),
        (dict(terms="q"), TypeError, "terms must be a list of at least one energy, got 'q'"),
        (dict(terms=("q", "w")), ValueError, r"energy must be one of \['composite', 'guided_potential'"),
        (dict(terms=(3,)), TypeError, "energy must be one of"),
        (dict(terms=(lambda observations, actions: 0,)), TypeError, "cannot be pickled"),
        (dict(terms=(("q", dict(agregate="min")),)), TypeError, "aggregate"),
        (dict(terms=((QEnergy(), dict(aggregate="min")),)), TypeError, "energy_kwargs are arguments of a name"),
        (dict(weights=(1.0, 2.0)), ValueError, "weights must be a list of 1 numbers"),
        (dict(weights=2.0), ValueError, "weights must be a list of 1 numbers"),
        (dict(weights=(math.nan,)), ValueError, "weights must be finite"),
        (dict(weights=("1",)), TypeError, "weights must be a number"),
        (dict(weights=(0.0,)), ValueError, "weights must not all be 0"),
        (dict(weights=(LinearRamp(),)), TypeError, "weights must be numbers, .* a refinement draws from one energy"),
        (dict(terms=("potential", "guided_potential")), ValueError, "at most one term may be made of the potential"),
        (dict(terms=("potential",), weights=(-1.0,)), ValueError, "with a weight above 0"),
    ],
)
def test_wrong_sums_raise(arguments, error, words):
    with pytest.raises(error, match=words):
        Composite(**arguments)
    with pytest.raises(TypeError, match="a refinement draws from one energy"):
        LinearRamp() * QEnergy()


# What it is made of


def test_what_pgac_reads_is_the_potentials():
    made = 2.0 * GuidedPotential(guidance=3.0, temperature=0.4, aggregate="min") + FunctionEnergy(effort)
    assert made.needs_potential and made.temperature == 0.2 and made.guidance == 3.0 and made.aggregate == "min"
    assert not hasattr(PotentialEnergy() + effort, "guidance")
    assert not (QEnergy() + effort).needs_potential and not hasattr(QEnergy() + effort, "temperature")
    assert is_finite_energy(2.0 * QEnergy() + PotentialEnergy()) and not is_finite_energy(QEnergy() + effort)
    assert pickle.loads(pickle.dumps(made)) == made


def test_starts_are_chosen_by_the_guidance_of_a_potential():
    model = make(GuidedPotential() + FunctionEnergy(effort), PGAC)
    obs = th.as_tensor(OBS)
    networks, actions = model.policy.networks(), th.rand(2, 5, 1)
    bound = model.policy.energy.bind(networks, obs)
    alone = GuidedPotential().bind(networks, obs).of_starts()
    th.testing.assert_close(bound.of_starts()(actions), alone(actions) + effort(obs, actions))
    assert model.policy.epsilon == 0.1


# Policies


@pytest.mark.parametrize("name", ["terms", "operators", "registry"])
def test_it_learns_is_saved_and_loaded(name, tmp_path):
    given = dict(
        terms=(Composite, dict(terms=["q", effort], weights=[1.0, 0.1])),
        operators=(QEnergy() + 0.1 * FunctionEnergy(effort), None),
        registry=("composite", dict(terms=("q", effort), weights=(1.0, 0.1))),
    )[name]
    model = make(given[0], energy_kwargs=given[1]).learn(25)
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy.pth")
    for policy in (EnergySAC.load(tmp_path / "model").policy, type(model.policy).load(tmp_path / "policy.pth")):
        assert policy.energy == QEnergy() + 0.1 * FunctionEnergy(effort)
        np.testing.assert_array_equal(policy.predict(OBS, deterministic=True)[0], model.predict(OBS, deterministic=True)[0])


def test_one_critic_alone_is_the_critic():
    plain, composed = make("q").learn(30), make(1.0 * QEnergy()).learn(30)
    for name, value in plain.policy.state_dict().items():
        th.testing.assert_close(value, composed.policy.state_dict()[name], msg=name)


def test_actions_go_where_the_sum_is_low():
    energy = Composite([(gaussian, dict(mean=0.9, std=0.3)), (gaussian, dict(mean=-0.3, std=0.3))])
    model = make(energy, policy_kwargs=dict(refiner_steps=30, n_particles=32), ent_coef=0.01)
    np.testing.assert_allclose(model.predict(OBS, deterministic=True)[0] / 2.0, 0.3, atol=0.05)


def test_pgac_takes_a_sum_with_its_potential(tmp_path):
    model = make(PotentialEnergy(0.2) + 0.5 * FunctionEnergy(effort), PGAC).learn(25)
    model.save(tmp_path / "model")
    assert PGAC.load(tmp_path / "model").policy.energy == model.policy.energy
    with pytest.raises(ValueError, match="energy must be made of the potential"):
        make(QEnergy() + effort, PGAC)
    with pytest.raises(ValueError, match="needs a potential, which the policies of PGAC have"):
        make(PotentialEnergy() + effort)


@pytest.mark.parametrize(
    ("term", "error", "words"),
    [
        (detached, ValueError, "energy=detached has no gradient with respect to the actions"),
        (through_numpy, ValueError, "energy=through_numpy has no gradient"),
        (keeps_last, ValueError, r"energy=keeps_last must return one number for each action, .* got \(2, 3, 1\)"),
        (nan, ValueError, "energy=nan must be finite, got nan"),
    ],
)
def test_the_error_names_the_term(term, error, words):
    with pytest.raises(error, match=words):
        make(QEnergy() + 0.1 * FunctionEnergy(effort) + term)


def test_without_gradients_a_term_needs_none():
    make(QEnergy() + through_numpy, policy_kwargs=dict(refiner="mppi")).learn(25)


def test_terms_that_forbid_everything_together():
    first, second = (FunctionEnergy(infinite_above, dict(above=above)) for above in (True, False))
    make(QEnergy() + first, policy_kwargs=dict(refiner="mppi"))
    with pytest.raises(ValueError, match="energy=Composite must be finite, got inf"):
        make(first + second, policy_kwargs=dict(refiner="mppi"))


def test_nan_in_training_names_the_term():
    model = make(QEnergy() + nan_later)
    with pytest.raises(FloatingPointError, match="energy=nan_later returned NaN or infinity"):
        model.predict(np.array([[0.0, 0.0, 1.0]], np.float32))
    model = make(QEnergy() + nan_later + effort)
    with pytest.raises(FloatingPointError, match="energy=nan_later or effort returned NaN or infinity"):
        model.predict(np.array([[0.0, 0.0, 1.0]], np.float32))


def test_the_means_of_the_terms_add_up_to_the_sums():
    model = make(QEnergy() + 0.1 * FunctionEnergy(effort))
    actions = th.tensor([[[0.5]], [[-1.0]]])
    energy = model.policy.energy.bind(model.policy.networks(), th.as_tensor(OBS))
    means = energy.means(actions)
    assert set(means) == {"q", "effort"} and means["effort"].item() == pytest.approx(0.1 * (0.25 + 1.0) / 2.0)
    assert sum(means.values()).item() == pytest.approx(energy(actions).mean().item(), rel=1e-5)


class Lines(KVWriter):
    def __init__(self):
        self.found = {}

    def write(self, key_values, key_excluded, step=0):
        self.found |= key_values

    def close(self):
        pass


def test_the_terms_are_logged_by_name():
    model, output = make(QEnergy() + 0.1 * FunctionEnergy(effort)), Lines()
    model.set_logger(Logger(None, [output]))
    model.learn(45)
    model.dump_logs()
    assert math.isfinite(output.found["train/energy_q"]) and 0.0 < output.found["train/energy_effort"] <= 0.1


@pytest.mark.parametrize(
    "given",
    [
        "energy=QEnergy() + 5.0 * FunctionEnergy(downhill)",
        "energy='composite', energy_kwargs=dict(terms=['q', downhill], weights=[1.0, 5.0])",
    ],
)
def test_a_scripts_own_terms_come_back_in_the_script_and_elsewhere(given, tmp_path):
    script, path = tmp_path / "script.py", tmp_path / "model.zip"
    source = Path(__file__).with_name("scripts_energy.py").read_text()
    source = source.replace("import EnergySAC", "import EnergySAC\nfrom sb3_energy.energies import FunctionEnergy, QEnergy")
    script.write_text(source.replace("energy=downhill", given))
    env = os.environ | dict(PYTHONPATH=str(Path(__file__).parents[2]))
    done = subprocess.run([sys.executable, script, path], capture_output=True, text=True, check=True, env=env)
    loaded = EnergySAC.load(path, device="cpu")
    action, _ = loaded.predict(np.zeros(3, np.float32), deterministic=True)
    np.testing.assert_allclose(action, float(done.stdout), rtol=1e-5)


def test_a_tolerance_binds_sums_again():
    model = make(QEnergy() + quadratic, policy_kwargs=dict(tolerance=1e-3, refiner_steps=5)).learn(25)
    model.predict(np.zeros((5, 3), np.float32), deterministic=True)


@dataclass(frozen=True)
class Stateless:
    needs_potential: ClassVar[bool] = True

    def bind(self, networks, obs):
        return networks.potential.bind(networks.critic.encode(obs))


def test_a_potential_without_a_temperature_has_1():
    assert Composite((Stateless,), (4.0,)).temperature == 0.25


@pytest.mark.parametrize("guidance, expected", [(2.0, 1.0 / (3.0 + 0.5 * 2.0 / (0.1 * 4.0))), (0.0, 1.0 / 3.0)])
def test_the_temperature_of_q_counts_terms_of_the_critic_alone(guidance, expected):
    """``exp(-U / (ε / w) + 3 Q)`` has ``1 / T = w λ / (ε spread) + 3``."""
    energy = 0.5 * GuidedPotential(guidance=guidance, temperature=0.1) + 3.0 * QEnergy()
    assert float(energy.temperature_of_q(th.tensor(4.0))) == pytest.approx(expected)
    alone = Composite((GuidedPotential(guidance=guidance, temperature=0.1),), (0.5,))
    assert float(alone.temperature_of_q(th.tensor(4.0))) == pytest.approx(0.1 * 4.0 / (guidance or 1.0) / 0.5)
