"""What the gallery draws: every refiner on every target, with what it needs to be drawn from."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch as th
from torch import nn

from benchmarks.sampler_targets import CellProbabilities, targets
from sb3_energy.energies import squashed
from sb3_energy.policies.heads import HEADS, HeadBatch, HeadTraining, LearnedHead
from sb3_energy.refinement.arguments import RefinementArguments
from sb3_energy.refinement.bases import Gaussian
from sb3_energy.refinement.refinement import Refinement
from sb3_energy.refiners import REFINERS
from sb3_energy.types import EnergyFn, Head

CHUNK = 2_000
BATCH = 16
"""Equal observations from which heads learn."""
TRAINING = HeadTraining(n_candidates=128, n_points=16)
"""Many candidates: with few of them, self-normalised weights keep too much of the mode that the base sits on."""
NET_ARCHS = {"velocity": [256, 256], "average_velocity": [256, 256], "prefix_energy": [32, 32]}
"""Of the learned heads; energies of prefixes are functions of one number here."""


class Counts:
    """Evaluations of one particle each: of the energy without and with a gradient, and of a learned head."""

    def __init__(self) -> None:
        self.energies = self.gradients = self.heads = 0

    def energy(self, energy: EnergyFn) -> EnergyFn:
        """
        :param energy: any
        :return: the same, which counts
        """

        def counted(actions: th.Tensor) -> th.Tensor:
            n = actions.shape[0] * actions.shape[1]
            if th.is_grad_enabled() and actions.requires_grad:
                self.gradients += n
            else:
                self.energies += n
            return energy(actions)

        return counted

    def head(self, head: Head) -> Head:
        """
        :param head: bound to observations
        :return: the same, which counts
        """
        return Head(*(None if function is None else self._counted(function) for function in head))

    def _counted(self, function: Callable[..., th.Tensor]) -> Callable[..., th.Tensor]:
        def counted(x: th.Tensor, *times: th.Tensor) -> th.Tensor:
            self.heads += x.shape[0] * x.shape[1]
            return function(x, *times)

        return counted


class Problem(NamedTuple):
    """
    A target and what is fitted to it.

    :param energy: ``(B, N, 2) -> (B, N)`` on the box, at a temperature of 1
    :param cells: the truth
    :param base: the Gaussian, ``(1, 2)``
    :param heads: what refiners that learn have learned, by the name of :data:`sb3_energy.policies.heads.HEADS`
    """

    energy: EnergyFn
    cells: CellProbabilities
    base: Gaussian
    heads: Mapping[str, LearnedHead]

    def bases(self, n: int) -> Gaussian:
        """
        :param n: of observations
        :return: the Gaussian at each
        """
        return Gaussian(*(part.repeat(n, 1) for part in self.base))

    def head(self, refinement: Refinement, n: int) -> Head:
        """
        :param refinement: whose refiner may need a head
        :param n: of observations
        :return: what the head says there
        """
        name = getattr(refinement.refiner, "head", None)
        return Head() if name is None else self.heads[name].bind(features(n))


def features(n: int) -> th.Tensor:
    """
    :param n: of observations
    :return: ``(n, 1)``: they are all alike
    """
    return th.zeros(n, 1)


def problems(n_updates: int) -> dict[str, Problem]:
    """
    :param n_updates: of each learned head
    :return: by the target's name
    """
    found = {}
    for name, energy in targets().items():
        base = fitted_base(energy)
        heads = {field: fitted_head(field, energy, base, n_updates) for field in HEADS}
        found[name] = Problem(energy, CellProbabilities(energy), base, heads)
        print(f"learned: {name}", flush=True)
    return found


def fitted_base(energy: EnergyFn, n_updates: int = 1000, dimension: int = 2) -> Gaussian:
    """
    The Gaussian that SAC's actor loss fits to the target: it settles on one mode, with about that mode's width.

    :param energy: the target, at a temperature of 1
    :param n_updates: of Adam
    :param dimension: of an action
    :return: mean and standard deviation ``(1, d)``, before the squash
    """
    generator, target = th.Generator().manual_seed(0), squashed(energy)
    first = th.tensor([0.3, 0.1]).repeat(dimension)[:dimension].reshape(1, -1)
    mean, log_std = first.requires_grad_(True), th.full_like(first, -1.0).requires_grad_(True)
    optimizer = th.optim.Adam([mean, log_std], lr=0.02)
    for _ in range(n_updates):
        particles = mean + log_std.exp() * th.randn((256, dimension), generator=generator)
        loss = target(particles.unsqueeze(0)).mean() - log_std.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Gaussian(mean.detach(), log_std.detach().exp())


def fitted_head(field: str, energy: EnergyFn, base: Gaussian, n_updates: int) -> LearnedHead:
    """
    A head that has learned one energy, by the loss with which a policy trains it online, from a batch of equal observations.

    :param field: in :data:`sb3_energy.policies.heads.HEADS`
    :param energy: the target, at a temperature of 1
    :param base: the Gaussian, ``(1, 2)``
    :param n_updates: of Adam, whose learning rate falls from .002 to 0
    :return: the head
    """
    generator = th.Generator().manual_seed(0)
    with th.random.fork_rng(devices=[]):
        th.manual_seed(0)
        head: Any = HEADS[field](1, 2, net_arch=NET_ARCHS[field], activation_fn=nn.SiLU, backbone="plain")
    head_batch = HeadBatch(features(BATCH), Gaussian(*(part.repeat(BATCH, 1) for part in base)), energy, None)
    learn(head, n_updates, lambda: head.loss(head_batch, TRAINING, generator)[0])
    return head.requires_grad_(False)


def learn(network: nn.Module, n_updates: int, loss_of: Callable[[], th.Tensor]) -> None:
    """
    :param network: whose parameters learn
    :param n_updates: of Adam, whose learning rate falls from .002 to 0
    :param loss_of: what to lower
    """
    optimizer = th.optim.Adam(network.parameters(), lr=2e-3)
    schedule = th.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, n_updates)
    for _ in range(n_updates):
        optimizer.zero_grad()
        loss_of().backward()
        optimizer.step()
        schedule.step()


def refinements(more: int) -> dict[str, Refinement]:
    """
    :param more: factor of the number of steps
    :return: every refiner with its defaults, those that converge with more steps too, and some with other settings
    """
    made = {}
    for name, cls in REFINERS.items():
        made[name] = make(name)
        if name == "langevin":
            made["langevin, 1 particle"] = make(name, n_particles=1)
            made["langevin, step .1"] = make(name, dict(step_size=0.1))
        if name == "autoregressive_derivative_free":
            made[f"{name}, 1 round"] = make(name, n_steps=1)
        if cls.exact and cls.max_steps is None:
            made[f"{name}, {cls.default_steps * more} steps"] = make(name, n_steps=cls.default_steps * more)
        if name in ("langevin", "mala"):
            made[f"{name}, reflect"] = make(name, box="reflect")
    return made


def make(
    name: str,
    kwargs: dict[str, Any] | None = None,
    n_steps: int | None = None,
    n_particles: int | None = None,
    box: str = "tanh",
) -> Refinement:
    """
    :param name: of the refiner
    :param kwargs: its arguments
    :param n_steps: as a policy's ``refiner_steps``
    :param n_particles: as a policy's
    :param box: as a policy's
    :return: the refinement, as a policy makes it
    """
    return RefinementArguments(name, kwargs, n_steps, n_particles, box=box).make_refinement()


def draws_of(refinement: Refinement, problem: Problem, n: int, seed: int, counts: Counts | None = None) -> th.Tensor:
    """
    :param refinement: as a policy has it
    :param problem: what to draw from
    :param n: how many draws, each for an observation of its own
    :param seed: of the noise
    :param counts: to which evaluations are added
    :return: ``(n, 2)`` on the box
    """
    generator, one, found = th.Generator().manual_seed(seed), th.ones(()), []
    counts = Counts() if counts is None else counts
    energy = counts.energy(problem.energy)
    for start in range(0, n, CHUNK):
        rows = min(CHUNK, n - start)
        base = problem.bases(rows)
        if refinement.is_identity:
            found.append(base.mean + base.std * th.randn(base.mean.shape, generator=generator))
        else:
            head = counts.head(problem.head(refinement, rows))
            found.append(refinement.sample(base, energy, one, generator=generator, head=head).detach())
    return th.tanh(th.cat(found))
