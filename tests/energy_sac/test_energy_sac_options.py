"""EnergySAC's own switches do what they say, whatever they are combined with."""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.envs import IdentityEnvBox
from stable_baselines3.common.monitor import Monitor

from sb3_energy import EnergySAC
from sb3_energy.energy_sac.entropy_term import propose
from sb3_energy.networks import BACKBONES
from sb3_energy.refinement.bases import Gaussian
from sb3_energy.refiners import REFINERS
from sb3_energy.types import EntropyContext
from tests.laws import entropy

OBS = np.random.default_rng(0).uniform(-1, 1, size=(6, 3)).astype(np.float32)


def small(policy_kwargs, **kwargs):
    settings = dict(learning_starts=20, batch_size=16, buffer_size=500, seed=0) | kwargs
    return EnergySAC("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(net_arch=[16]) | policy_kwargs, **settings)


@pytest.mark.parametrize("critic", ["scalar", "quantile"])
@pytest.mark.parametrize("refine_target", [False, True])
@pytest.mark.parametrize("refiner", sorted(REFINERS))
def test_refiners_with_critics(tmp_path, refiner, critic, refine_target):
    if refiner == "none" and refine_target:
        pytest.skip("refused: nothing refines")
    model = small(dict(refiner=refiner, critic=critic), refine_target=refine_target).learn(24)
    assert all(th.isfinite(value).all() for value in model.policy.state_dict().values())
    model.save(tmp_path / "model")
    loaded = EnergySAC.load(tmp_path / "model")
    expected, _ = model.predict(OBS, deterministic=True)
    assert np.array_equal(loaded.predict(OBS, deterministic=True)[0], expected)


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
@pytest.mark.parametrize("aggregate", ["mean", "min", "lcb"])
def test_backbones_with_aggregates(backbone, aggregate):
    model = small(dict(backbone=backbone, energy_kwargs=dict(aggregate=aggregate), n_critics=3)).learn(23)
    assert model._n_updates == 3
    assert np.isfinite(model.predict(OBS)[0]).all()


def test_running_normalisation_is_saved(tmp_path):
    model = small(dict(backbone="simba")).learn(40)
    model.save(tmp_path / "model")
    statistics = {name: value for name, value in model.policy.state_dict().items() if "normalizer" in name}
    loaded = EnergySAC.load(tmp_path / "model").policy.state_dict()
    assert statistics and all(th.equal(loaded[name], value) for name, value in statistics.items())


def refinements(model):
    """How many batches of which size are refined during one collected step and during one update."""
    sizes = []
    refine = type(model.policy).refine

    def counted(obs, *args, **kwargs):
        sizes.append(len(obs))
        return refine(model.policy, obs, *args, **kwargs)

    model.policy.refine = counted
    return sizes


@pytest.mark.parametrize("refine_exploration", [True, False])
@pytest.mark.parametrize("refine_target", [True, False])
@pytest.mark.parametrize("distillation_coef", [0.0, 0.3])
def test_what_is_refined(make_model, refine_exploration, refine_target, distillation_coef):
    switches = dict(refine_exploration=refine_exploration, refine_target=refine_target, distillation_coef=distillation_coef)
    model = make_model(**switches).learn(25)
    sizes = refinements(model)
    model.learn(1, reset_num_timesteps=False)
    expected = [1] * refine_exploration + [16] * refine_target + [16] * (distillation_coef > 0)
    assert sizes == expected
    sizes.clear()
    model.predict(OBS)
    assert sizes == [6], "predicting refines, however it was trained"


@pytest.mark.parametrize(
    "refiner, update_particles, expected", [("mala", 4, 4), ("mala", 16, 8), ("snis", 4, 4), ("svgd", 4, 8)]
)
def test_updates_choose_from_fewer_proposals(refiner, update_particles, expected):
    chains = dict(refiner=refiner, n_particles=8)
    model = small(chains, refine_target=True, distillation_coef=0.1, update_particles=update_particles).learn(21)
    counts, energy_fn = [], model.policy.energy_fn

    def counted(obs):
        fn = energy_fn(obs)
        return lambda actions: counts.append(actions.shape[1]) or fn(actions)

    model.policy.energy_fn = counted
    model.train(1, batch_size=16)
    assert max(counts) == expected
    counts.clear()
    model.predict(OBS)
    assert max(counts) == 8, "acting has all of them"


def test_next_observations_are_encoded_once_for_refinement_and_entropy():
    once = dict(n_proposals=64)  # it draws no more where few count
    soft_value = dict(entropy_estimator="soft_value", entropy_estimator_kwargs=once)
    model = small(dict(refiner_steps=2, n_particles=4), refine_target=True, **soft_value).learn(25)
    bound, energy_fn = [], model.policy.energy_fn
    model.policy.energy_fn = lambda obs: bound.append(obs) or energy_fn(obs)
    model.train(1, batch_size=16)
    assert len(bound) == 2, "the temperature's observations and the target's, each bound to the energy once"


@pytest.mark.parametrize("deterministic", [False, True])
def test_acting_leaves_no_graph_whatever_the_refiner_could(deterministic):
    model = small(dict(refiner="svgd", refiner_kwargs=dict(differentiable=True), refiner_steps=2))
    assert th.is_grad_enabled()
    assert not model.policy.refine(th.as_tensor(OBS), deterministic).requires_grad
    assert all(parameter.grad is None for parameter in model.policy.parameters())


def test_unrefined_is_the_actor(make_model):
    model = make_model(learning_rate=1e-2).learn(40)
    with model.policy.unrefined():
        unrefined, _ = model.predict(OBS, deterministic=True)
    with th.no_grad():
        actor = model.actor(th.as_tensor(OBS), deterministic=True).numpy()
    assert np.allclose(unrefined, model.policy.unscale_action(actor))
    assert not np.array_equal(unrefined, model.predict(OBS, deterministic=True)[0])


@dataclass(frozen=True)
class Well:
    """``curvature a² / 2``: at the temperature ``α`` a Gaussian of variance ``α / curvature`` on the box."""

    curvature: float = 0.0

    def bind(self, networks, obs):
        return partial(_well, self.curvature)


def _well(curvature, actions):
    return 0.5 * curvature * actions.square().sum(-1)


@pytest.mark.parametrize("curvature, rises", [(0.0, False), (300.0, True)], ids=["flat", "narrow"])
def test_the_estimate_of_the_entropy_drives_the_temperature(curvature, rises):
    """The soft value sees the entropy of ``exp(-E / α)``, not the Gaussian's: less than the target raises the temperature."""
    alpha = 0.3
    model = small(
        dict(energy=Well, energy_kwargs=dict(curvature=curvature), refiner_steps=2, n_particles=4),
        entropy_estimator="soft_value",
        entropy_estimator_kwargs=dict(n_proposals=2048),
        ent_coef=f"auto_{alpha}",
        target_entropy=0.0,
    ).learn(20)
    exact = entropy(lambda x: _well(curvature / alpha, x), 1)
    assert (exact < 0.0) == rises
    gaussian = small({}, entropy_estimator="base").learn(20)
    for one in (model, gaussian):
        with th.no_grad():
            one.actor.log_std.weight.zero_()
            one.actor.log_std.bias.fill_(-1.5)
    model.value_units.begin(model)  # as train() does: the coefficient is in units of the returns' scale
    assert model.policy.temperature.item() == pytest.approx(alpha)
    gaussian.train(1, batch_size=64)
    base, before = gaussian._entropy, model.log_ent_coef.item()
    model.train(1, batch_size=64)
    assert model._entropy == pytest.approx(exact, abs=0.05) and abs(base - exact) > 0.15, "which is not the Gaussian's"
    assert (model.log_ent_coef.item() > before) == rises and model.log_ent_coef.item() != before


def test_distillation_pulls_the_gaussian_toward_refined_actions(make_model):
    """Its loss alone, many times on one batch: the refined actions become more probable."""
    model = make_model(distillation_coef=1.0, ent_coef=0.1).learn(40)
    obs = th.as_tensor(OBS).repeat(20, 1)
    losses = []
    for _ in range(150):
        loss = model._distillation_loss(obs, model.ent_coef_tensor)
        model.actor.optimizer.param_groups[0]["lr"] = 1e-2
        model.actor.optimizer.zero_grad()
        loss.backward()
        model.actor.optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-20:]) < np.mean(losses[:20])
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.critic_target.parameters())


def test_the_overestimation_is_what_the_critic_said(make_model):
    """A critic that says 7 of everything, against the rewards in the replay buffer."""
    plain = dict(policy_kwargs=dict(value_scale="none"))  # a bias is in units of the scale
    model = make_model(env=Monitor(IdentityEnvBox(ep_length=10)), ent_coef=0.1, **plain).learn(30)
    with th.no_grad():
        for q_net in model.critic.q_networks:
            q_net[-1].weight.zero_()
            q_net[-1].bias.fill_(7.0)
    model.gradient_steps = 0
    model.return_tracker.comparisons = []
    model.learn(20, reset_num_timesteps=False)
    assert [comparison.q_value for comparison in model.return_tracker.comparisons] == [7.0, 7.0]
    bonus = 0.1 * model._entropy
    for comparison, start in zip(model.return_tracker.comparisons, (30, 40), strict=True):
        value, values = 7.0, [7.0]  # the time limit: the critic's own word for the last step
        for reward in model.replay_buffer.rewards[start : start + 9, 0][::-1]:
            value = reward + model.gamma * (bonus + value)
            values.append(value)
        assert comparison.discounted_return == pytest.approx(np.mean(values), abs=1e-5)


@pytest.mark.parametrize("std", [0.3, 1.0])
def test_soft_value_gives_the_temperature_the_entropy_of_actions_on_the_box(std):
    model = EnergySAC(
        "MlpPolicy",
        "Pendulum-v1",
        entropy_estimator="soft_value",
        entropy_estimator_kwargs=dict(n_proposals=4096),
        policy_kwargs=dict(energy=Well, net_arch=[4]),
        buffer_size=10,
        seed=0,
    )
    base = Gaussian(th.zeros(8, 1), th.full((8, 1), std))
    proposals = partial(propose, model.policy, th.zeros(8, 3), base=base)
    estimate = model.entropy_term.estimator.estimate(EntropyContext(th.zeros(8, 1), proposals, model.policy.simulate)).log_prob
    th.testing.assert_close(-estimate, th.full((8, 1), math.log(2.0)), rtol=0, atol=0.03)


def test_a_policys_own_update_of_normalization_is_called(make_model):
    model, seen = make_model(), []
    model.learn(20)
    model.policy.update_normalization = lambda obs: seen.append(len(obs))
    model.train(gradient_steps=2, batch_size=8)
    assert seen == [8, 8]


def test_a_refinement_that_is_replaced_counts_in_training():
    model, other = small({}, refine_target=True), small(dict(refiner="none"))
    model.learn(24)
    model.policy.refinement = other.policy.refinement
    kept = model.refinement_log._last
    model.train(gradient_steps=10, batch_size=8)
    assert model.refinement_log._last is kept, "nothing is refined"
    model.policy.refinement = small({}).policy.refinement
    model.train(gradient_steps=10, batch_size=8)
    assert model.refinement_log._last is not kept
