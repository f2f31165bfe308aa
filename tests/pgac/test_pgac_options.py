"""PGAC's own switches, whatever they are combined with, and what SB3's users expect of each of them."""

import inspect

import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv, IdentityEnvBox, SimpleMultiObsEnv
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_energy import PGAC, EnergySAC
from sb3_energy.networks import BACKBONES
from sb3_energy.pgac import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_energy.pgac.persistent_chains import ChainReplayBuffer, DictChainReplayBuffer, NStepChainReplayBuffer
from sb3_energy.refinement.proposals import is_flow
from sb3_energy.refiners import REFINERS
from tests.energy_sac.test_sb3_saving import assert_acts_the_same, assert_same_tensors, tensors

OBS = np.random.default_rng(0).uniform(-1, 1, size=(6, 3)).astype(np.float32)
UNGUIDED = dict(energy_kwargs=dict(guidance=0.0))
EVERYTHING = dict(divergence_coef=0.2, end_to_end_coef=0.1, matching_coef=0.1, policy_kwargs=UNGUIDED)


def finite(model):
    return all(th.isfinite(value).all() for value in model.policy.state_dict().values())


@pytest.mark.parametrize("refiner", sorted({*REFINERS} - {"none"}))
def test_refiners(make_model, refiner):
    """Also those that learn something of their own, and those that move particles together."""
    policy_kwargs = dict(refiner=refiner, refiner_steps=None, n_particles=None)
    policy_kwargs |= dict(box="tanh") if is_flow(REFINERS[refiner]()) else {}
    model = make_model(policy_kwargs=policy_kwargs, refine_target=True).learn(24)
    assert finite(model) and all(np.isfinite(model.predict(OBS, deterministic=d)[0]).all() for d in (True, False))


@pytest.mark.parametrize("critic", ["scalar", "quantile"])
@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_backbones_and_critics_with_all_losses(make_model, backbone, critic):
    policy_kwargs = UNGUIDED | dict(backbone=backbone, critic=critic)
    assert finite(make_model(**(EVERYTHING | dict(policy_kwargs=policy_kwargs))).learn(24))


@pytest.mark.parametrize("initial_particles", ["base", "uniform", "mixture", "normal"])
@pytest.mark.parametrize("box", ["tanh", "reflect"])
def test_starts(make_model, box, initial_particles):
    policy_kwargs = dict(box=box, initial_particles=initial_particles, trust_region=0.5, tolerance=1e-3)
    assert finite(make_model(policy_kwargs=policy_kwargs, end_to_end_coef=0.1).learn(24))


def test_a_normal_start_is_the_same_everywhere(make_model):
    still = UNGUIDED | dict(initial_particles="normal", n_particles=1, transport_time=1.0)  # nothing moves: V is 0
    policy, obs = make_model(policy_kwargs=still).policy, th.as_tensor(OBS)
    assert policy.base(obs).mean.abs().min() > 1e-3
    assert policy.refine(obs, deterministic=True).abs().max() < 1e-6
    latent = th.atanh(policy.sample_actions(obs, 2000))
    th.testing.assert_close(latent.mean(1), th.zeros(6, 1), rtol=0.0, atol=0.1)
    th.testing.assert_close(latent.std(1), th.ones(6, 1), rtol=0.0, atol=0.1)
    assert make_model(policy_kwargs=still | dict(initial_particles="base")).policy.refine(obs, True).abs().max() > 1e-3


@pytest.mark.parametrize("net_arch", [[], dict(pi=[8], qf=[]), dict(pi=[], qf=[12, 6]), [8]], ids=str)
def test_the_potential_has_layers_whatever_the_critic_has(make_model, net_arch):
    model = make_model(policy_kwargs=dict(net_arch=net_arch)).learn(23)
    of_critic = net_arch["qf"] if isinstance(net_arch, dict) else net_arch
    widths = [layer.out_features for layer in model.policy.potential.network if isinstance(layer, nn.Linear)]
    assert widths == [*(of_critic or [64, 64]), 1]


def test_the_potential_s_own_arguments(make_model):
    kwargs = dict(net_arch=[7, 5], activation_fn="Tanh", layer_norm=True, spectral_norm=None)
    layers = make_model(policy_kwargs=dict(potential_kwargs=kwargs)).learn(23).policy.potential.network
    assert [type(layer) for layer in layers] == [nn.Linear, nn.LayerNorm, nn.Tanh] * 2 + [nn.Linear]
    assert [layer.out_features for layer in layers if isinstance(layer, nn.Linear)] == [7, 5, 1]


def test_every_argument_of_the_policy_is_saved(make_model, tmp_path):
    for policy_class in (MlpPolicy, CnnPolicy, MultiInputPolicy):
        assert issubclass(policy_class, MlpPolicy)
    accepted = {
        name
        for cls in MlpPolicy.__mro__
        for name, parameter in inspect.signature(cls.__init__).parameters.items()
        if cls.__module__.startswith("sb3_energy") and "__init__" in vars(cls) and parameter.kind is not parameter.VAR_KEYWORD
    } - {"self", "args"}
    given = dict(sampling_time=0.8, transport_time=0.3, trust_region=0.7, initial_particles="normal", refiner_steps=3)
    given |= dict(energy_kwargs=dict(temperature=0.3), potential_kwargs=dict(net_arch=[6]), share_features_extractor=True)
    policy = make_model(policy_kwargs=given).policy
    parameters = policy._get_constructor_parameters()
    assert accepted == set(parameters)
    assert all(parameters[name] == value for name, value in given.items()), "as they were given"
    policy.save(tmp_path / "policy.pth")
    loaded = MlpPolicy.load(tmp_path / "policy.pth")
    again = loaded._get_constructor_parameters()
    assert {name: again[name] for name in given} == given
    assert loaded.refinement == policy.refinement and loaded.epsilon == 0.3
    assert_acts_the_same(policy, loaded)


def test_every_keyword_of_sac_is_accepted(make_model):
    """With SAC's defaults; and those that EnergySAC has too."""
    of_sac = inspect.signature(SAC.__init__).parameters
    defaults = {name: p.default for name, p in of_sac.items() if p.default is not p.empty and name != "_init_setup_model"}
    assert len(defaults) > 20
    changed = dict(buffer_size=50, policy_kwargs=None)
    model = make_model(**(defaults | changed))
    assert all(getattr(model, name) == defaults[name] for name in ("gamma", "tau", "target_update_interval", "batch_size"))
    of_energy_sac = inspect.signature(EnergySAC.__init__).parameters
    own = {name: p.default for name, p in of_energy_sac.items() if p.kind is p.KEYWORD_ONLY and name != "_init_setup_model"}
    model = make_model(**own)
    assert own and all(getattr(model, name) == value for name, value in own.items())
    positional = PGAC("MlpPolicy", "Pendulum-v1", 1e-3, 60, policy_kwargs=dict(net_arch=[8]))
    assert positional.learning_rate == 1e-3 and positional.buffer_size == 60


@pytest.mark.parametrize("ent_coef", ["auto", "auto_0.2", 0.1])
def test_the_entropy_coefficient_is_the_gaussian_s_alone(make_model, ent_coef):
    model = make_model(ent_coef=ent_coef, learning_rate=1e-2).learn(30)
    assert model.policy.temperature.item() == 1.0 and model.policy.epsilon > 0.0
    sigma = model.critic.value_scale.sigma.item()
    assert sigma > 1.0
    expected = 0.1 if ent_coef == 0.1 else model.log_ent_coef.exp().item() * sigma
    assert model._current_ent_coef().item() == pytest.approx(expected)


def logged(model, folder, n_steps=40):
    model.set_logger(configure(str(folder), ["csv"]))
    model.learn(n_steps, log_interval=1)
    model.logger.close()
    lines = (folder / "progress.csv").read_text().splitlines()
    return dict(zip(lines[0].split(","), lines[-1].split(","), strict=True))


def test_logged_keys(make_model, tmp_path):
    env = Monitor(IdentityEnvBox(ep_length=10))
    found = logged(make_model(env=env, **EVERYTHING), tmp_path)
    losses = {"potential_loss", "transport_loss", "divergence_loss", "matching_loss", "end_to_end_loss", "behaviour_loss"}
    others = {"value_weight", "q_spread", "actor_loss", "critic_loss", "ent_coef", "overestimation"}
    expected = {f"train/{name}" for name in losses | others}
    assert expected <= set(found) and all(np.isfinite(float(found[name])) for name in expected)


@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(value_weight="relu", policy_delay=3, update="reference"),
        dict(persistent_chains=True, divergence_coef=0.5),
        EVERYTHING | dict(policy_kwargs=UNGUIDED | dict(potential_kwargs=dict(spectral_norm=True))),
    ],
    ids=["defaults", "reference", "chains", "everything"],
)
def test_a_loaded_model_learns_on_as_if_it_had_not_stopped(make_model, tmp_path, settings):
    """Potential, spread, the behaviour's critic, all optimisers, the place in the delay, and the chains."""
    model = make_model(learning_rate=1e-2, **settings).learn(41)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = PGAC.load(tmp_path / "model", env=model.get_env())
    loaded.load_replay_buffer(tmp_path / "buffer")
    loaded.set_logger(model.logger)
    before = tensors(model)
    names = {"policy.potential.optimizer", "policy/q_scale.spread", "policy/q_scale.n_updates"}
    critic = "potential_learner.behaviour_critic"
    names |= {f"{critic}/q_net.0.weight", f"{critic}/q_net_target.0.weight", f"{critic}.optimizer"}
    assert all(any(key.startswith(name) for key in before) for name in names)
    assert_same_tensors(before, tensors(loaded))
    assert loaded._update_index == model._update_index == 21
    for one in (model, loaded):
        one.set_random_seed(1)
        one.train(6, 16)
    after = tensors(model)
    assert_same_tensors(after, tensors(loaded))
    moved = [name for name in before if name.startswith("policy/potential") and not th.equal(before[name], after[name])]
    assert moved


def test_both_updates_compute_the_same(make_model):
    def run(update):
        model = make_model(update=update, learning_starts=40, policy_kwargs=dict(backbone="plain")).learn(40)
        model.set_random_seed(0)
        model.train(10, 16)
        return model.policy.state_dict()

    lean, reference = run("lean"), run("reference")
    for name, value in lean.items():
        th.testing.assert_close(value, reference[name], rtol=0.0, atol=1e-5)


def test_predicting_does_not_change_normalised_weights(make_model):
    model = make_model(policy_kwargs=dict(potential_kwargs=dict(spectral_norm=True))).learn(24)
    model.policy.set_training_mode(True)
    state = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.predict(OBS)
    model.predict(OBS, deterministic=True)
    assert all(th.equal(state[name], value) for name, value in model.policy.state_dict().items())


IMAGES = dict(features_extractor_kwargs=dict(features_dim=8))


@pytest.mark.filterwarnings("error:.*is ignored because a custom")
@pytest.mark.filterwarnings("ignore:.*total number of bytes")
@pytest.mark.parametrize(
    "buffer, kwargs",
    [
        (ChainReplayBuffer, dict()),
        (ChainReplayBuffer, dict(env=lambda: make_vec_env("Pendulum-v1", n_envs=3), train_freq=2, gradient_steps=-1)),
        (ChainReplayBuffer, dict(env=lambda: VecNormalize(make_vec_env("Pendulum-v1", n_envs=2)))),
        (
            ChainReplayBuffer,
            dict(optimize_memory_usage=True, replay_buffer_kwargs=dict(handle_timeout_termination=False), buffer_size=30),
        ),
        (NStepChainReplayBuffer, dict(n_steps=3)),
        (
            DictChainReplayBuffer,
            dict(
                policy="MultiInputPolicy",
                env=lambda: SimpleMultiObsEnv(num_col=2, num_row=2, discrete_actions=False),
                policy_kwargs=dict(features_extractor_kwargs=dict(cnn_output_dim=8)),
            ),
        ),
        (
            ChainReplayBuffer,
            dict(policy="CnnPolicy", env=lambda: FakeImageEnv(40, 40, discrete=False), policy_kwargs=IMAGES, batch_size=8),
        ),
    ],
    ids=["plain", "several environments", "normalised", "lean memory", "n steps", "dict", "images"],
)
def test_persistent_chains_everywhere(make_model, tmp_path, buffer, kwargs):
    made = kwargs | (dict(env=kwargs["env"]()) if "env" in kwargs else {})
    model = make_model(persistent_chains=True, **made).learn(40)
    assert type(model.replay_buffer) is buffer and model.replay_buffer.has_chains.any() and finite(model)
    assert model.replay_buffer.has_chains.sum() < model.replay_buffer.has_chains.size
    model.save(tmp_path / "model")
    loaded = PGAC.load(tmp_path / "model", env=kwargs["env"]() if "env" in kwargs else model.get_env())
    assert type(loaded.replay_buffer) is buffer and not loaded.replay_buffer.has_chains.any()


def test_value_weights_can_be_switched_off_for_a_saved_model(make_model, tmp_path):
    model = make_model().learn(30)
    assert model.potential_learner.behaviour_critic is not None
    model.save(tmp_path / "model")
    loaded = PGAC.load(tmp_path / "model", env=model.get_env(), value_weight=None)
    assert loaded.potential_learner.behaviour_critic is None
    assert all(th.equal(part, loaded.policy.state_dict()[name]) for name, part in model.policy.state_dict().items())
    loaded.learn(24, reset_num_timesteps=False)
    assert "train/value_weight" not in loaded.logger.name_to_value


def test_parameters_of_a_file_are_taken_whether_there_are_value_weights_or_not(make_model, tmp_path):
    with_weights, without = make_model().learn(30), make_model(value_weight=None).learn(30)
    with_weights.save(tmp_path / "with")
    without.save(tmp_path / "without")
    without.set_parameters(tmp_path / "with")
    assert_same_tensors(without.policy.state_dict(), with_weights.policy.state_dict())
    with pytest.raises(ValueError, match="Names of parameters do not match"):
        with_weights.set_parameters(dict(policy=without.policy.state_dict()))


def test_value_weights_can_be_switched_on_for_a_saved_model(make_model, tmp_path):
    model = make_model(value_weight=None).learn(30)
    model.save(tmp_path / "model")
    loaded = PGAC.load(tmp_path / "model", env=model.get_env(), value_weight="exp")
    assert_same_tensors(loaded.policy.state_dict(), model.policy.state_dict())
    loaded.learn(24, reset_num_timesteps=False)
    assert "train/value_weight" in loaded.logger.name_to_value
