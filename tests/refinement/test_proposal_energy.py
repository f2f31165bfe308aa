"""The proposals' density as an energy: a density in every coordinate, with the gradient that autograd finds."""

import pytest
import torch as th

from sb3_energy.autodiff import energy_and_grad
from sb3_energy.refinement.bases import Gaussian
from sb3_energy.refinement.boxes import BOXES, Framed
from sb3_energy.refinement.proposal_energy import proposal_energy
from sb3_energy.refinement.proposals import draw_proposals

BASE = Gaussian(th.tensor([[0.3, -1.0], [0.0, 0.5]], dtype=th.float64), th.tensor([[0.4, 0.9], [0.05, 1.3]], dtype=th.float64))


def coordinates(name, base=BASE):
    box, _, framed = name.partition(", ")
    return Framed(BOXES[box], *BOXES[box].frame(base)) if framed else BOXES[box]


each_box = pytest.mark.parametrize("name", ["tanh", "tanh, framed", "reflect", "reflect, framed"])


@each_box
@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_it_is_the_density_of_the_draws(name, fraction):
    particles, log_prob = draw_proposals(BASE, 8, fraction, generator=th.Generator().manual_seed(0))
    space = coordinates(name)
    found = proposal_energy(space, BASE, fraction)(space.start(particles))
    th.testing.assert_close(found, -space.log_prob(particles, log_prob), rtol=1e-6, atol=1e-6)


@each_box
def test_it_integrates_to_one(name):
    base = Gaussian(BASE.mean[:1, :1], BASE.std[:1, :1])
    space = coordinates(name, base)
    low, high = (space.start(th.tensor([[[end]]], dtype=th.float64)).item() for end in (-14.0, 14.0))
    x = th.linspace(low, high, 400_001, dtype=th.float64)
    density = (-proposal_energy(space, base, 0.25)(x.reshape(1, -1, 1))).exp().squeeze(0)
    assert th.trapezoid(density, x).item() == pytest.approx(1.0, abs=1e-3)


@each_box
@pytest.mark.parametrize("shape", [(2, 7, 2), (2, 3, 2, 1)])
def test_its_gradient_is_autograd_s(name, shape):
    mean, std = (part.reshape(2, *shape[2:]) for part in BASE)
    base = Gaussian(mean, std)
    space = coordinates(name, base)
    energy = proposal_energy(space, base, 0.5)
    x = (0.8 * th.randn(shape, dtype=th.float64, generator=th.Generator().manual_seed(0))).requires_grad_(True)
    values = energy(x)
    (expected,) = th.autograd.grad(values.sum(), x)
    found, gradients = energy_and_grad(energy, x.detach())
    th.testing.assert_close(found, values.detach())
    th.testing.assert_close(gradients, expected)
    assert gradients.abs().max() > 0.1
