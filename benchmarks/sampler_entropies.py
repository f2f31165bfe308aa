"""How far each estimator of the entropy is from the entropy of what a refiner really draws."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch as th
from scipy.spatial import cKDTree

from benchmarks.sampler_draws import Problem, features, learn
from sb3_energy.energies import log_tanh_jacobian
from sb3_energy.entropy import PathEntropy, soft_value
from sb3_energy.networks import FieldNetwork
from sb3_energy.refinement.bases import Gaussian
from sb3_energy.refinement.estimators import choose_estimator
from sb3_energy.refinement.proposals import draw_proposals, squashed_log_prob
from sb3_energy.refinement.refinement import Refinement
from sb3_energy.refiners import REFINERS
from sb3_energy.types import Chains, EnergyFn, EntropyContext, EntropyEstimator, ProposeFn, ReverseFn

CHUNK = 100
"""Observations at once."""
N_NEIGHBOURS = 4
N_PROPOSALS = (16, 64, 256)
SMALLEST_DISTANCE = 1e-7
"""Of two draws on the box: the squash in 32-bit floats cannot tell closer ones apart."""
ENTROPY_COLUMNS = ("target", "refiner", "estimator", "estimate", "drawn", "error", "target_entropy")


class Asked(NamedTuple):
    """
    :param refiner: as it is called in the gallery
    :param label: of the estimator
    :param estimator: what is asked
    :param refinement: whose entropy
    """

    refiner: str
    label: str
    estimator: EntropyEstimator
    refinement: Refinement


def entropy_of(draws: th.Tensor) -> float:
    """
    The entropy of a law from its draws, by the distances of nearest neighbours (Kozachenko and Leonenko 1987; with ``k`` of
    them, Kraskov et al. 2004, equation 22).

    :param draws: ``(n, 2)``, distinct
    :return: in nats
    """
    points = draws.double().numpy()
    distances, _ = cKDTree(points).query(points, k=N_NEIGHBOURS + 1)
    radii = th.as_tensor(distances[:, -1]).clamp(min=SMALLEST_DISTANCE)
    n, k = th.tensor(float(len(points))), th.tensor(float(N_NEIGHBOURS))
    return float(th.digamma(n) - th.digamma(k) + math.log(math.pi) + 2.0 * radii.log().mean())


def asked(made: Mapping[str, Refinement]) -> list[Asked]:
    """
    :param made: by the name in the gallery
    :return: every estimator that is valid for a refiner with its defaults, and ``path``, which needs one particle
    """
    found = []
    for name, refinement in made.items():
        one_particle = name == "langevin, 1 particle"
        if name not in REFINERS and not one_particle:
            continue
        for estimator in refinement.refiner.estimators:
            if (estimator == "path") == one_particle:  # which has to know the density where a chain starts
                found.append(Asked(name, estimator, choose_estimator(estimator, None, refinement), refinement))
        if name == "mean_flow":
            learned = choose_estimator("divergence", dict(method="learned"), refinement)
            found.append(Asked(name, "divergence, learned", learned, refinement))
    return found


def reverse_drift(estimator: PathEntropy, refinement: Refinement, problem: Problem, n_updates: int) -> ReverseFn:
    """
    :param estimator: whose loss it learns by, as :class:`sb3_energy.EnergySAC` does
    :param refinement: whose chains it is to reverse
    :param problem: what they draw from
    :param n_updates: of Adam
    :return: the learned drift, of any number of observations
    """
    with th.random.fork_rng(devices=[]):
        th.manual_seed(0)
        network = FieldNetwork(1, 2, 2, [256, 256])

    def reverse(x: th.Tensor, remaining: float) -> th.Tensor:
        return network(features(len(x)), x, x.new_full(x.shape[:2], remaining))

    def loss() -> th.Tensor:
        with th.no_grad():
            found = estimator.estimate(context_of(refinement, problem, CHUNK, reverse))
        assert found.loss is not None
        return found.loss

    learn(network, n_updates, loss)
    return reverse


def proposed(base: Gaussian, energy: EnergyFn) -> ProposeFn:
    """
    :param base: at ``n`` observations
    :param energy: in the box
    :return: draws proposals, as :class:`sb3_energy.EnergySAC` does for an estimator
    """

    def propose(n_proposals: int, uniform_fraction: float) -> tuple[th.Tensor, th.Tensor]:
        particles, log_prob = draw_proposals(base, n_proposals, uniform_fraction)
        return energy(th.tanh(particles)), log_prob - log_tanh_jacobian(particles)

    return propose


def context_of(refinement: Refinement, problem: Problem, n: int, reverse: ReverseFn | None = None) -> EntropyContext:
    """
    :param refinement: whose entropy is asked for
    :param problem: what it draws from
    :param n: of observations
    :param reverse: the learned drift, for an estimator that needs it
    :return: what :class:`sb3_energy.EnergySAC` gives an estimator
    """
    base, one = problem.bases(n), th.ones(())
    latent = base.mean + base.std * th.randn_like(base.mean)
    propose = proposed(base, problem.energy)
    simulate = partial(refinement.simulate, base, problem.energy, one, head=problem.head(refinement, n))

    def anneal(n_particles: int) -> Chains:
        return refinement.annealed(n_particles).simulate(base, problem.energy, one)

    return EntropyContext(squashed_log_prob(base, latent).unsqueeze(1), propose, simulate, reverse, anneal)


def estimated(question: Asked, problem: Problem, repetitions: int, n_updates: int) -> float:
    """
    :param question: which estimator of which refinement
    :param problem: what it draws from
    :param repetitions: over which the estimate is averaged
    :param n_updates: of the reverse drift, where there is one
    :return: the estimate of the entropy, in nats
    """
    reverse, total = None, 0.0
    with th.random.fork_rng(devices=[]):
        th.manual_seed(3)
        if isinstance(question.estimator, PathEntropy):
            reverse = reverse_drift(question.estimator, question.refinement, problem, n_updates)
        for start in range(0, repetitions, CHUNK):
            n = min(CHUNK, repetitions - start)
            with th.no_grad():
                found = question.estimator.estimate(context_of(question.refinement, problem, n, reverse))
            total -= float(found.log_prob.sum())
    return total / repetitions


def entropies(
    problems: Mapping[str, Problem],
    made: Mapping[str, Refinement],
    drawn: Mapping[str, Mapping[str, float]],
    repetitions: int,
    n_updates: int,
) -> list[dict[str, Any]]:
    """
    :param problems: by the target's name
    :param made: refinements by their name
    :param drawn: target -> refiner -> entropy of its draws
    :param repetitions: over which each estimate is averaged
    :param n_updates: of the reverse drift
    :return: rows of the table
    """
    rows: list[dict[str, Any]] = []
    for target, problem in problems.items():
        truth, exact = problem.cells.entropy, "exact draws"
        found = [(exact, "nearest neighbours", drawn[target][exact], truth)]
        found += [(exact, f"soft_value, {n} proposals", soft_entropy(problem, n, repetitions), truth) for n in N_PROPOSALS]
        for question in asked(made):
            estimate = estimated(question, problem, repetitions, n_updates)
            found.append((question.refiner, question.label, estimate, drawn[target][question.refiner]))
        for refiner, label, estimate, own in found:
            row = dict(target=target, refiner=refiner, estimator=label, estimate=estimate, drawn=own, error=estimate - own)
            rows.append(row | dict(target_entropy=truth))
        print(f"estimated: {target}", flush=True)
    return rows


def soft_entropy(problem: Problem, n_proposals: int, repetitions: int) -> float:
    """
    :param problem: whose target
    :param n_proposals: for each estimate
    :param repetitions: over which it is averaged
    :return: the soft value's estimate of the target's entropy, in nats
    """
    generator = th.Generator().manual_seed(0)
    particles, log_prob = draw_proposals(problem.bases(repetitions), n_proposals, 0.5, generator=generator)
    return float(soft_value(problem.energy(th.tanh(particles)), log_prob - log_tanh_jacobian(particles)).entropy.mean())


def errors_of(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str], dict[str, float]]:
    """
    :param rows: of :func:`entropies`
    :return: refiner and estimator -> target -> error, in nats
    """
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        found.setdefault((row["refiner"], row["estimator"]), {})[row["target"]] = row["error"]
    return found
