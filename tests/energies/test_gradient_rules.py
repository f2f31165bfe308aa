"""Gradients of composed energies, by hand, against autograd's."""

from functools import partial

import pytest
import torch as th

from sb3_energy import autodiff
from sb3_energy.autodiff import energy_and_grad, gradient_of, with_gradient
from sb3_energy.energies import (
    QEnergy,
    added,
    near_proposal,
    on_box,
    reflected,
    squashed,
    standardized,
    tempered,
    transforms,
)
from sb3_energy.types import Networks

B, N, A = 4, 3, 2


def quadratic(scale, x):
    return (scale * (x - 0.3).square()).sum(-1)


@gradient_of(quadratic)
def quadratic_by_hand(scale, x):
    return quadratic(scale, x), 2.0 * scale * (x - 0.3)


def sine(x):
    return x.sin().sum(-1)


KNOWN, UNKNOWN = partial(quadratic, 1.7), sine
LOC, SCALE = th.randn(B, 1, A, dtype=th.float64), th.rand(B, 1, A, dtype=th.float64) + 0.1
COMPOSED = {
    "number": lambda fn: tempered(fn, 0.3),
    "scalar": lambda fn: tempered(fn, th.tensor(0.3)),
    "each observation": lambda fn: tempered(fn, th.rand(B, 1, dtype=th.float64) + 0.5),
    "squashed": squashed,
    "on_box": on_box,
    "reflected": reflected,
    "added": lambda fn: added(fn, UNKNOWN, KNOWN),
    "near_proposal": lambda fn: near_proposal(fn, 0.1 * LOC, 0.2),
    "standardized": lambda fn: standardized(fn, LOC, SCALE),
    "prefix": lambda fn: standardized(fn, LOC.repeat(1, 1, 2), SCALE.repeat(1, 1, 2)),
    "policy's": lambda fn: standardized(squashed(tempered(near_proposal(fn, 0.1 * LOC, 0.2), th.tensor(0.3))), LOC, SCALE),
}


@pytest.mark.parametrize("fn", [KNOWN, UNKNOWN], ids=["known", "unknown"])
@pytest.mark.parametrize("name", COMPOSED)
def test_rules(name, fn):
    energy, x = COMPOSED[name](fn), 2.0 * th.randn(B, N, A, dtype=th.float64)
    points = x.clone().requires_grad_(True)
    expected = energy(points)
    (gradients,) = th.autograd.grad(expected.sum(), points)
    for result in (energy_and_grad(energy, x), energy_and_grad(energy, points)):
        assert not result[0].requires_grad and not result[1].requires_grad
        th.testing.assert_close(result[0], expected.detach(), rtol=1e-12, atol=1e-12)
        th.testing.assert_close(result[1], gradients, rtol=1e-12, atol=1e-12)


def test_every_transform_has_a_rule():
    names = [name for name in vars(transforms) if name.startswith("_") and f"{name}_by_hand" in vars(transforms)]
    public = {"tempered", "squashed", "on_box", "reflected", "added", "near_proposal", "standardized"}
    assert {name[1:] for name in names} == public and all(getattr(transforms, name) in autodiff._RULES for name in names)


def test_a_known_gradient_is_not_asked_of_autograd(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("autograd was asked")

    x = th.randn(B, N, A, dtype=th.float64)
    energy = COMPOSED["policy's"](KNOWN)
    monkeypatch.setattr(th.autograd, "grad", refuse)
    energy_and_grad(energy, x)
    with pytest.raises(AssertionError, match="autograd"):
        energy_and_grad(COMPOSED["policy's"](UNKNOWN), x)


def test_second_derivatives_go_through_autograd():
    x = th.randn(B, N, A, dtype=th.float64, requires_grad=True)
    _, gradients = energy_and_grad(squashed(KNOWN), x, create_graph=True)
    assert gradients.requires_grad


class Critic:
    """One without a ``bind``."""

    def encode(self, obs):
        return obs

    def evaluate(self, features, actions):
        return th.stack([(actions - features.unsqueeze(1)).square().sum(-1), actions.sum(-1)])


def test_critics_of_the_users_own():
    obs, x = th.randn(B, A, dtype=th.float64), th.randn(B, N, A, dtype=th.float64)
    energy = QEnergy("min").bind(Networks(critic=Critic()), obs)
    points = x.clone().requires_grad_(True)
    (expected,) = th.autograd.grad(energy(points).sum(), points)
    th.testing.assert_close(energy_and_grad(energy, x)[1], expected)


def test_values_with_a_gradient():
    x = th.randn(B, A, dtype=th.float64, requires_grad=True)
    values, gradients = th.randn(B, 1, dtype=th.float64), th.randn(B, A, dtype=th.float64)
    found = with_gradient(values, gradients, 2.0 * x)
    assert th.equal(found.detach(), values)
    th.testing.assert_close(th.autograd.grad(found.sum(), x)[0], 2.0 * gradients)


def test_inference_mode_is_no_reason_to_stand_still():
    x = th.randn(B, N, A, dtype=th.float64)
    expected = energy_and_grad(squashed(KNOWN), x)[1]
    with th.inference_mode():
        th.testing.assert_close(energy_and_grad(squashed(KNOWN), x)[1], expected)
        with pytest.raises(RuntimeError, match=r"use torch\.no_grad"):
            energy_and_grad(squashed(UNKNOWN), x)
