"""The policy's tolerance: fewer evaluations of its critics, the same actions where it matters."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.envs import SimpleMultiObsEnv

from sb3_energy import EnergySAC
from sb3_energy.refiners import computed_part

OBS = np.random.default_rng(0).uniform(-1, 1, size=(32, 3)).astype(np.float32)
STEPS = 10


def make(policy="MlpPolicy", env="Pendulum-v1", **kwargs):
    policy_kwargs = dict(net_arch=[32], refiner_steps=STEPS, n_particles=4) | kwargs
    return EnergySAC(policy, env, policy_kwargs=policy_kwargs, learning_starts=20, buffer_size=500, seed=0, device="cpu")


def evaluated(model, obs, infos=None):
    """Refined actions, how many actions the critics were asked for and how many observations they encoded."""
    asked, encoded = [], []
    outputs, encode = model.critic.outputs, model.critic.encode
    model.critic.outputs = lambda features, actions: asked.append(actions[..., 0].numel()) or outputs(features, actions)
    model.critic.encode = lambda obs: encoded.append(1) or encode(obs)
    try:
        u = model.policy.refine(obs, deterministic=True, infos=infos)
    finally:
        del model.critic.outputs, model.critic.encode
    return th.tanh(u), sum(asked), len(encoded)


def median_fall(model, obs):
    infos = []
    model.policy.refine(obs, deterministic=True, infos=infos)
    return th.cat([info.energy_drop for info in infos]).median().item()


@pytest.mark.parametrize("kwargs", [dict(), dict(box="reflect"), dict(trust_region=0.5), dict(precondition=False)])
def test_the_critics_are_asked_less_and_encode_once(kwargs):
    obs, plain = th.as_tensor(OBS), make(**kwargs)
    tolerance = median_fall(plain, obs)
    assert tolerance > 0.0
    model, infos = make(tolerance=tolerance, **kwargs), []
    _, cost, encoded = evaluated(model, obs, infos)
    _, full_cost, _ = evaluated(plain, obs)
    part = computed_part(infos)
    assert encoded == 1 and len(infos) == STEPS and 0.0 < part < 0.8
    overhead = 32 * 4 + 32 * 8  # the energies at the start, and those of starts and ends among which the best is chosen
    assert full_cost == overhead + 32 * 4 * STEPS
    assert cost == overhead + round(32 * 4 * STEPS * part)


def test_who_does_not_stop_acts_as_without_a_tolerance():
    obs, plain, infos = th.as_tensor(OBS), make(), []
    actions, _, _ = evaluated(make(tolerance=0.3 * median_fall(plain, obs)), obs, infos)
    to_the_end = infos[-1].displacement.amax(dim=1) > 0.0
    assert 3 <= to_the_end.sum() <= 29
    th.testing.assert_close(actions[to_the_end], evaluated(plain, obs)[0][to_the_end], atol=1e-5, rtol=0)


def test_a_tolerance_that_all_meet_is_one_step():
    obs = th.as_tensor(OBS)
    infos = []
    actions, _, _ = evaluated(make(tolerance=1e9), obs, infos)
    assert computed_part(infos) == pytest.approx(1 / STEPS)
    th.testing.assert_close(actions, evaluated(make(refiner_steps=1), obs)[0])


def test_sampling_takes_all_steps():
    infos = []
    make(tolerance=1e9).policy.refine(th.as_tensor(OBS), infos=infos)
    assert len(infos) == STEPS and all(info.computed is None for info in infos)


def test_an_energy_that_is_known_already_is_used():
    model, obs = make(tolerance=1e-4), th.as_tensor(OBS)
    energy = model.policy.energy_fn(obs)
    known = model.policy.refine(obs, deterministic=True, energy=energy)
    assert th.equal(known, model.policy.refine(obs, deterministic=True))
    with pytest.raises(TypeError, match=r"tolerance needs an energy with a method rows\(index\), such as .*, got function"):
        model.policy.refine(obs, deterministic=True, energy=lambda actions: actions.sum(-1))


@dataclass(frozen=True)
class Own:
    """Looks at observations and at the critic's networks beyond what the protocol promises."""

    def bind(self, networks, obs):
        return partial(own, networks.critic, networks.critic.encode(obs), obs)


def own(critic, features, obs, actions):
    return -critic.outputs(features, actions)[0, ..., 0] + (actions - obs[:, None, :1]).square().sum(-1)


def test_an_energy_of_ones_own():
    model, obs, infos = make(tolerance=0.05, energy=Own), th.as_tensor(OBS), []
    together = model.policy.refine(obs, deterministic=True, infos=infos)
    assert computed_part(infos) < 0.9
    alone = th.cat([model.policy.refine(row[None], deterministic=True) for row in obs])
    th.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_dictionary_observations_and_images():
    env = SimpleMultiObsEnv(num_col=2, num_row=2, discrete_actions=False)
    model = make("MultiInputPolicy", env, tolerance=1e-3, features_extractor_kwargs=dict(cnn_output_dim=8))
    obs = {key: np.stack([space.sample() for _ in range(6)]) for key, space in model.observation_space.spaces.items()}
    together, _ = model.predict(obs, deterministic=True)
    alone = np.stack([model.predict({key: part[i] for key, part in obs.items()}, deterministic=True)[0] for i in range(6)])
    assert np.allclose(together, alone, atol=1e-4)


def test_it_is_saved(tmp_path):
    model = make(tolerance=1e-3).learn(30)
    model.save(tmp_path / "model")
    loaded = EnergySAC.load(tmp_path / "model")
    assert loaded.policy.refinement.tolerance == 1e-3
    assert np.array_equal(loaded.predict(OBS, deterministic=True)[0], model.predict(OBS, deterministic=True)[0])
