"""FlashSAC's settings: what they are, that algorithms take them, and that the zoo's file has the same."""

import math
import pickle

import numpy as np
import pytest
import torch as th
import yaml
from torch import nn

from sb3_energy import PGAC, EnergySAC, flash_sac_kwargs
from sb3_energy.energy_sac.presets import FLASH_SAC
from sb3_energy.networks import BatchNorm, CategoricalMean
from sb3_energy.schedules import Cosine
from sb3_energy.zoo.paths import hyperparams_dir

TINY = dict(net_arch=dict(pi=[8, 8], qf=[16, 16]))


@pytest.mark.parametrize("cls", [EnergySAC, PGAC])
def test_the_model_is_flash_sacs(cls, tmp_path):
    own = {} if cls is PGAC else dict(refiner="none")
    model = cls("MlpPolicy", "Pendulum-v1", seed=0, buffer_size=100, **flash_sac_kwargs(policy_kwargs=TINY | own))
    assert (model.tau, model.batch_size, model.learning_starts, model.actor_delay) == (0.01, 512, 10_000, 2)
    assert model.joint_batch and model.target_entropy == pytest.approx(0.5 * math.log(2 * math.pi * math.e * 0.15**2))
    assert model.lr_schedule(1.0) == pytest.approx(3e-4) and model.lr_schedule(0.0) == pytest.approx(1.5e-4)
    assert model.log_ent_coef.exp().item() == pytest.approx(0.01)
    critic = model.critic
    widths = [layer.out_features for layer in critic.qf0.modules() if isinstance(layer, nn.Linear)]
    assert widths == [16, 64, 16, 64, 16, 101] and critic.n_critics == 2
    assert all(layer.momentum == 0.01 for layer in critic.modules() if isinstance(layer, BatchNorm))
    (mean,) = (layer for layer in critic.modules() if isinstance(layer, CategoricalMean))
    assert mean.support[0] == -5.0 and mean.support[-1] == 5.0 and th.allclose(mean.support.diff(), th.tensor(0.1))
    model.save(tmp_path / "model")
    loaded = cls.load(tmp_path / "model")
    assert loaded.learning_rate == Cosine(3e-4, 1.5e-4) and loaded.exploration == "held_noise"


@pytest.mark.parametrize("refiner", ["none", "mala"])
def test_it_trains(refiner):
    own = TINY | dict(refiner=refiner) | ({} if refiner == "none" else dict(n_particles=4))
    small = flash_sac_kwargs(learning_starts=30, batch_size=16, policy_kwargs=own)
    model = EnergySAC("MlpPolicy", "Pendulum-v1", seed=0, buffer_size=100, **small).learn(60)
    assert model._n_updates == 30 and all(th.isfinite(value).all() for value in model.policy.state_dict().values())
    sigma = model.critic.value_scale.sigma.item()
    assert sigma > 1.0, "rewards of Pendulum are not of the order of one"
    # 15 steps of at most 3e-4 from its start, in units of the scale
    assert model._current_ent_coef().item() / sigma == pytest.approx(0.01, rel=15 * 3.1e-4)
    assert model.policy.temperature.item() == pytest.approx(model._current_ent_coef().item())


def test_changes_are_merged_and_the_preset_stays():
    before = pickle.dumps(dict(FLASH_SAC))
    found = flash_sac_kwargs(tau=0.5, gradient_steps=2, policy_kwargs=dict(critic="scalar", refiner="none"))
    assert (found["tau"], found["gradient_steps"], found["batch_size"]) == (0.5, 2, 512)
    assert found["policy_kwargs"] == FLASH_SAC["policy_kwargs"] | dict(critic="scalar", refiner="none")
    found["policy_kwargs"]["backbone"] = "plain"
    assert pickle.dumps(dict(FLASH_SAC)) == before and flash_sac_kwargs() == dict(FLASH_SAC)
    with pytest.raises(TypeError, match="policy_kwargs must be a dict"):
        flash_sac_kwargs(policy_kwargs=3)


def test_the_zoos_file_has_the_same_settings():
    entries = yaml.safe_load((hyperparams_dir() / "flash_sac.yml").read_text())
    for name, entry in entries.items():
        policy_kwargs = eval(entry["policy_kwargs"], {"dict": dict})
        changed = {} if name == "default" else dict(learning_starts=1000, batch_size=256)
        expected = flash_sac_kwargs(**changed, policy_kwargs=dict(net_arch=policy_kwargs["net_arch"]))
        assert policy_kwargs == expected.pop("policy_kwargs")
        rate = expected.pop("learning_rate")
        assert (
            entry["learning_rate"].split("_")[1:]
            == ["3e-4", "1.5e-4"]
            == [f"{rate.initial:.0e}".replace("e-04", "e-4"), "1.5e-4"]
        )
        assert {key: entry[key] for key in expected} == expected
    assert entries["default"]["policy_kwargs"].count("256") == 2


@pytest.mark.parametrize("ent_coef", ["auto_0.1_scaled", "auto_0.1"])
def test_where_a_learned_coefficient_begins(ent_coef):
    """In units of the scale, or in those of the reward."""
    kwargs = dict(policy_kwargs=dict(net_arch=[8], refiner="none", value_scale="auto"), ent_coef=ent_coef, learning_rate=1e-9)
    model = EnergySAC("MlpPolicy", "Pendulum-v1", seed=0, buffer_size=100, learning_starts=20, batch_size=16, **kwargs).learn(
        25
    )
    sigma = model.critic.value_scale.sigma.item()
    assert sigma > 2.0
    expected = 0.1 * sigma if ent_coef.endswith("scaled") else 0.1
    assert model._current_ent_coef().item() == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize(
    "ent_coef, message",
    [
        ("auto_0.1_scaled", "needs value_scale='auto', got 'none'"),
        ("auto_x_scaled", "ent_coef must be a number"),
        ("auto_0.1_mine", "ent_coef must be a number"),
        ("auto_0_scaled", "ent_coef must start"),
    ],
)
def test_refused_coefficients(ent_coef, message):
    with pytest.raises(ValueError, match=message):
        EnergySAC("MlpPolicy", "Pendulum-v1", ent_coef=ent_coef, policy_kwargs=dict(net_arch=[8], value_scale="none"))


def test_sb3s_sac_has_no_scale_that_a_coefficient_could_be_in_units_of():
    with pytest.raises(ValueError, match="needs value_scale='auto', got 'none'"):
        EnergySAC("MlpPolicy", "Pendulum-v1", ent_coef="auto_0.1_scaled", policy_kwargs=dict(refiner="none", backbone="plain"))


def test_an_action_does_not_depend_on_the_others_rows():
    model = EnergySAC(
        "MlpPolicy", "Pendulum-v1", seed=0, buffer_size=100, **flash_sac_kwargs(policy_kwargs=TINY | dict(n_particles=4))
    )
    obs = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    together = model.predict(obs, deterministic=True)[0]
    alone = np.concatenate([model.predict(obs[i : i + 1], deterministic=True)[0] for i in range(6)])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-4)
