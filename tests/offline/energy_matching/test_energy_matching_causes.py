"""What is NaN or infinite in an Energy Matching is named, and no parameter is changed by it."""

import numpy as np
import pytest
import torch as th

from sb3_energy import EnergyMatching
from sb3_energy.offline.energy_matching import energy_matching

NAN, INF = float("nan"), float("inf")


def small(**kwargs):
    return EnergyMatching(net_arch=[8], batch_size=16, n_steps=3, n_particles=4, warm_up_steps=2, seed=0, **kwargs)


DATA = np.random.default_rng(0).standard_normal((40, 2)).astype(np.float32)


@pytest.mark.parametrize("value", [NAN, INF, 1e300])
def test_data(value):
    model, data = small(), DATA.astype(np.float64)
    data[3, 1] = value
    with (
        np.errstate(all="ignore"),
        pytest.raises(ValueError, match="samples must be finite, got NaN or infinity"),
    ):
        model.fit(data)
    assert model.network is None


@pytest.mark.parametrize("name", ["learning_rate", "final_learning_rate", "temperature", "sampling_time", "magnitude_coef"])
@pytest.mark.parametrize("value", [NAN, INF, -1.0])
def test_settings(name, value):
    with pytest.raises(ValueError, match=f"{name} must be"):
        small(**{name: value})


@pytest.mark.parametrize("act", ["fit", "sample"])
def test_a_potential_that_is_nan(act):
    model = small(ema_decay=None).fit(DATA, gradient_steps=4)
    with th.no_grad():
        next(model.network.parameters()).fill_(NAN)
    with pytest.raises(FloatingPointError, match=r"the potential's parameters contain NaN \(.*\); try a lower") as caught:
        model.fit(DATA, gradient_steps=1) if act == "fit" else model.sample(3)
    assert len(str(caught.value)) < 400


def test_a_finite_loss_whose_gradient_is_not(monkeypatch):
    model = small().fit(DATA, gradient_steps=4)
    original = energy_matching.joint_losses

    def with_a_root(network, *args):
        losses = original(network, *args)
        return losses | dict(loss=losses["loss"] + (0.0 * next(network.parameters())).abs().sqrt().sum())

    monkeypatch.setattr(energy_matching, "joint_losses", with_a_root)
    before = [parameter.detach().clone() for parameter in model.network.parameters()]
    with pytest.raises(FloatingPointError, match="the gradient of the loss of gradient step 5 contains NaN or infinity"):
        model.fit(DATA, gradient_steps=1)
    assert all(th.equal(*pair) for pair in zip(before, model.network.parameters(), strict=True))
    assert model.n_updates == 4
