"""Learned heads: networks that some refiners need beside the energy, trained online toward its Gibbs distribution."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple, Protocol

import torch as th
from torch import nn

from sb3_energy.checks import check_fraction, check_integer
from sb3_energy.energies import squashed
from sb3_energy.losses import (
    adaptively_weighted,
    average_divergence_targets,
    draw_times,
    flow_matching_loss,
    mean_flow_targets,
    posterior_velocity,
    prefix_loss,
)
from sb3_energy.networks import FieldNetwork, PrefixEnergies, VelocityNetwork
from sb3_energy.refinement.bases import Gaussian
from sb3_energy.refinement.proposals import draw_coordinates, draw_proposals
from sb3_energy.refinement.weighted_candidates import Candidates, CandidateSettings, draw_candidates
from sb3_energy.stats import effective_sample_size, importance_resample
from sb3_energy.types import EnergyFn, Head

LATEST_TIME = 0.999
"""Of a point of the flow: at 1, a point does not depend on its start."""

ERROR_FLOOR = 0.1
"""Squared error of an average velocity above which its weight falls."""


@dataclass(frozen=True)
class HeadTraining(CandidateSettings):
    """
    How a head learns: from which part of a batch, from which candidates, and at how many points of each observation.

    An update costs the product of observations and candidates. Few observations with many candidates are the better use of
    it: few candidates bias every update toward the mode of the base, and fewer observations only add noise.

    :param n_observations: largest number of observations of each batch
    :param n_candidates: number of candidates for each observation, even and at least 8
    :param refined_fraction: part of them that is refined, in [0, 1)
    :param replay_std: standard deviation of the kernel around the replayed action, pre-tanh (``None``: no kernel)
    :param step_size: of the Langevin step of the refined ones, in units of the base's variance
    :param n_points: number of points for each observation at which the head's networks are evaluated
    :raises ValueError: if a number is out of range
    :raises TypeError: if an argument has the wrong type
    """

    n_candidates: int = 64
    n_observations: int = 64
    n_points: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("n_observations", self.n_observations, minimum=1)
        check_integer("n_points", self.n_points, minimum=1)


class HeadBatch(NamedTuple):
    """
    One batch of a head's loss.

    :param features: ``(B, F)`` of the observations, without a graph
    :param base: the Gaussian actor at these observations, without a graph
    :param energy: ``(B, N, A) -> (B, N)`` on the box, temperature included
    :param replayed: ``(B, A)`` replayed actions, pre-tanh, or ``None``
    """

    features: th.Tensor
    base: Gaussian
    energy: EnergyFn
    replayed: th.Tensor | None


class LearnedHead(Protocol):
    """A network of a policy that a refiner needs."""

    def bind(self, features: th.Tensor) -> Head:
        """
        Condition the head on observation features.

        :param features: ``(B, F)``
        :return: the head bound to these observations
        """
        ...

    def loss(
        self, head_batch: HeadBatch, training: HeadTraining, generator: th.Generator | None = None
    ) -> tuple[th.Tensor, dict[str, float]]:
        """
        Training loss of the head.

        :param head_batch: one batch
        :param training: how to learn
        :param generator: source of the noise (``None``: torch's global one)
        :return: scalar, and numbers for the logger
        """
        ...


class VelocityHead(nn.Module):
    """
    The velocity of a flow from the base to the Gibbs distribution, pre-tanh.

    :param features_dim: ``F``
    :param action_dim: ``A``
    :param kwargs: of :class:`sb3_energy.networks.VelocityNetwork`
    """

    field: ClassVar[str] = "velocity"

    def __init__(self, features_dim: int, action_dim: int, **kwargs: Any):
        super().__init__()
        self.velocity = VelocityNetwork(features_dim, action_dim, **kwargs)

    def bind(self, features: th.Tensor) -> Head:
        """
        Condition the velocity field on observation features.

        :param features: ``(B, F)``
        :return: the velocity at these observations
        """
        return Head(velocity=self.velocity.bind(features))

    def loss(
        self, head_batch: HeadBatch, training: HeadTraining, generator: th.Generator | None = None
    ) -> tuple[th.Tensor, dict[str, float]]:
        """
        Flow-matching loss on candidate actions, weighted by their energies.

        :param head_batch: one batch
        :param training: how to learn
        :param generator: source of the noise (``None``: torch's global one)
        :return: scalar loss, and the candidates' effective sample size
        """
        candidates = draw_candidates(
            head_batch.base, head_batch.energy, replayed=head_batch.replayed, settings=training, generator=generator
        )
        shape = (len(head_batch.features), training.n_points)
        time = LATEST_TIME * th.rand(shape, generator=generator, device=head_batch.features.device)
        points, targets = way_points(head_batch.base, candidates, time, generator)
        loss = flow_matching_loss(self.velocity(head_batch.features, points, time), targets).mean()
        return loss, _records(candidates)


class AverageVelocityHead(nn.Module):
    """
    The average velocity of a flow from the base to the Gibbs distribution and its average divergence, pre-tanh.

    :param features_dim: ``F``
    :param action_dim: ``A``
    :param same_fraction: part of the points at which the average is over no time, in (0, 1)
    :param kwargs: of :class:`sb3_energy.networks.VelocityNetwork`
    :raises ValueError: if ``same_fraction`` lies outside
    :raises TypeError: if it is not a number
    """

    field: ClassVar[str] = "average_velocity"

    def __init__(self, features_dim: int, action_dim: int, same_fraction: float = 0.25, **kwargs: Any):
        super().__init__()
        self.same_fraction = check_fraction("same_fraction", same_fraction, strict=True)
        self.velocity = VelocityNetwork(features_dim, action_dim, two_times=True, **kwargs)
        kwargs.pop("gated", None)
        self.divergence = FieldNetwork(features_dim, action_dim, 1, two_times=True, **kwargs)

    def bind(self, features: th.Tensor) -> Head:
        """
        Condition the MeanFlow networks on observation features.

        :param features: ``(B, F)``
        :return: average velocity and divergence at these observations
        """
        velocity, divergence = self.velocity.bind_average(features), partial(_scalar, self.divergence, features)
        return Head(average_velocity=velocity, average_divergence=divergence)

    def loss(
        self, head_batch: HeadBatch, training: HeadTraining, generator: th.Generator | None = None
    ) -> tuple[th.Tensor, dict[str, float]]:
        """
        MeanFlow loss on candidate actions, weighted by their energies.

        :param head_batch: one batch
        :param training: how to learn
        :param generator: source of the noise (``None``: torch's global one)
        :return: scalar loss, the sum over both networks, and the candidates' effective sample size
        """
        candidates = draw_candidates(
            head_batch.base, head_batch.energy, replayed=head_batch.replayed, settings=training, generator=generator
        )
        shape = (len(head_batch.features), training.n_points)
        time, end = draw_times(shape, self.same_fraction, head_batch.features, generator)
        time = time.clamp(max=LATEST_TIME)
        end = th.maximum(time, end)
        points, velocities = way_points(head_batch.base, candidates, time, generator)
        head = self.bind(head_batch.features)
        assert head.average_velocity is not None and head.average_divergence is not None
        with th.no_grad():
            own = head.average_velocity(points, time, time)
        targets = mean_flow_targets(head.average_velocity, points, time, end, velocities, own)
        errors = (head.average_velocity(points, time, end) - targets).square().sum(-1)
        loss = adaptively_weighted(errors, ERROR_FLOOR).mean()
        signs = th.randint(0, 2, points.shape, generator=generator, device=points.device).to(points.dtype) * 2.0 - 1.0
        target = average_divergence_targets(head.average_velocity, head.average_divergence, points, time, end, own, signs)
        divergence_loss = (head.average_divergence(points, time, end) - target).square().mean()
        return loss + divergence_loss, _records(candidates) | {"head_divergence_loss": divergence_loss.item()}


class PrefixHead(nn.Module):
    """
    Energies of the first coordinates of an action, on the box and with the temperature.

    :param features_dim: ``F``
    :param action_dim: ``A``
    :param kwargs: of :class:`sb3_energy.networks.PrefixEnergies`
    """

    field: ClassVar[str] = "prefix_energy"

    def __init__(self, features_dim: int, action_dim: int, **kwargs: Any):
        super().__init__()
        self.prefix_energies = PrefixEnergies(features_dim, action_dim, **kwargs)

    def bind(self, features: th.Tensor) -> Head:
        """
        Condition the prefix energies on observation features.

        :param features: ``(B, F)``
        :return: energies of prefixes at these observations
        """
        return Head(prefix_energy=self.prefix_energies.bind(features))

    def loss(
        self, head_batch: HeadBatch, training: HeadTraining, generator: th.Generator | None = None
    ) -> tuple[th.Tensor, dict[str, float]]:
        """
        Training loss of the energies of action prefixes.

        :param head_batch: one batch
        :param training: ``n_points`` prefixes of each length, each with a quarter of ``n_candidates`` next coordinates
        :param generator: source of the noise (``None``: torch's global one)
        :return: the loss of all prefixes; 0 where there is one coordinate, which has none
        """
        if self.prefix_energies.event_dim == 1:
            return head_batch.features.new_zeros((), requires_grad=True), {}
        points = draw_proposals(head_batch.base, training.n_points, 0.5, generator=generator).particles
        coordinates = draw_coordinates(head_batch.base, training.n_candidates // 4, 0.5, generator=generator)
        energy, prefix_energy = squashed(head_batch.energy), squashed(self.prefix_energies.bind(head_batch.features))
        return prefix_loss(energy, prefix_energy, points, coordinates.particles, coordinates.log_prob), {}


HEADS: dict[str, type[VelocityHead] | type[AverageVelocityHead] | type[PrefixHead]] = {
    head.field: head for head in (VelocityHead, AverageVelocityHead, PrefixHead)
}
"""The heads, by the field of :class:`sb3_energy.types.Head` that they fill; a refiner names it as its ``head``."""


_COMMON = ("net_arch", "activation_fn", "backbone")
HEAD_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "velocity": (*_COMMON, "gated", "n_frequencies"),
    "average_velocity": (*_COMMON, "gated", "n_frequencies", "same_fraction"),
    "prefix_energy": _COMMON,
}
"""Keys of a policy's ``head_kwargs``, by head."""

UNREAD_TRAINING: dict[str, tuple[str, ...]] = {"prefix_energy": ("refined_fraction", "replay_std", "step_size")}
"""Fields of :class:`HeadTraining` that a head does not read, by head: prefixes learn from candidates of their own."""


def _scalar(network: FieldNetwork, features: th.Tensor, x: th.Tensor, t: th.Tensor, r: th.Tensor) -> th.Tensor:
    return network(features, x, t, r).squeeze(-1)


def way_points(
    base: Gaussian, candidates: Candidates, time: th.Tensor, generator: th.Generator | None = None
) -> tuple[th.Tensor, th.Tensor]:
    """
    Points on straight lines from the base to candidates drawn by weight, and the velocity of the flow at them.

    :param base: the Gaussian
    :param candidates: weighted candidates
    :param time: ``(B, P)``
    :param generator: source of the draws (``None``: torch's global one)
    :return: points and velocities, ``(B, P, A)`` each
    """
    ends, _ = importance_resample(candidates.particles, candidates.log_weights, time.shape[1], generator=generator)
    noise = th.randn(ends.shape, generator=generator, device=ends.device, dtype=ends.dtype)
    starts = base.mean.unsqueeze(1) + base.std.unsqueeze(1) * noise
    points = starts + time.unsqueeze(-1) * (ends - starts)
    return points, posterior_velocity(points, time, candidates.particles, candidates.log_weights, *base)


def _records(candidates: Candidates) -> dict[str, float]:
    return {"head_effective_sample_size": effective_sample_size(candidates.log_weights).mean().item()}
