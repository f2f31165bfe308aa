"""Without a refiner and with plain networks, EnergySAC is SB3's SAC (sb3-contrib's TQC with quantile critics), bit by bit."""

import inspect
import operator

import numpy as np
import pytest
import torch as th
from sb3_contrib import TQC
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import NormalActionNoise

from sb3_energy import EnergySAC

PLAIN = dict(refiner="none", backbone="plain")
LEARNING_STARTS = 20


def assert_equal_nested(ours, theirs, where=""):
    """Equal to the last bit: tensors, numbers, and the nested dicts and lists that state_dict() makes of them."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, th.Tensor):
        assert th.equal(ours, theirs), where
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            assert_equal_nested(ours[key], theirs[key], f"{where}/{key}")
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs), where
        for index, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_equal_nested(mine, other, f"{where}/{index}")
    else:
        assert ours == theirs, where


def parameters(model):
    """All that learning changes."""
    state_dicts, tensors = model._get_torch_save_params()
    state = {name: dict(operator.attrgetter(name)(model).state_dict()) for name in state_dicts}
    state["policy"].pop("temperature", None)  # SAC keeps it beside its policy: compared as log_ent_coef
    state |= {name: getattr(model, name).detach() for name in tensors}
    return state


def learn(cls, updates, policy_kwargs, **kwargs):
    settings = dict(learning_starts=LEARNING_STARTS, batch_size=16, buffer_size=1000, device="cpu") | kwargs
    if cls is EnergySAC:
        settings = dict(update="reference") | settings
    model = cls("MlpPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs, **settings)
    model.learn(LEARNING_STARTS + updates)
    assert model._n_updates == updates
    return model


def assert_parity(ours, theirs):
    assert_equal_nested(parameters(ours), parameters(theirs))
    for name in ("observations", "actions", "rewards"):
        assert np.array_equal(getattr(ours.replay_buffer, name), getattr(theirs.replay_buffer, name))
    obs = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    for deterministic in (True, False):
        th.manual_seed(0)
        with ours.policy.torch_predict():
            action, _ = ours.predict(obs, deterministic=deterministic)
        th.manual_seed(0)
        expected, _ = theirs.predict(obs, deterministic=deterministic)
        assert np.array_equal(action, expected)
        th.manual_seed(0)
        fast, _ = ours.predict(obs, deterministic=deterministic)
        assert np.allclose(fast, expected, atol=1e-5)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("ent_coef", ["auto", 0.2])
def test_400_updates_of_sac(seed, ent_coef):
    small = dict(net_arch=[16, 16])
    ours = learn(EnergySAC, 400, small | PLAIN, seed=seed, ent_coef=ent_coef)
    theirs = learn(SAC, 400, small, seed=seed, ent_coef=ent_coef)
    assert_parity(ours, theirs)
    temperature = theirs.ent_coef_tensor if ent_coef != "auto" else theirs.log_ent_coef.detach().exp()
    assert ours.policy.temperature.item() == temperature.item()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("ent_coef", ["auto_0.1", 0.2])
def test_updates_of_tqc(seed, ent_coef):
    small = dict(net_arch=[16], n_critics=3, n_quantiles=7)
    ours = learn(
        EnergySAC,
        50,
        small | PLAIN | dict(critic="quantile", top_quantiles_to_drop_per_net=2),
        seed=seed,
        ent_coef=ent_coef,
    )
    theirs = learn(TQC, 50, small, seed=seed, ent_coef=ent_coef, top_quantiles_to_drop_per_net=2)
    assert_parity(ours, theirs)


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(use_sde=True, sde_sample_freq=4, use_sde_at_warmup=True),
        dict(n_steps=3),
        dict(train_freq=(1, "episode"), gradient_steps=50, target_update_interval=3),
        dict(action_noise=NormalActionNoise(np.zeros(1), 0.1 * np.ones(1)), optimize_memory_usage=False, tau=0.02),
    ],
    ids=["gSDE", "n-step", "episodes", "noise"],
)
def test_other_settings_of_sac(kwargs):
    small = dict(net_arch=dict(pi=[16], qf=[8]), log_std_init=-2.0)
    settings = dict(learning_starts=LEARNING_STARTS, batch_size=16, buffer_size=1000, seed=0) | kwargs
    ours = EnergySAC("MlpPolicy", "Pendulum-v1", policy_kwargs=small | PLAIN, update="reference", **settings).learn(220)
    theirs = SAC("MlpPolicy", "Pendulum-v1", policy_kwargs=small, **settings).learn(220)
    assert ours._n_updates == theirs._n_updates > 0
    assert_parity(ours, theirs)


def test_logs_what_sac_logs():
    ours = learn(EnergySAC, 30, dict(net_arch=[16]) | PLAIN, seed=0)
    theirs = learn(SAC, 30, dict(net_arch=[16]), seed=0)
    expected = {key: value for key, value in theirs.logger.name_to_value.items() if key.startswith("train/")}
    assert expected.keys() >= {"train/actor_loss", "train/critic_loss", "train/ent_coef", "train/ent_coef_loss"}
    assert {key: ours.logger.name_to_value[key] for key in expected} == expected


SETTINGS = dict(
    learning_rate=1e-3,
    buffer_size=123,
    learning_starts=7,
    batch_size=9,
    tau=0.01,
    gamma=0.9,
    train_freq=(2, "step"),
    gradient_steps=3,
    action_noise=NormalActionNoise(np.zeros(1), 0.1 * np.ones(1)),
    replay_buffer_class=ReplayBuffer,
    replay_buffer_kwargs=dict(handle_timeout_termination=False),  # optimize_memory_usage asks for it
    optimize_memory_usage=True,
    n_steps=2,
    ent_coef="auto_0.3",
    target_update_interval=2,
    target_entropy=-0.7,
    use_sde=True,
    sde_sample_freq=5,
    use_sde_at_warmup=True,
    stats_window_size=11,
    tensorboard_log="no_such_folder",
    policy_kwargs=dict(net_arch=[8], **PLAIN),
    verbose=0,
    seed=5,
    device="cpu",
)
"""A value for each of SAC's keywords, none of them its default (but verbose, which would print)."""


def sac_keywords():
    names = [name for name in inspect.signature(SAC.__init__).parameters if name not in ("self", "policy", "env")]
    return [name for name in names if name != "_init_setup_model"]


def test_settings_cover_all_keywords():
    assert sac_keywords() == list(SETTINGS), "SAC's keywords have changed: give the new ones a value here"


def attributes(model):
    names = [name for name in SETTINGS if name not in ("policy_kwargs", "stats_window_size", "device")]
    values = {name: getattr(model, name) for name in names}
    return values | dict(
        device=model.device, stats_window_size=model._stats_window_size, net_arch=model.policy.net_arch, n_envs=model.n_envs
    )


@pytest.mark.filterwarnings("ignore:`n_steps=2` is ignored")
@pytest.mark.parametrize("positional", [False, True])
def test_every_keyword_of_sac_arrives(positional):
    if positional:
        ours = EnergySAC("MlpPolicy", "Pendulum-v1", *SETTINGS.values())
    else:
        ours = EnergySAC("MlpPolicy", "Pendulum-v1", **SETTINGS)
    for_sac = SETTINGS | dict(policy_kwargs=dict(net_arch=[8]))
    theirs = SAC("MlpPolicy", "Pendulum-v1", **for_sac)
    assert attributes(ours) == attributes(theirs)
    for name in ("learning_rate", "buffer_size", "batch_size", "tau", "gamma", "seed", "target_entropy"):
        assert getattr(ours, name) == SETTINGS[name]


def test_unknown_keyword_is_refused():
    with pytest.raises(TypeError, match="batchsize"):
        EnergySAC("MlpPolicy", "Pendulum-v1", batchsize=3)
