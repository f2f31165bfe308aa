"""What implicit policies learn where answers are known, and that SB3's expectations hold for them."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import KVWriter, Logger

from sb3_energy import BC, IBC, OfflineDataset
from sb3_energy.envs.functions import StepFunction, TwoValuedFunction
from sb3_energy.networks import SpatialSoftmaxCNN
from sb3_energy.offline.ibc import LOSSES, IBCPolicy
from tests.offline.ibc.small_ibc import drawn, small_ibc
from tests.offline.small_clone import BOX, Reach, data, expert

OBS = data(n=7, seed=3).observations
LEARNED = dict(net_arch=[64, 64], n_particles=256)
SMOOTH = dict(activation_fn="SiLU")
DESCENT = SMOOTH | dict(refiner="langevin", refiner_kwargs=dict(noise_scale=0.0, step_size=0.1), refiner_steps=5)


def policy_kwargs_of(loss):
    return DESCENT if loss == "ebt" else SMOOTH if LOSSES[loss].needs_smooth else {}


def training_of(loss):
    return dict(n_negatives=8, chain_steps=5) if loss == "contrastive_divergence" else dict()


def parameters(model):
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(th.equal(first[name], second[name]) for name in first)


def errors_at_the_jump(model, function):
    x = np.linspace(-0.1, 0.1, 41, dtype=np.float32)[:, None]
    return np.abs(model.predict(x, deterministic=True)[0] - function.answer(x)).mean()


def test_it_jumps_where_a_regression_cannot():
    function = StepFunction()
    dataset, kwargs = drawn(function, 200), dict(seed=0, device="cpu", batch_size=64)
    implicit = IBC("MlpPolicy", dataset, policy_kwargs=LEARNED, energy_training_kwargs=dict(n_negatives=64), **kwargs)
    explicit = BC("MlpPolicy", dataset, policy_kwargs=dict(net_arch=[64, 64]), learning_rate=1e-3, **kwargs)
    errors = [errors_at_the_jump(model.learn(600), function) for model in (implicit, explicit)]
    assert errors[0] < 0.25 * errors[1] and errors[0] < 0.1, errors


@pytest.fixture(scope="module")
def two_valued():
    training = dict(n_negatives=64)
    model = IBC(
        *("MlpPolicy", drawn(TwoValuedFunction(), 500)),
        **dict(policy_kwargs=LEARNED, energy_training_kwargs=training, seed=0, device="cpu", batch_size=64),
    )
    return model.learn(600)


X = np.random.default_rng(0).uniform(-1.0, 1.0, (400, 1)).astype(np.float32)


def test_draws_find_both_values_in_their_shares(two_valued):
    th.manual_seed(0)
    actions = two_valued.predict(X)[0]
    assert 0.4 <= (actions > 0.0).mean() <= 0.6
    errors = np.abs(np.abs(actions) - TwoValuedFunction().answers(X)[:, 1:])
    assert np.median(errors) < 0.08 and (errors < 0.2).mean() > 0.9


def test_the_lowest_energy_found_is_that_of_a_grid(two_valued):
    policy, grid = two_valued.policy, th.linspace(-1.0, 1.0, 2001).reshape(1, -1, 1)
    with th.no_grad():
        energy = policy.energy_fn(th.as_tensor(X))
        lowest = energy(grid.expand(len(X), -1, -1)).amin(1)
        found = energy(th.as_tensor(two_valued.predict(X, deterministic=True)[0]).unsqueeze(1)).squeeze(1)
    assert (found - lowest).max() < 0.05, "in nats"
    twice = [two_valued.predict(X, deterministic=True)[0] for _ in range(2)]
    assert np.array_equal(*twice)
    assert np.allclose(two_valued.predict(X[:3], deterministic=True)[0], twice[0][:3], atol=1e-5), "whatever stands beside"


THEN_DESCENT = dict(
    refiner=["derivative_free", "langevin"], refiner_steps=[3, 50], refiner_kwargs=[None, dict(step_size=0.01)]
)


class Bowl(th.nn.Module):
    """Lowest where actions are as far as the features say."""

    def bind(self, features):
        return lambda x: 50.0 * (x - features[:, None, : x.shape[-1]]).square().sum(-1)


@pytest.mark.parametrize(
    ("chosen", "error"),
    [
        (dict(refiner="derivative_free", n_particles=2**14), 1e-2),
        (
            dict(refiner=["derivative_free", "langevin"], refiner_steps=[3, 50], refiner_kwargs=[None, dict(step_size=0.01)]),
            1e-3,
        ),
        (dict(refiner="annealed_gradient", n_particles=8), 1e-3),
    ],
)
def test_inference_ends_where_a_bowl_is_lowest(chosen, error):
    policy = small_ibc(policy_kwargs=dict(n_particles=256) | chosen).policy
    policy.energy_network = Bowl()
    places = 1.6 * th.rand(20, 3, generator=th.Generator().manual_seed(0)) - 0.8
    found = policy._refined(places, deterministic=True)
    assert (found - places[:, :2]).abs().max() < error


def test_one_dimension_is_found_to_a_thousandth_without_derivatives():
    policy = small_ibc(drawn(StepFunction(), 50), policy_kwargs=dict(n_particles=2**12)).policy
    policy.energy_network = Bowl()
    places = th.linspace(-0.9, 0.9, 19).unsqueeze(1)
    assert (policy._refined(places, deterministic=True) - places).abs().max() < 1e-3


@pytest.mark.slow
def test_prefix_energies_learn_the_law_of_the_first_coordinate():
    """Whatever is observed, the first coordinate is -.5 or .5 with probabilities .25 and .75, the second one opposite."""
    rng = np.random.default_rng(0)
    first = np.where(rng.random((800, 1)) < 0.25, -0.5, 0.5)
    actions = np.concatenate([first, -first], axis=1) + 0.1 * rng.standard_normal((800, 2))
    space = spaces.Box(-1.0, 1.0, (2,))
    dataset = OfflineDataset(rng.uniform(-1, 1, (800, 1)), actions, spaces.Box(-1.0, 1.0, (1,)), space)
    model = small_ibc(
        dataset,
        policy_kwargs=dict(net_arch=[64, 64], refiner="autoregressive_derivative_free", n_particles=64, refiner_steps=1),
        **dict(energy_training_kwargs=dict(n_negatives=64), batch_size=64, learning_rate=3e-3),
    ).learn(500)
    grid = th.linspace(-1.0, 1.0, 201)
    with th.no_grad():
        prefix_energy = model.policy.bind_prefixes(model.policy.features(th.zeros(1, 1))).prefix_energy
        density = (-prefix_energy(grid.reshape(1, -1, 1))[0]).softmax(0)
    exact = 0.25 * (-50.0 * (grid + 0.5).square()).exp() + 0.75 * (-50.0 * (grid - 0.5).square()).exp()
    assert abs(density[:100].sum() - 0.25) < 0.1
    assert 0.5 * (density - exact / exact.sum()).abs().sum() < 0.2, "total variation"
    th.manual_seed(0)
    found = model.predict(rng.uniform(-1, 1, (300, 1)).astype(np.float32))[0]
    assert np.abs(found[:, 0] + found[:, 1]).mean() < 0.2 and 0.08 < (found[:, 0] < 0.0).mean() < 0.4


def narrow_gaussian(n=1000):
    """Actions of mean .2 and standard deviation .25, whatever is observed."""
    rng = np.random.default_rng(0)
    space = spaces.Box(-1.0, 1.0, (1,))
    actions = np.clip(0.2 + 0.25 * rng.standard_normal((n, 1)), -1.0, 1.0)
    return OfflineDataset(rng.uniform(-1, 1, (n, 1)), actions, space, space)


@pytest.mark.parametrize("loss", ["info_nce", "r_nce", "nce", pytest.param("contrastive_divergence", marks=pytest.mark.slow)])
def test_losses_with_counter_examples_learn_a_density(loss):
    chain = dict(chain="mala", chain_steps=20, n_negatives=32, chain_kwargs=dict(step_size=0.05), magnitude_coef=0.01)
    training = chain if loss == "contrastive_divergence" else dict(n_negatives=64)
    model = small_ibc(
        narrow_gaussian(),
        **dict(loss=loss, energy_training_kwargs=training, batch_size=64, learning_rate=5e-3),
        policy_kwargs=dict(net_arch=[32, 32]) | SMOOTH,
    ).learn(300)
    grid = th.linspace(-1.0, 1.0, 201)
    with th.no_grad():
        energies = model.policy.bind(model.policy.features(th.zeros(1, 1)))(grid.reshape(1, -1, 1))[0]
    density, exact = (-energies).softmax(0), (-0.5 * (grid - 0.2).square() / 0.25**2).softmax(0)
    assert 0.5 * (density - exact).abs().sum() < 0.12, "total variation"
    if loss == "nce":
        assert abs((-energies).exp().sum().item() * 0.01 - 1.0) < 0.2, "and its normaliser"


@pytest.mark.parametrize("loss", ["denoising_score_matching", "sliced_score_matching"])
def test_score_matching_learns_the_slope_of_a_density(loss):
    training = dict(noise_std=0.1) if loss.startswith("denoising") else dict(n_probes=2)
    model = small_ibc(
        narrow_gaussian(4000),
        **dict(loss=loss, energy_training_kwargs=training, batch_size=256, learning_rate=1e-2),
        policy_kwargs=dict(net_arch=[32, 32]) | SMOOTH,
    ).learn(400)
    variance = 0.25**2 + (0.1**2 if loss.startswith("denoising") else 0.0)
    grid = th.linspace(-0.2, 0.6, 41).reshape(1, -1, 1).requires_grad_()
    energies = model.policy.bind(model.policy.features(th.zeros(1, 1)))(grid)
    (slopes,) = th.autograd.grad(energies.sum(), grid)
    exact = (grid.detach() - 0.2) / variance
    assert (slopes - exact).abs().mean() < 0.15 * exact.abs().mean()


def test_descents_learn_the_mean_of_two_values():
    model = small_ibc(
        drawn(TwoValuedFunction(), 500),
        **dict(loss="ebt", batch_size=64, learning_rate=3e-3),
        policy_kwargs=DESCENT | dict(net_arch=[32, 32], n_particles=4),
    ).learn(300)
    for deterministic in (True, False):
        assert np.abs(model.predict(X, deterministic=deterministic)[0]).mean() < 0.12, (
            "where no example is: this is regression"
        )


@pytest.mark.parametrize("loss", LOSSES)
def test_save_and_load_restore_everything(loss, tmp_path):
    model = small_ibc(loss=loss, policy_kwargs=policy_kwargs_of(loss), energy_training_kwargs=training_of(loss)).learn(10)
    model.save(tmp_path / "model")
    again = IBC.load(tmp_path / "model", dataset=data(), device="cpu")
    assert (again.loss, again.num_timesteps) == (loss, 10)
    for one in (model, again):
        one.learn(5, reset_num_timesteps=False)
    assert same(parameters(model), parameters(again)), "bit by bit"
    if loss == "r_nce":
        assert same(model.proposal.state_dict(), again.proposal.state_dict())
    model.policy.save(tmp_path / "policy")
    alone = IBCPolicy.load(tmp_path / "policy")
    assert np.array_equal(alone.predict(OBS, deterministic=True)[0], model.predict(OBS, deterministic=True)[0])


@pytest.mark.parametrize(
    "chosen",
    [
        dict(refiner="autoregressive_derivative_free", spectral_norm=True),
        dict(refiner=["derivative_free", "langevin"], refiner_steps=[2, 3], temperature=0.5),
        dict(refiner="annealed_gradient", refiner_steps=3, deterministic_particles=4),
        dict(refiner="smc", box="tanh", precondition=True, backbone="layer_norm"),
    ],
)
def test_a_policy_is_saved_with_its_search(chosen, tmp_path):
    model = small_ibc(policy_kwargs=chosen).learn(3)
    model.policy.save(tmp_path / "policy")
    alone = IBCPolicy.load(tmp_path / "policy")
    assert alone.refinement == model.policy.refinement and alone.temperature == model.policy.temperature
    for deterministic in (True, False):
        found = []
        for policy in (model, alone):
            th.manual_seed(0)
            found.append(policy.predict(OBS, deterministic=deterministic)[0])
        assert np.array_equal(*found)
        assert found[0].shape == (7, 2) and (found[0] >= BOX.low).all() and (found[0] <= BOX.high).all()


@pytest.mark.slow
def test_it_learns_what_the_expert_does():
    model = small_ibc(
        data(2000),
        **dict(batch_size=64, learning_rate=3e-3, energy_training_kwargs=dict(n_negatives=64)),
        policy_kwargs=dict(net_arch=[64, 64], n_particles=256),
    ).learn(600)
    evaluate = EvalCallback(make_vec_env(Reach, 2), eval_freq=5, n_eval_episodes=2, verbose=0)
    assert evaluate_policy(model, Reach(), 10)[0] > -1.0, "at random it is about -20"
    seen = np.random.default_rng(1).standard_normal((200, 3)).astype(np.float32)
    observations = seen * np.float32([1.0, 10.0, 0.1]) + np.float32([0.0, 5.0, -3.0])
    assert np.abs(model.predict(observations, deterministic=True)[0] - expert(seen)).mean() < 0.3, "of a width of 4"
    model.learn(5, callback=evaluate)
    assert evaluate.best_mean_reward > -2.0


class Lines(KVWriter):
    def __init__(self):
        self.lines = []

    def write(self, key_values, key_excluded, step=0):
        self.lines.append((step, dict(key_values)))

    def close(self):
        pass


def test_the_log_says_how_it_learns(tmp_path):
    model = small_ibc(
        loss="r_nce",
        energy_training_kwargs=dict(n_negatives=8, gradient_margin=2.0),
        policy_kwargs=dict(refiner="autoregressive_derivative_free"),
        learning_rate=lambda remaining: 1e-2 * remaining,
    )
    output = Lines()
    model.set_logger(Logger(None, [output]))
    model.learn(20, log_interval=10, callback=CheckpointCallback(8, str(tmp_path)))
    own = ("loss", "proposal_loss", "prefix_loss", "gradient_penalty", "accuracy", "positive_energy", "negative_energy")
    assert {f"train/{name}" for name in own} < set(output.lines[0][1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rl_model_16_steps.zip", "rl_model_8_steps.zip"]
    assert [group["lr"] for one in model._optimizers() for group in one.param_groups] == pytest.approx([1e-2 / 20] * 2)


@pytest.mark.parametrize("loss", ["r_nce", "contrastive_divergence", "ebt"])
def test_seeds_repeat_a_training(loss):
    kwargs = dict(loss=loss, policy_kwargs=policy_kwargs_of(loss), energy_training_kwargs=training_of(loss))
    first = small_ibc(**kwargs).learn(5)
    th.manual_seed(99)
    assert same(parameters(first), parameters(small_ibc(**kwargs).learn(5)))
    assert not same(parameters(first), parameters(small_ibc(seed=1, **kwargs).learn(5)))


@pytest.mark.parametrize("extractor", [None, SpatialSoftmaxCNN])
def test_images_and_dictionaries_are_observed(extractor):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 36, 36, 1), dtype=np.uint8)
    space = spaces.Box(0, 255, (36, 36, 1), np.uint8)
    dataset = data(40, observations=images, observation_space=space)
    model = small_ibc(dataset, policy="CnnPolicy", policy_kwargs=dict(features_extractor_class=extractor))
    before = parameters(model)
    model.learn(2)
    assert model.predict(images[0], deterministic=True)[0].shape == (2,)
    changed = [name for name, value in parameters(model).items() if not th.equal(value, before[name])]
    assert any(name.startswith("features_extractor") for name in changed), "images are learned, too"
    parts = dict(image=images, arm=rng.normal(5.0, 2.0, (40, 3)))
    both = spaces.Dict(image=space, arm=spaces.Box(-np.inf, np.inf, (3,)))
    model = small_ibc(data(40, observations=parts, observation_space=both), policy="MultiInputPolicy").learn(2)
    assert model.predict({key: part[0] for key, part in parts.items()})[0].shape == (2,)


def test_a_temperature_sharpens_what_is_drawn():
    cold, warm = (small_ibc(policy_kwargs=dict(temperature=t)).policy for t in (0.1, 1.0))
    features, actions = th.randn(2, 3), th.rand(2, 5, 2)
    assert th.allclose(cold.bind(features)(actions), 10.0 * warm.bind(features)(actions))


def test_spectral_norm_bounds_slopes():
    policy = small_ibc(policy_kwargs=dict(net_arch=[32, 32], spectral_norm=True)).learn(200).policy
    actions = (2.0 * th.rand(4, 100, 2) - 1.0).requires_grad_()
    (slopes,) = th.autograd.grad(policy.bind(th.randn(4, 3))(actions).sum(), actions)
    assert slopes.norm(dim=-1).max() < 1.1, "each layer stretches by at most 1"


def test_a_gradient_penalty_bounds_slopes():
    def steepest(**training):
        model = small_ibc(
            energy_training_kwargs=dict(n_negatives=16) | training, learning_rate=1e-2, policy_kwargs=dict(net_arch=[32, 32])
        ).learn(200)
        policy, actions = model.policy, (2.0 * th.rand(4, 100, 2) - 1.0).requires_grad_()
        features = policy.features(th.as_tensor(OBS[:4]))
        return th.autograd.grad(policy.bind(features)(actions).sum(), actions)[0].abs().max()

    assert steepest(gradient_margin=0.5, penalty_coef=10.0) < 1.5 < steepest()


def test_it_warns_where_slopes_are_too_small_for_chains():
    margin = dict(gradient_margin=1.0)
    with pytest.warns(UserWarning, match=r"a chain of 25 steps gets 0\.4.* far where slopes are at most 1"):
        small_ibc(energy_training_kwargs=margin | dict(negatives="chain", chain_steps=25))
    with pytest.warns(UserWarning, match="a chain of 50 steps"):
        small_ibc(energy_training_kwargs=margin, policy_kwargs=dict(refiner="annealed_gradient", refiner_steps=50))


def test_no_warning_where_chains_reach_far_enough(recwarn):
    training = dict(gradient_margin=4.0, negatives="chain")
    small_ibc(energy_training_kwargs=training, policy_kwargs=dict(refiner="annealed_gradient"))
    assert not [str(one.message) for one in recwarn if "a chain of" in str(one.message)]


def test_what_diverges_is_not_learned():
    model = small_ibc().learn(2)
    before = parameters(model)
    model.policy.energy_network.network[0].weight.data[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"the policy's parameters contain NaN \(energy_network.network.0.weight\)"):
        model.learn(1)
    with pytest.raises(FloatingPointError, match=r"the policy's parameters contain NaN"):
        model.predict(OBS, deterministic=True)
    assert same(before, small_ibc().learn(2).policy.state_dict())
