"""What a potential learns from at some observations: candidates and the best of them, ways from the base, negatives."""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch as th

from sb3_energy.autodiff import energy_and_grad
from sb3_energy.checks import check_choice, check_integer, check_number, plain_fields
from sb3_energy.energies import folded, reflected, tempered
from sb3_energy.losses import (
    VALUE_WEIGHTS,
    contrastive_divergence_loss,
    points_between,
    transport_loss,
    transport_pairs,
)
from sb3_energy.networks import PotentialNetwork
from sb3_energy.refinement.bases import Gaussian
from sb3_energy.refinement.proposals import draw_proposals
from sb3_energy.refiners import Langevin, refined_particles
from sb3_energy.types import Target

POSITIVES = ("gibbs", "best")


@dataclass(frozen=True)
class PotentialTraining:
    """
    How a potential learns: at which part of a batch, from which candidates, and how much each loss counts.

    :param n_observations: of each batch, at the most
    :param n_candidates: for each observation: the replayed action, ``n_refined`` draws of the policy, and of the others one
        half from the Gaussian and one from the box; at least ``2 top_k``
    :param top_k: so many of them are the positives, what the potential leads to
    :param positives: ``"gibbs"``: drawn without replacement by their weight ``exp(Q̂ / ε)`` over the density of Gaussian and
        box (of the few that are replayed or refined, too), so that all good actions are among them, wherever the Gaussian is;
        ``"best"``: those of highest Q, more of which are where the Gaussian is
    :param n_refined: how many of the candidates are draws of the policy
    :param n_negatives: for each observation, an even number: one half Langevin chains, the other actions drawn evenly from
        the box
    :param negative_steps: of the chains
    :param negative_step: ``Δt`` of each of their steps
    :param max_energy: ``|V|`` beyond which it costs, in units of the temperature: random actions are always among the
        negatives, and what is pushed up forever would be all the potential learns
    :param expectile: of the behaviour's value, in [0.5, 1)
    :param largest_weight: bound of the value weight
    :raises ValueError: if a number is out of range
    :raises TypeError: if something has the wrong type
    """

    n_observations: int = 32
    n_candidates: int = 64
    top_k: int = 20
    positives: str = "gibbs"
    n_refined: int = 4
    n_negatives: int = 16
    negative_steps: int = 5
    negative_step: float = 0.05
    max_energy: float = 10.0
    expectile: float = 0.9
    largest_weight: float = 10.0

    def __post_init__(self) -> None:
        plain_fields(self)
        for name in ("n_observations", "top_k", "n_negatives", "negative_steps"):
            check_integer(name, getattr(self, name), minimum=1)
        check_integer("n_candidates", self.n_candidates, minimum=2)
        check_integer("n_refined", self.n_refined, minimum=0)
        check_choice("positives", self.positives, POSITIVES)
        if self.n_candidates < 2 * self.top_k:
            raise ValueError(f"n_candidates must be at least 2 top_k = {2 * self.top_k}, got {self.n_candidates}")
        if self.n_candidates - self.n_refined - 1 < 20:
            raise ValueError(
                "n_candidates must leave 20 that are neither replayed nor refined, of which Q's spread is measured, "
                f"got {self.n_candidates} with n_refined={self.n_refined}"
            )
        if self.n_negatives % 2 == 1:
            raise ValueError(f"n_negatives must be even, got {self.n_negatives}")
        for name in ("negative_step", "max_energy", "largest_weight"):
            check_number(name, getattr(self, name), strict=True)
        check_number("expectile", self.expectile)
        if not 0.5 <= self.expectile < 1.0:
            raise ValueError(f"expectile must lie in [0.5, 1), got {self.expectile!r}")

    @property
    def n_chains(self) -> int:
        """Of the negatives, those that are chains."""
        return self.n_negatives // 2


class PotentialSettings(NamedTuple):
    """
    Which losses, and how much they count: arguments of the algorithm, checked.

    :param transport_coef: of the transport loss
    :param divergence_coef: ``ω``, of the contrastive divergence
    :param end_to_end_coef: of ``-E[Q̂]`` through the sampler
    :param matching_coef: of the gradient matching loss
    :param value_weight: ``"relu"``, ``"exp"`` or ``None``
    """

    transport_coef: float
    divergence_coef: float
    end_to_end_coef: float
    matching_coef: float
    value_weight: str | None

    @property
    def is_any(self) -> bool:
        """Whether there is a loss at all."""
        return any(coef > 0.0 for coef in self[:4])

    def check(self, guidance: float) -> "PotentialSettings":
        """
        :param guidance: ``λ`` of the policy's energy
        :return: the same, in plain numbers
        :raises ValueError: if a number is out of range, or they do not go together
        :raises TypeError: if something has the wrong type
        """
        names = ("transport_coef", "divergence_coef", "end_to_end_coef", "matching_coef")
        numbers: dict[str, Any] = {name: check_number(name, getattr(self, name)) for name in names}
        check_choice("value_weight", self.value_weight, (*VALUE_WEIGHTS, None))
        if self.matching_coef > 0.0 and guidance != 0.0:
            raise ValueError(
                "matching_coef above 0 makes the potential follow Q itself and needs "
                f"policy_kwargs=dict(energy_kwargs=dict(guidance=0)), got guidance={guidance!r}"
            )
        return self._replace(**numbers)


class Candidates(NamedTuple):
    """
    Actions in the box, and what the critic says of them.

    :param actions: ``(B, N, A)``
    :param q_values: ``(B, N)``
    :param log_prob: ``(B, N)``, of the mixture of Gaussian and box, on the box
    """

    actions: th.Tensor
    q_values: th.Tensor
    log_prob: th.Tensor

    def best(self, k: int) -> th.Tensor:
        """
        :param k: how many
        :return: ``(B, k, A)``, those of highest value
        """
        return self._top(self.q_values, k)

    def draw(self, k: int, temperature: float | th.Tensor) -> th.Tensor:
        """
        Without replacement, in proportion to ``exp(Q / temperature) / density``: the largest of log-weights with Gumbel noise
        (Gumbel-top-k, Kool et al. 2019, section 2.3).

        :param k: how many
        :param temperature: in units of Q
        :return: ``(B, k, A)``
        """
        noise = -th.empty_like(self.q_values).exponential_().log()
        return self._top(self.q_values / temperature - self.log_prob + noise, k)

    def _top(self, keys: th.Tensor, k: int) -> th.Tensor:
        index = keys.topk(k, dim=1).indices
        return self.actions.gather(1, index.unsqueeze(-1).expand(-1, -1, self.actions.shape[2]))


def uniform_actions(like: th.Tensor, n: int) -> th.Tensor:
    """
    :param like: ``(B, ..., A)``
    :param n: how many for each observation
    :return: ``(B, n, A)``, drawn evenly from the box
    """
    return th.rand(len(like), n, like.shape[-1], device=like.device, dtype=like.dtype) * 2.0 - 1.0


def base_actions(base: Gaussian, n: int, uniform_fraction: float) -> th.Tensor:
    """
    :param base: the Gaussian before the squash
    :param n: how many for each observation
    :param uniform_fraction: part of them that is drawn evenly from the box
    :return: ``(B, n, A)`` in the box
    """
    return th.tanh(draw_proposals(base, n, uniform_fraction).particles)


def ways(
    network: PotentialNetwork, features: th.Tensor, starts: th.Tensor, ends: th.Tensor
) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """
    Optimal pairs of an observation's starts and ends, and the potential's gradient somewhere between them.

    :param network: ``V``
    :param features: ``(B, F)``, without a graph
    :param starts: ``(B, N, A)``
    :param ends: ``(B, N, A)``
    :return: gradients with a graph, starts, and ends in the order of their starts, ``(B, N, A)`` each
    """
    ends = transport_pairs(starts, ends)
    time = th.rand(starts.shape[:2], device=starts.device, dtype=starts.dtype)
    points = points_between(starts, ends, time)
    return energy_and_grad(partial(network, features), points, create_graph=True)[1], starts, ends


def weighted_transport_loss(
    network: PotentialNetwork,
    features: th.Tensor,
    starts: th.Tensor,
    ends: th.Tensor,
    weights: th.Tensor | None = None,
) -> th.Tensor:
    """
    ``mean_b w_b |∇V(a_t) + (a_1 - a_0)|²``: each observation's loss by its own weight, before the mean over observations.

    :param network: ``V``
    :param features: ``(B, F)``, without a graph
    :param starts: ``(B, N, A)``
    :param ends: ``(B, N, A)``
    :param weights: ``(B,)`` (``None``: 1)
    :return: scalar
    """
    losses = transport_loss(*ways(network, features, starts, ends))
    return (losses if weights is None else weights * losses).mean()


def chain_ends(
    network: PotentialNetwork, features: th.Tensor, starts: th.Tensor, temperature: float, training: PotentialTraining
) -> th.Tensor:
    """
    Short Langevin runs of ``exp(-V / ε)`` in the box, whose walls reflect.

    :param network: ``V``
    :param features: ``(B, F)``, without a graph
    :param starts: ``(B, M, A)`` in the box
    :param temperature: ``ε``
    :param training: how many steps, and how long they are
    :return: ``(B, M, A)`` in the box, without a graph
    """
    with th.no_grad():
        target = Target(reflected(tempered(network.bind(features), temperature)))
        refiner = Langevin(2.0 * temperature * training.negative_step)
        return folded(refined_particles(refiner, starts, target, n_steps=training.negative_steps))


def guarded_divergence_loss(
    network: PotentialNetwork,
    features: th.Tensor,
    positives: th.Tensor,
    negatives: th.Tensor,
    temperature: float,
    max_energy: float,
) -> th.Tensor:
    """
    Contrastive divergence, and a price for ``|V| / ε`` beyond a bound.

    :param network: ``V``
    :param features: ``(B, F)``, without a graph
    :param positives: ``(B, N, A)``
    :param negatives: ``(B, M, A)``
    :param temperature: ``ε``
    :param max_energy: the bound
    :return: scalar
    """
    potentials = network(features, th.cat([positives, negatives], dim=1))
    good, bad = potentials.split([positives.shape[1], negatives.shape[1]], dim=1)
    excess = (potentials.abs() / temperature - max_energy).relu().square().mean()
    return contrastive_divergence_loss(good, bad, temperature).mean() + excess
