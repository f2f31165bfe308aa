"""predict(state=..., episode_start=...) with plans, as SB3 and its evaluate_policy use it."""

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_energy import EnergySAC

OBS = np.random.default_rng(0).uniform(-1, 1, size=(6, 3)).astype(np.float32)
NO = np.zeros(6, dtype=bool)


def make(warm_start=True, **kwargs):
    policy_kwargs = dict(
        net_arch=[16], refiner="mppi", refiner_steps=2, n_particles=8, refiner_kwargs=dict(warm_start=warm_start)
    )
    return EnergySAC(
        "MlpPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs | kwargs, seed=0, buffer_size=500, learning_starts=20
    )


def seeded(model, *args, **kwargs):
    model.set_random_seed(3)
    return model.predict(OBS, *args, **kwargs)


@pytest.mark.parametrize("deterministic", [False, True])
def test_without_a_state_nothing_changes_but_one_comes_back(deterministic):
    warm, cold = (seeded(make(w), deterministic=deterministic) for w in (True, False))
    assert np.array_equal(warm[0], cold[0]) and cold[1] is None
    assert len(warm[1]) == 1 and warm[1][0].shape == (6, 1)
    everywhere = seeded(make(), warm[1], ~NO, deterministic)
    assert np.array_equal(everywhere[0], cold[0]), "episodes begin everywhere"


def test_episode_start_forgets_the_right_rows():
    # All candidates are elites, so that each of them counts in the plan
    model = make(refiner_kwargs=dict(warm_start=True, n_elites=8))
    state = (np.full((6, 1), -2.0, dtype=np.float32),)
    starts = np.array([True, False, True, False, False, True])
    _, (cold,) = model.predict(OBS, deterministic=True)
    _, (warm,) = model.predict(OBS, state, NO, deterministic=True)
    _, (mixed,) = model.predict(OBS, state, starts, deterministic=True)
    assert (warm != cold).all()
    assert np.allclose(mixed[starts], cold[starts], atol=1e-6) and np.allclose(mixed[~starts], warm[~starts], atol=1e-6)
    assert np.array_equal(model.predict(OBS, state, deterministic=True)[1][0], warm), "None: no episode begins"


@pytest.mark.parametrize("tolerance", [None, 1e-3])
def test_deterministic_repeats_with_the_same_state(tolerance):
    model = make(tolerance=tolerance)
    _, state = model.predict(OBS, deterministic=True)
    first, again = (model.predict(OBS, state, NO, deterministic=True) for _ in range(2))
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1][0], again[1][0])
    alone = [model.predict(OBS[i : i + 1], (state[0][i : i + 1],), NO[:1], deterministic=True) for i in range(6)]
    assert np.allclose(np.concatenate([action for action, _ in alone]), first[0], atol=1e-5)
    assert np.allclose(np.concatenate([after[0] for _, after in alone]), first[1][0], atol=1e-5)


def test_one_environment_without_a_batch():
    model = make()
    action, state = model.predict(OBS[0], deterministic=True)
    assert action.shape == (1,) and state[0].shape == (1, 1)
    action, state = model.predict(OBS[0], state, np.array([False]), deterministic=True)
    assert action.shape == (1,) and state[0].shape == (1, 1)


def test_a_state_that_does_not_fit_is_refused_and_leaves_nothing_behind():
    model = make()
    _, state = model.predict(OBS)
    with pytest.raises(ValueError, match=r"state must be what predict returned, .* = \(1, 1\), got one of shape \(6, 1\)"):
        model.predict(OBS[0], state)
    with pytest.raises(ValueError, match=r"episode_start must have shape \(n_envs,\) = \(6,\), got \(2,\)"):
        model.predict(OBS, state, NO[:2])
    with pytest.raises(ValueError, match="mixing Gym API with SB3 VecEnv API"):
        model.predict((OBS[0], {}), state)
    assert model.policy._plans is None
    assert np.array_equal(model.predict(OBS, deterministic=True)[0], make(False).predict(OBS, deterministic=True)[0])


@pytest.mark.parametrize("kwargs", [dict(refiner="langevin", refiner_kwargs=None), dict(refiner_kwargs=None)])
def test_others_return_the_state_as_it_was(kwargs):
    state = (np.zeros(3),)
    assert make(**kwargs).predict(OBS, state)[1] is state
    model = make()
    with model.policy.unrefined():
        assert model.predict(OBS, state)[1] is state


def test_evaluate_policy_hands_it_on(monkeypatch):
    model, env = make().learn(30), make_vec_env("Pendulum-v1", n_envs=2)
    seen, predict = [], model.policy.predict

    def watched(observation, state=None, episode_start=None, deterministic=False):
        seen.append((state, episode_start.copy()))
        return predict(observation, state, episode_start, deterministic)

    monkeypatch.setattr(model.policy, "predict", watched)
    evaluate_policy(model, env, n_eval_episodes=4)
    assert seen[0][0] is None and all(state[0].shape == (2, 1) for state, _ in seen[1:])
    starts = np.stack([start for _, start in seen])
    assert starts[[0, 200]].all() and starts.sum() == 4


def test_collected_experience_and_a_saved_policy_are_the_same(tmp_path):
    warm, cold = (make(w).learn(40) for w in (True, False))
    parts = zip(warm.policy.state_dict().values(), cold.policy.state_dict().values(), strict=True)
    assert all(th.equal(one, other) for one, other in parts)
    warm.policy.save(tmp_path / "policy")
    loaded = type(warm.policy).load(tmp_path / "policy")
    _, state = warm.predict(OBS, deterministic=True)
    assert np.array_equal(
        loaded.predict(OBS, state, NO, deterministic=True)[0], warm.predict(OBS, state, NO, deterministic=True)[0]
    )
