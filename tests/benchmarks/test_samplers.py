"""The gallery: its targets against quadrature and draws, its counters, its files."""

import csv
import math

import pytest
import torch as th

from benchmarks import sampler_costs, sampler_critic, sampler_draws, sampler_entropies, samplers
from benchmarks.sampler_targets import (
    FOUR_GOALS_ALPHA,
    CellProbabilities,
    correlated,
    flat,
    four_goals,
    four_modes,
    ring,
    targets,
)
from benchmarks.speed_models import Noise
from sb3_energy import EnergySAC
from sb3_energy.envs.soft_values import soft_value_iteration
from sb3_energy.policies.heads import HEADS
from sb3_energy.refiners import REFINERS


@pytest.mark.parametrize("name", sorted(targets()))
def test_exact_draws_have_the_cells_probabilities(name):
    cells = CellProbabilities(targets()[name])
    assert float(cells.probabilities.sum()) == pytest.approx(1.0)
    draws = cells.exact_draws(100_000, th.Generator().manual_seed(0))
    assert cells.total_variation(draws) < 0.03
    assert cells.total_variation(-0.3 * draws.abs()) > 0.3


def test_known_entropies():
    assert CellProbabilities(flat).entropy == pytest.approx(2.0 * math.log(2.0), abs=1e-6)
    four_thin = math.log(4.0) + math.log(2.0 * math.pi * math.e * 0.075**2)  # they do not overlap, nor reach the walls
    assert CellProbabilities(four_modes(0.5)).entropy == pytest.approx(four_thin, abs=2e-3)
    gaussian = math.log(2.0 * math.pi * math.e * 0.3**2 * math.sqrt(1.0 - 0.8**2))
    assert CellProbabilities(correlated).entropy == pytest.approx(gaussian, abs=0.02)


def test_four_goals_is_the_environment_s_exact_energy():
    exact = soft_value_iteration(FOUR_GOALS_ALPHA, n_states=57, n_actions=21)
    actions = 2.0 * th.rand((1, 50, 2), generator=th.Generator().manual_seed(0)) - 1.0
    expected = th.as_tensor(-exact.q_value(th.zeros(2).numpy(), actions[0].numpy()) / FOUR_GOALS_ALPHA)
    found = four_goals()(actions)[0].double()
    th.testing.assert_close(found - found.mean(), expected - expected.mean(), rtol=0, atol=0.05)


def test_the_fitted_base_settles_on_a_mode_with_its_width():
    base = sampler_draws.fitted_base(four_modes(0.5))
    centre = th.tanh(base.mean)
    assert (centre - th.tensor([[0.6, 0.0]])).abs().max() < 0.05
    width = base.std * (1.0 - centre.square())
    assert (width / 0.075 - 1.0).abs().max() < 0.15


def test_the_trained_critic_has_four_modes_at_the_goals():
    cells = CellProbabilities(targets()["trained critic"])
    draws = cells.exact_draws(20_000, th.Generator().manual_seed(0))
    goals = th.tensor([(1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0)])
    nearest = th.cdist(draws, goals).min(dim=1)
    assert th.bincount(nearest.indices, minlength=4).min() > 1_000  # of 20 000
    assert (nearest.values < 0.5).double().mean() > 0.95
    assert cells.entropy < 0.5


@pytest.mark.parametrize("value_scale, sigma", [("auto", 0.3), ("none", 1.0)])
def test_a_critic_is_read_as_it_was_written(tmp_path, value_scale, sigma):
    kwargs = dict(policy_kwargs=dict(net_arch=[8, 8], backbone="plain", value_scale=value_scale), ent_coef=0.3, device="cpu")
    model = EnergySAC("MlpPolicy", "MultiGoal-v0", **kwargs)
    assert model.critic.scaled(th.ones(())) == th.tensor(sigma), "what its values are in units of"
    sampler_critic.save(model, tmp_path / "critic.npz")
    actions = 2.0 * th.rand((3, 5, 2), generator=th.Generator().manual_seed(0)) - 1.0
    expected = model.policy.energy_fn(th.zeros(3, 2))(actions) / (sampler_critic.ALPHA * sampler_critic.REWARD_SCALE)
    th.testing.assert_close(sampler_critic.trained_critic(tmp_path / "critic.npz")(actions), expected)


def problem_of(energy, n_updates=1, fields=()):
    base = sampler_draws.fitted_base(energy, n_updates=200)
    heads = {field: sampler_draws.fitted_head(field, energy, base, n_updates) for field in fields}
    return sampler_draws.Problem(energy, CellProbabilities(energy), base, heads)


@pytest.mark.parametrize(
    "name, energies, gradients, heads",
    [
        ("langevin", 129, 3, 0),
        ("mala", 128, 4, 0),
        ("hmc", 128, 9, 0),
        ("snis", 128, 0, 0),
        ("autoregressive_derivative_free", 64 + 3 * 64, 0, 3 * 64),
        ("flow", 0, 0, 8),
        ("mean_flow", 0, 0, 1),
    ],
)
def test_evaluations_are_counted(name, energies, gradients, heads):
    counts, problem = sampler_draws.Counts(), problem_of(flat, fields=HEADS)
    sampler_draws.draws_of(sampler_draws.make(name), problem, 10, seed=0, counts=counts)
    assert (counts.energies, counts.gradients, counts.heads) == (10 * energies, 10 * gradients, 10 * heads)


def test_a_trained_flow_is_nearer_to_the_truth_than_its_base():
    problem = problem_of(ring, n_updates=200, fields=["velocity"])
    variation = {
        name: problem.cells.total_variation(sampler_draws.draws_of(sampler_draws.make(name), problem, 5_000, seed=0))
        for name in ("none", "flow")
    }
    assert variation["flow"] < 0.7 * variation["none"]


@pytest.mark.parametrize("name", ["flat", "correlated Gaussian", "ring"])
def test_neighbours_know_the_entropy(name):
    cells = CellProbabilities(targets()[name])
    draws = cells.exact_draws(20_000, th.Generator().manual_seed(0))
    assert sampler_entropies.entropy_of(draws) == pytest.approx(cells.entropy, abs=0.04)


def test_every_valid_estimator_is_asked_once():
    found = {(question.refiner, question.label) for question in sampler_entropies.asked(sampler_draws.refinements(2))}
    expected = {(name, estimator) for name, cls in REFINERS.items() for estimator in cls.estimators}
    expected = expected - {("langevin", "path")} | {("langevin, 1 particle", "path"), ("mean_flow", "divergence, learned")}
    assert found == expected


def test_the_base_s_own_estimate_is_right_without_refinement_and_the_path_s_after_learning():
    problem = problem_of(correlated)
    made = sampler_draws.refinements(2)
    for name, label, tolerance in (("none", "base", 0.05), ("langevin, 1 particle", "path", 0.15)):
        question = next(q for q in sampler_entropies.asked(made) if (q.refiner, q.label) == (name, label))
        draws = sampler_draws.draws_of(question.refinement, problem, 20_000, seed=0)
        estimate = sampler_entropies.estimated(question, problem, repetitions=2_000, n_updates=150)
        assert estimate == pytest.approx(sampler_entropies.entropy_of(draws), abs=tolerance)


def test_memory_is_the_same_each_time_and_grows_with_the_batch():
    model = EnergySAC("MlpPolicy", Noise(), device="cpu", policy_kwargs=dict(refiner="snis", n_particles=16))
    small = sampler_costs.peak_memory(model, batch=4)
    assert small == sampler_costs.peak_memory(model, batch=4)
    assert 0.0 < 2.0 * small < sampler_costs.peak_memory(model, batch=32)


def test_the_command_writes_tables_and_a_picture(tmp_path, capsys):
    small = dict(draws=300, more=2, updates=2, repetitions=10, rounds=1, output=tmp_path)
    samplers.main([part for name, value in small.items() for part in (f"--{name}", str(value))])
    with open(tmp_path / "table.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    made = sampler_draws.refinements(2)
    assert [row["refiner"] for row in rows] == ["exact draws", *made] * len(targets())
    assert tuple(rows[0]) == samplers.COLUMNS and len(made) < 25
    assert all(0.0 < float(row["total_variation"]) <= 1.0 for row in rows)
    assert all(float(row["memory_mb"]) > 0.0 for row in rows if row["refiner"] in REFINERS)
    with open(tmp_path / "entropies.csv", newline="", encoding="utf-8") as file:
        estimates = list(csv.DictReader(file))
    assert len(estimates) == len(targets()) * (4 + len(sampler_entropies.asked(made)))
    assert all(math.isfinite(float(row["error"])) for row in estimates)
    text = (tmp_path / "table.md").read_text()
    assert text in capsys.readouterr().out
    assert "| mean_flow | divergence, learned |" in text and "| langevin, 1 particle | path |" in text
    assert (tmp_path / "gallery.png").read_bytes().startswith(b"\x89PNG")


def test_bad_numbers_are_refused(capsys):
    with pytest.raises(SystemExit):
        samplers.parse(["--draws", "0"])
    assert "--draws must be at least 1, got 0" in capsys.readouterr().err
