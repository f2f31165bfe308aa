"""
The arithmetic floor: how long the matrix products that an algorithm cannot do without take at the measured rate of such.

Counted are multiplications and additions of linear layers of plain networks, ``2 · rows · in · out`` for each layer and pass;
everything else (activations, noise, optimisers, Python) is what an implementation may hope to hide.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch as th

SIZE = 256


@dataclass(frozen=True)
class Shape:
    """
    :param batch: observations
    :param observations: numbers in one
    :param actions: numbers in one
    :param hidden: width of each hidden layer, of actor and critics
    :param n_critics: networks of the critic
    """

    batch: int = 256
    observations: int = 17
    actions: int = 6
    hidden: tuple[int, ...] = (256, 256)
    n_critics: int = 2

    @property
    def actor(self) -> tuple[int, ...]:
        """Widths of the actor, whose two heads (mean and log standard deviation) are counted as one layer."""
        return (self.observations, *self.hidden, 2 * self.actions)

    @property
    def critic(self) -> tuple[int, ...]:
        """Widths of one critic."""
        return (self.observations + self.actions, *self.hidden, 1)


@dataclass(frozen=True)
class Evaluations:
    """
    What a refinement asks of the critics for one observation.

    :param energies: how often for an energy
    :param gradients: how often for an energy with its gradient
    """

    energies: int = 0
    gradients: int = 0


def forward(widths: Sequence[int], rows: int) -> int:
    """
    :param widths: of the layers, the input's first
    :param rows: of the input
    :return: floating-point operations
    """
    return sum(2 * rows * n_in * n_out for n_in, n_out in pairwise(widths))


def weight_gradients(widths: Sequence[int], rows: int) -> int:
    """
    :param widths: of the layers, the input's first
    :param rows: of the input
    :return: floating-point operations of the gradients of all weights, where those of the layers' outputs are known
    """
    return forward(widths, rows)


def input_gradients(widths: Sequence[int], rows: int, n_inputs: int) -> int:
    """
    :param widths: of the layers, the input's first
    :param rows: of the input
    :param n_inputs: with respect to how many of the inputs
    :return: floating-point operations of the gradients of the layers' inputs, where that of the output is known
    """
    return forward(widths[1:], rows) + 2 * rows * n_inputs * widths[1]


def update(shape: Shape) -> int:
    """
    An update of SAC: the actor at both observations, target critics, critics and their gradients, critics at the actor's
    actions, the gradient with respect to the action of the lowest of them only, the actor's gradients.

    :param shape: of networks and batch
    :return: floating-point operations
    """
    actor, critic, rows = shape.actor, shape.critic, shape.batch
    values = shape.n_critics * forward(critic, rows)
    critic_gradients = shape.n_critics * (weight_gradients(critic, rows) + input_gradients(critic, rows, 0))
    actor_gradients = weight_gradients(actor, rows) + input_gradients(actor, rows, 0)
    return (
        2 * forward(actor, rows)
        + 3 * values
        + critic_gradients
        + input_gradients(critic, rows, shape.actions)
        + actor_gradients
    )


def refinement(shape: Shape, asked: Evaluations) -> int:
    """
    The observations' share of the first layers is the same for all actions and counted once.

    :param shape: of networks and batch
    :param asked: what is asked of the critics for one observation
    :return: floating-point operations for all observations
    """
    if asked.energies + asked.gradients == 0:
        return 0
    of_actions, rows = (shape.actions, *shape.hidden, 1), shape.batch
    shared = 2 * rows * shape.observations * shape.hidden[0]
    forwards = (asked.energies + asked.gradients) * forward(of_actions, rows)
    backwards = asked.gradients * input_gradients(of_actions, rows, shape.actions)
    return shape.n_critics * (shared + forwards + backwards)


def prediction(shape: Shape, asked: Evaluations) -> int:
    """
    :param shape: of networks and batch
    :param asked: what is asked of the critics for one observation
    :return: floating-point operations of the actions for all observations
    """
    return forward(shape.actor, shape.batch) + refinement(shape, asked)


def product() -> Callable[[int], None]:
    """
    :return: multiplies two matrices of ``256 × 256`` so many times
    """
    left, right, out = (th.randn(SIZE, SIZE) for _ in range(3))

    def multiply(n: int) -> None:
        for _ in range(n):
            th.mm(left, right, out=out)

    return multiply


def floor_seconds(operations: int, product_seconds: float) -> float:
    """
    :param operations: floating-point operations
    :param product_seconds: of one :func:`product` of ``256 × 256`` matrices
    :return: seconds at its rate
    """
    return operations * product_seconds / (2 * SIZE**3)
