"""Where particles end, for those who do not ask for their energies."""

import pytest
import torch as th

from sb3_energy.refiners import REFINERS, Langevin, refine, refined_particles
from sb3_energy.types import Target

B, N, D = 5, 3, 2


class Counted:
    def __init__(self, broken_from=None):
        self.calls, self.broken_from = 0, broken_from

    def __call__(self, x):
        self.calls += 1
        lost = self.broken_from is not None and self.calls >= self.broken_from
        return x.square().sum(-1) * (th.nan if lost else 1.0)


def ends(fn, refiner, n_steps, energy=None):
    particles = th.linspace(-1.0, 1.0, B * N * D).reshape(B, N, D)
    energy = energy or Counted()
    target = Target(energy, proposal_log_prob=th.zeros(B, N), proposal=lambda x: 0.1 * x.square().sum(-1))
    found = fn(refiner, particles, target, n_steps=n_steps, generator=th.Generator().manual_seed(0))
    return (found if isinstance(found, th.Tensor) else found.particles), energy.calls


@pytest.mark.parametrize("n_steps", [0, 1, 4])
@pytest.mark.parametrize("name", [name for name, refiner in REFINERS.items() if refiner.head is None])
def test_the_same_particles(name, n_steps):
    refiner = REFINERS[name]()
    if refiner.max_steps is not None and n_steps > refiner.max_steps:
        n_steps = refiner.max_steps
    theirs, cost = ends(refine, refiner, n_steps)
    ours, lean_cost = ends(refined_particles, refiner, n_steps)
    assert th.equal(ours, theirs)
    saved = int(name == "langevin" and n_steps > 0)
    assert lean_cost == cost - saved, "the last energies of a chain are nobody's business"


def test_without_noise():
    refiner = Langevin(noise_scale=0.0)
    assert th.equal(ends(refined_particles, refiner, 3)[0], ends(refine, refiner, 3)[0])


@pytest.mark.parametrize("step", [1, 2, 3])
def test_lost_chains_are_refused(step):
    with pytest.raises(FloatingPointError, match="Langevin"):
        ends(refined_particles, Langevin(max_displacement=None), 3, Counted(broken_from=step))


def test_a_last_step_to_nowhere_is_refused():
    class Jump(Langevin):
        def kernel(self, state, target, tick):
            mean, std = super().kernel(state, target, tick)
            return (mean * th.nan if tick.is_last else mean), std

    with pytest.raises(FloatingPointError, match="Jump"):
        ends(refined_particles, Jump(), 3)
