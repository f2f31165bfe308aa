"""What EnergySAC hands to an estimator, without a critic: a known energy, a base on one of its modes, taught heads."""

import functools
import math
from functools import partial
from typing import NamedTuple

import torch as th

from sb3_energy.energies import log_tanh_jacobian
from sb3_energy.networks import FieldNetwork
from sb3_energy.policies.heads import HEADS, HeadBatch, HeadTraining
from sb3_energy.refinement.arguments import RefinementArguments
from sb3_energy.refinement.bases import Gaussian
from sb3_energy.refinement.proposals import draw_proposals, squashed_log_prob
from sb3_energy.refinement.refinement import Refinement
from sb3_energy.types import Chains, EntropyContext, EntropyEstimate, Head
from tests.laws import modes_energy

ENERGIES = {
    1: modes_energy([[0.6], [-0.5]], 0.25),
    2: modes_energy([[0.6, 0.6], [-0.6, 0.6], [0.6, -0.6], [-0.6, -0.6]], 0.25),
}
"""Two modes in one dimension, four in two."""

N_FEATURES = 3
ONE = th.ones(())


def covering(dimension, batch=1, dtype=th.float32):
    """The base that SAC's actor settles on: one mode, ``.6`` with ``.25``, before the squash."""
    return Gaussian(th.full((batch, dimension), 0.693, dtype=dtype), th.full((batch, dimension), 0.39, dtype=dtype))


def refinement_of(name, **kwargs):
    """As a policy makes it; what is not said has the refiner's documented default."""
    return RefinementArguments(name, **kwargs).make_refinement()


class Setting(NamedTuple):
    """A refined policy that has one observation, many times."""

    refinement: Refinement
    dimension: int
    head: th.nn.Module | None = None
    reverse: FieldNetwork | None = None

    def latent(self, n, generator=None, chunk=5000):
        """``(n, d)`` draws before the squash, each for an observation of its own."""
        found = []
        for start in range(0, n, chunk):
            base = covering(self.dimension, min(chunk, n - start))
            if self.refinement.is_identity:
                found.append(base.mean + base.std * th.randn(base.mean.shape, generator=generator))
                continue
            with th.no_grad():
                head = self.bound_head(len(base.mean))
                found.append(self.refinement.sample(base, ENERGIES[self.dimension], ONE, generator=generator, head=head))
        return th.cat(found)

    def bound_head(self, batch, dtype=th.float32):
        return Head() if self.head is None else self.head.bind(th.zeros(batch, N_FEATURES, dtype=dtype))

    def context(self, batch, dtype=th.float32, base=None):
        """What EnergySAC makes for ``batch`` observations."""
        base = covering(self.dimension, batch, dtype) if base is None else base
        energy = ENERGIES[self.dimension]
        own = squashed_log_prob(base, base.mean + base.std * th.randn_like(base.mean)).unsqueeze(1)
        temperature = ONE.to(dtype)
        simulate = partial(self.refinement.simulate, base, energy, temperature, head=self.bound_head(batch, dtype))
        features = th.zeros(batch, N_FEATURES, dtype=dtype)
        reverse = None if self.reverse is None else partial(_reverse, self.reverse, features)
        return EntropyContext(
            own, partial(_propose, base, energy), simulate, reverse, partial(self._anneal, base, temperature)
        )

    def _anneal(self, base, temperature, n_particles):
        return self.refinement.annealed(n_particles).simulate(base, ENERGIES[self.dimension], temperature)

    def estimate(self, estimator, repetitions, chunk=500):
        """
        :return: minus the estimate's mean, what it says the entropy is, and its records' means
        """
        found = []
        for _ in range(0, repetitions, chunk):
            with th.no_grad():
                found.append(estimator.estimate(self.context(chunk)))
        names = found[0].records or {}
        return -mean_of(found), {name: float(th.stack([part.records[name].mean() for part in found]).mean()) for name in names}


def mean_of(estimates: list[EntropyEstimate]) -> float:
    return float(th.cat([part.log_prob for part in estimates]).double().mean())


def _propose(base, energy, n, uniform_fraction):
    particles, log_prob = draw_proposals(base, n, uniform_fraction)
    return energy(th.tanh(particles)), log_prob - log_tanh_jacobian(particles)


def _reverse(network, features, x, remaining):
    return network(features, x, x.new_full(x.shape[:2], remaining))


@functools.cache
def taught_head(refiner_name, dimension, n_updates=1500, batch=64):
    """The head that a refiner needs after some updates at one observation, ``None`` where it needs none."""
    field = refinement_of(refiner_name).refiner.head
    if field is None or (field == "prefix_energy" and dimension == 1):
        return None
    th.manual_seed(0)
    head = HEADS[field](N_FEATURES, dimension, net_arch=[64, 64])
    optimizer = th.optim.Adam(head.parameters(), lr=3e-3)
    schedule = th.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_updates)
    base = covering(dimension, batch)
    with th.no_grad():
        lesson = HeadBatch(th.zeros(batch, N_FEATURES), base, ENERGIES[dimension], None)
    for _ in range(n_updates):
        loss, _ = head.loss(lesson, HeadTraining())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return head.requires_grad_(False)


def taught_reverse(refinement, dimension, estimator, n_updates=600, batch=256, lr=3e-3):
    """The reverse drift after some steps of the regression that every estimate goes on with, and the losses."""
    th.manual_seed(0)
    network = FieldNetwork(N_FEATURES, dimension, dimension, [64, 64])
    setting = Setting(refinement, dimension, None, network)
    optimizer, losses = th.optim.Adam(network.parameters(), lr=lr), []
    schedule = th.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_updates)
    for _ in range(n_updates):
        with th.no_grad():
            loss = estimator.estimate(setting.context(batch)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return setting, losses


def flat(x):
    return 0.0 * x.sum(-1)


def context_of(refiner, target, particles, log_prob, n_steps, reverse=None):
    """Chains that start where they are told to, in a space that no squash changes."""
    chains = Chains(refiner, target, particles, log_prob, n_steps, flat)
    return EntropyContext(particles.new_full((len(particles), 1), math.nan), _forbidden, lambda n_chains: chains, reverse)


def _forbidden(n, uniform_fraction):
    raise AssertionError("no proposals are needed")
