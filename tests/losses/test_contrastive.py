"""InfoNCE, ranking NCE and NCE: their optima by enumeration, where no sampling blurs them."""

import itertools
import math

import pytest
import torch as th
from torch.nn import functional as F

from sb3_energy.losses import info_nce_loss, nce_loss, r_nce_loss

DOUBLE = th.float64
CELLS = 9
GRID = th.linspace(-1.0, 1.0, CELLS, dtype=DOUBLE)
TARGET = (-0.5 * ((GRID - 0.3) / 0.4).square()).softmax(0) + 0.02
TARGET = TARGET / TARGET.sum()
PROPOSAL = (1.5 * GRID + th.sin(3.0 * GRID)).softmax(0)
"""``(CELLS,)`` probabilities of an example and of a negative, which are far from uniform."""


def learned_table(loss_of, n_negatives):
    """
    The energies of all cells at the optimum of the expected loss: every example with every choice of negatives, each weighed
    by its probability.

    :param loss_of: ``(cells of the examples (R, 1), cells of the negatives (R, M), energies (CELLS,)) -> (R,)``
    :param n_negatives: ``M``
    :return: ``(CELLS,)``
    """
    rows = th.tensor(list(itertools.product(range(CELLS), repeat=1 + n_negatives)))
    weights = TARGET[rows[:, 0]] * PROPOSAL[rows[:, 1:]].prod(1)
    energies = th.zeros(CELLS, dtype=DOUBLE, requires_grad=True)
    optimizer = th.optim.LBFGS(
        [energies], max_iter=300, tolerance_grad=1e-12, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = (weights * loss_of(rows[:, :1], rows[:, 1:], energies)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return energies.detach()


def centred(x):
    return x - x.mean()


@pytest.mark.parametrize("n_negatives", [1, 2])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_info_nce_is_off_by_the_proposal_s_log_density(n_negatives, temperature):
    found = learned_table(lambda i, j, e: info_nce_loss(e[i], e[j], temperature), n_negatives)
    th.testing.assert_close(centred(found / temperature), centred(PROPOSAL.log() - TARGET.log()), atol=1e-6, rtol=0.0)
    error = centred(found / temperature + TARGET.log())
    th.testing.assert_close(error, centred(PROPOSAL.log()), atol=1e-6, rtol=0.0)
    assert error.abs().max() > 1.0


@pytest.mark.parametrize("n_negatives", [1, 2])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_ranking_nce_finds_the_law_whatever_the_proposal_is(n_negatives, temperature):
    log_q = PROPOSAL.log()
    found = learned_table(lambda i, j, e: r_nce_loss(e[i], e[j], log_q[i], log_q[j], temperature), n_negatives)
    th.testing.assert_close(centred(found / temperature), centred(-TARGET.log()), atol=1e-6, rtol=0.0)


@pytest.mark.parametrize("n_negatives", [1, 2])
def test_nce_finds_the_normalised_density(n_negatives):
    log_q = PROPOSAL.log()
    found = learned_table(lambda i, j, e: nce_loss(e[i], e[j], log_q[i], log_q[j]), n_negatives)
    th.testing.assert_close(found, -TARGET.log(), atol=1e-6, rtol=0.0)


def test_nce_learns_log_z_of_a_gaussian():
    """From draws: ``E = ½ (x - m)² / s² + c`` with noise of another law; ``c`` becomes ``log(s √2π)``."""
    generator = th.Generator().manual_seed(0)
    examples = 0.4 + 0.5 * th.randn(20_000, 1, dtype=DOUBLE, generator=generator)
    noise = 1.2 * th.randn(20_000, 4, dtype=DOUBLE, generator=generator)
    parameters = th.tensor([0.0, 0.0, 0.0], dtype=DOUBLE, requires_grad=True)

    def energy(x):
        return 0.5 * ((x - parameters[0]) / parameters[1].exp()).square() + parameters[2]

    def log_q(x):
        return -0.5 * (x / 1.2).square() - math.log(1.2 * math.sqrt(2.0 * math.pi))

    optimizer = th.optim.LBFGS([parameters], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = nce_loss(energy(examples), energy(noise), log_q(examples), log_q(noise)).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    mean, log_std, constant = parameters.tolist()
    assert mean == pytest.approx(0.4, abs=0.02) and math.exp(log_std) == pytest.approx(0.5, rel=0.03)
    assert constant == pytest.approx(math.log(0.5 * math.sqrt(2.0 * math.pi)), abs=0.03)


def test_info_nce_is_a_cross_entropy_over_all():
    generator = th.Generator().manual_seed(0)
    positives, negatives = (th.randn(6, n, dtype=DOUBLE, generator=generator) for n in (2, 5))
    logits = th.cat([positives[:, :1], negatives], dim=1).neg() / 0.7
    first = F.cross_entropy(logits, th.zeros(6, dtype=th.long), reduction="none")
    logits = th.cat([positives[:, 1:], negatives], dim=1).neg() / 0.7
    second = F.cross_entropy(logits, th.zeros(6, dtype=th.long), reduction="none")
    found = info_nce_loss(positives, negatives, 0.7)
    th.testing.assert_close(found, (first + second) / 2.0)
    th.testing.assert_close(info_nce_loss(positives, negatives, th.tensor(0.7, dtype=DOUBLE)), found)


def test_a_uniform_proposal_makes_all_the_same():
    generator = th.Generator().manual_seed(0)
    positives, negatives = (th.randn(4, n, dtype=DOUBLE, generator=generator) for n in (1, 5))
    log_q = [th.full_like(energies, -1.7) for energies in (positives, negatives)]
    th.testing.assert_close(r_nce_loss(positives, negatives, *log_q), info_nce_loss(positives, negatives))


def test_nothing_is_lost_far_from_zero():
    positives, negatives = th.tensor([[500.0], [-500.0]]), th.tensor([[-500.0], [500.0]])
    th.testing.assert_close(info_nce_loss(positives, negatives), th.tensor([1000.0, 0.0]))
    losses = nce_loss(positives, negatives, th.zeros(2, 1), th.zeros(2, 1))
    th.testing.assert_close(losses, th.tensor([1000.0, 0.0]))


def test_densities_are_held_fixed():
    positives, negatives = th.zeros(1, 1), th.ones(1, 2)
    log_prob = th.zeros(1, 1, requires_grad=True)
    for loss in (r_nce_loss, nce_loss):
        assert not loss(positives, negatives, log_prob, th.zeros(1, 2)).requires_grad


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: info_nce_loss(th.zeros(3), th.zeros(3, 4)), r"positives and negatives must be .*, got \(3,\) and \(3, 4\)"),
        (lambda: info_nce_loss(th.zeros(2, 1), th.zeros(3, 4)), "positives and negatives must be"),
        (lambda: info_nce_loss(th.zeros(3, 1), th.zeros(3, 0)), "with M > 0"),
        (lambda: info_nce_loss(th.zeros(3, 1), th.zeros(3, 4), 0.0), "temperature must be above 0, got 0.0"),
        (
            lambda: r_nce_loss(th.zeros(3, 1), th.zeros(3, 4), th.zeros(3), th.zeros(3, 4)),
            r"positive_log_prob must be \(3, 1\) as the energies are, got \(3,\)",
        ),
        (
            lambda: nce_loss(th.zeros(3, 1), th.zeros(3, 4), th.zeros(3, 1), th.zeros(3, 1)),
            r"negative_log_prob must be \(3, 4\) as the energies are, got \(3, 1\)",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
