"""CUDA graphs themselves. Nothing of this can be shown where there is no GPU."""

import copy
import math
from collections import defaultdict

import gymnasium as gym
import numpy as np
import pytest
import torch as th

from sb3_energy import DeviceReplayBuffer, EnergySAC, deferred
from sb3_energy.fast_updates.captured_updates import WARM_UP

pytestmark = pytest.mark.skipif(not th.cuda.is_available(), reason="no GPU")

DEVICE, CAPTURE = "cuda", "cuda_graph"

SOFT_VALUE = dict(entropy_estimator="soft_value", entropy_estimator_kwargs=dict(n_proposals=16))

SETTINGS = {
    "sac": dict(policy_kwargs=dict(refiner="none", backbone="plain")),
    "langevin, 1": dict(refine_target=True, policy_kwargs=dict(n_particles=1)),
    "langevin": dict(refine_target=True),
    "min": dict(refine_target=True, policy_kwargs=dict(energy_kwargs=dict(aggregate="min"))),
    "soft value": dict(refine_target=True, **SOFT_VALUE),
    "smc entropy": dict(refine_target=True, entropy_estimator="smc"),
    "smc": dict(refine_target=True, policy_kwargs=dict(refiner="smc", n_particles=8, refiner_steps=3)),
    "mixture": dict(refine_target=True, entropy_estimator="mixture"),
    "mala": dict(refine_target=True, policy_kwargs=dict(refiner="mala")),
    "svgd": dict(refine_target=True, policy_kwargs=dict(refiner="svgd")),
    "mppi": dict(refine_target=True, policy_kwargs=dict(refiner="mppi")),
    "mppi, fixed": dict(refine_target=True, policy_kwargs=dict(refiner="mppi", refiner_kwargs=dict(quasi_random=True))),
    "snis": dict(refine_target=True, policy_kwargs=dict(refiner="snis")),
    "quantile": dict(refine_target=True, policy_kwargs=dict(critic="quantile")),
    "simba": dict(refine_target=True, policy_kwargs=dict(backbone="simba")),
    "distillation": dict(distillation_coef=0.1),
    "fixed ent_coef": dict(ent_coef=0.1, refine_target=True, **SOFT_VALUE),
    "AdamW": dict(policy_kwargs=dict(optimizer_class=th.optim.AdamW)),
    "units of the reward": dict(refine_target=True, policy_kwargs=dict(value_scale="none")),
}


def model_of(capture, policy_kwargs=None, **kwargs):
    policy_kwargs = dict(net_arch=[32, 32]) | (policy_kwargs or {})
    settings = dict(learning_starts=100, buffer_size=200, seed=0, device=DEVICE, learning_rate=2.0**-10) | kwargs
    return EnergySAC("MlpPolicy", "Pendulum-v1", capture=capture, policy_kwargs=policy_kwargs, **settings).learn(100)


def fixed(*shape, **kwargs):
    """Numbers in place of noise, the same ones wherever they are asked for."""
    shape = shape if isinstance(shape[0], int) else shape[0]
    numbers = th.arange(math.prod(shape), device=kwargs.get("device"), dtype=kwargs.get("dtype") or th.float32)
    return (0.5 + 0.5 * th.sin(1.7 * numbers + 0.3)).clamp(0.01, 0.99).reshape(shape)


@pytest.fixture
def noise_free(monkeypatch):
    monkeypatch.setattr(th, "rand", fixed)
    monkeypatch.setattr(th, "randn", lambda *shape, **kwargs: 3.0 * fixed(*shape, **kwargs) - 1.5)
    monkeypatch.setattr(th, "randn_like", lambda like: th.randn(like.shape, device=like.device))


@pytest.mark.parametrize("name", SETTINGS)
def test_replays_are_updates(noise_free, name):
    models = [model_of(capture, **SETTINGS[name]) for capture in (CAPTURE, None)]
    start = [parameter.clone() for parameter in models[0].policy.parameters()]
    for model in models:
        np.random.seed(1)
        model.train(10, 64)
    assert len(models[0]._captured._recordings) == 1
    for mine, other in zip(*(model.policy.parameters() for model in models), strict=True):
        assert th.allclose(mine, other, atol=1e-5)
    moved = [(new - old).abs().max().item() for old, new in zip(start, models[0].policy.parameters(), strict=True)]
    assert max(moved) > 1e-3
    mine, others = ({k: v for k, v in model.logger.name_to_value.items() if "train/" in k} for model in models)
    assert mine.keys() == others.keys() and all(mine[key] == pytest.approx(others[key], rel=1e-3, abs=1e-4) for key in mine)


@pytest.mark.parametrize("name", ["langevin", "mala", "mppi", "snis", "soft value"])
def test_replays_have_noise_of_their_own(name):
    """With a learning rate of 0 each update is a draw from the same law, captured or not."""
    settings = SETTINGS[name] | dict(learning_rate=0.0)
    found = []
    index = np.random.default_rng(1).integers(0, 100, 64)
    for capture in (CAPTURE, None):
        model, losses = model_of(capture, **settings), []
        model._sample = lambda batch_size, model=model: model.replay_buffer._get_samples(index)
        for _ in range(200 + WARM_UP):
            model.train(1, 64)
            losses.append((model._entropy, float(model.logger.name_to_value["train/critic_loss"])))
        found.append(np.array(losses[WARM_UP:]))
    captured, eager = found
    assert len(np.unique(captured[:, 0])) > 190 and len(np.unique(eager[:, 0])) > 190
    spread = np.sqrt((captured.var(axis=0) + eager.var(axis=0)) / 200)
    assert (np.abs(captured.mean(axis=0) - eager.mean(axis=0)) < 5.0 * spread).all()
    assert (np.abs(np.log(captured.std(axis=0) / eager.std(axis=0))) < 0.4).all()


@pytest.mark.parametrize("name", SETTINGS)
def test_no_update_waits(name):
    model = model_of(None, **SETTINGS[name])
    model.train(2, 64)
    model._begin_updates()
    batch, records = model.replay_buffer.sample(64), defaultdict(list)
    th.cuda.synchronize()
    th.cuda.set_sync_debug_mode("error")
    try:
        with deferred.deferred() as checks:
            model._update(batch, records)
    finally:
        th.cuda.set_sync_debug_mode("default")
    checks.raise_first()


def test_a_loss_that_is_no_number_changes_nothing():
    model = model_of(CAPTURE, refine_target=True)
    model.train(6, 64)
    model.replay_buffer.rewards[:] = np.nan
    before = [parameter.clone() for parameter in model.policy.parameters()]
    with pytest.raises(FloatingPointError, match=r"^critic_loss is nan: training stops before it changes the networks"):
        model.train(1, 64)
    assert all(th.equal(old, new) for old, new in zip(before, model.policy.parameters(), strict=True))
    model.replay_buffer.rewards[:] = 0.0
    model.train(1, 64)
    assert all(th.isfinite(parameter).all() for parameter in model.policy.parameters())


def test_an_energy_that_is_no_number_says_where():
    model = model_of(CAPTURE, refine_target=True)
    model.train(6, 64)
    with th.no_grad():
        for parameter in model.critic.parameters():
            parameter.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="a non-finite energy appeared"):
        model.train(1, 64)


def test_loaded_parameters_are_used(noise_free):
    models = [model_of(capture, refine_target=True) for capture in (CAPTURE, None)]
    for model in models:
        np.random.seed(1)
        saved = copy.deepcopy(model.get_parameters())
        model.train(6, 64)
        model.set_parameters(saved)
        model.train(6, 64)
    for mine, other in zip(*(model.policy.parameters() for model in models), strict=True):
        assert th.allclose(mine, other, atol=1e-5)


def test_rates_follow_their_schedule(noise_free):
    models = [model_of(capture, learning_rate=lambda left: 2.0**-8 * left) for capture in (CAPTURE, None)]
    for model in models:
        np.random.seed(1)
        for left in (1.0, 0.5, 0.25):
            model._current_progress_remaining = left
            model.train(4, 64)
    for mine, other in zip(*(model.policy.parameters() for model in models), strict=True):
        assert th.allclose(mine, other, atol=1e-5)


def test_saved_loaded_and_trained_on(tmp_path):
    model = model_of(CAPTURE, refine_target=True, replay_buffer_class=DeviceReplayBuffer).learn(140)
    model.save(tmp_path / "model"), model.save_replay_buffer(tmp_path / "buffer")
    loaded = EnergySAC.load(tmp_path / "model", env=model.get_env(), device=DEVICE)
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert loaded.capture == CAPTURE and loaded.replay_buffer.observations.is_cuda
    loaded.learn(40, reset_num_timesteps=False)
    on_cpu = EnergySAC.load(tmp_path / "model", env=model.get_env(), device="cpu", capture=None)
    on_cpu.load_replay_buffer(tmp_path / "buffer")
    on_cpu.learn(10, reset_num_timesteps=False)
    assert not on_cpu.replay_buffer.observations.is_cuda


def test_images():
    class Images(gym.Env):
        observation_space = gym.spaces.Box(0, 255, (36, 36, 1), np.uint8)
        action_space = gym.spaces.Box(-1.0, 1.0, (2,))

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return self.observation_space.sample(), {}

        def step(self, action):
            return self.observation_space.sample(), float(action[0]), False, False, {}

    kwargs = dict(learning_starts=30, buffer_size=100, batch_size=16, capture=CAPTURE, refine_target=True, device=DEVICE)
    model = EnergySAC(
        "CnnPolicy", Images(), replay_buffer_class=DeviceReplayBuffer, policy_kwargs=dict(net_arch=[16]), **kwargs
    )
    model.learn(50)
    assert model._n_updates == 20 and len(model._captured._recordings) == 1


@pytest.mark.slow
def test_compiled_refinements_follow_the_same_law():
    model = model_of("compile", policy_kwargs=dict(n_particles=8))
    obs = th.zeros(4096, 3, device=DEVICE)
    compiled = th.tanh(model.policy.refine(obs))
    model.policy.compiled_sample = None
    eager = th.tanh(model.policy.refine(obs))
    spread = ((compiled.var() + eager.var()) / 4096).sqrt()
    assert (compiled.mean() - eager.mean()).abs() < 5.0 * spread
    assert (compiled.std() / eager.std()).log().abs() < 0.2
