"""Many actions for each observation, through all members of an ensemble, with gradients for the actions alone."""

from collections.abc import Callable, Iterator, Sequence

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_energy.deferred import is_host
from sb3_energy.matmul import MatmulPrecision
from sb3_energy.networks.by_hand.folding import begins_linear, folded
from sb3_energy.networks.by_hand.layers import Stack, Tape, prefers_mkl

ROWS_IN_CACHE = 2048
"""How many rows go through the layers at a time: 2 MB for each layer of 256, which the next layer still finds in the cache."""

FEWEST_TO_GATHER = 64
"""Of so many rows, or a multiple, it pays to pick those of a member's that have a derivative at all, before they go back."""

WeighFn = Callable[[th.Tensor], tuple[th.Tensor, th.Tensor]]
"""``(C, B, N) -> (B, N), (C, B, N)``: one value from an ensemble's, and its derivatives with respect to each."""


class BoundEnsemble:
    """
    Sequential networks ``(F + A) -> O`` at encoded observations.

    The share of the features in a first layer, ``W_f f + b``, is the same for all actions at an observation and all steps of a
    chain, so it is computed once. What is left is ``W_a a``, and its derivative is ``da = dz W_a``. That pays from the second
    action on, and the first, if it is alone, goes through the layer as it is. Bind again after parameters have changed.

    :param stacks: the members, each beginning with a linear layer, or with a batch norm and then a linear layer
    :param features: ``(B, F)``, without a graph
    """

    def __init__(self, stacks: Sequence[Stack], features: th.Tensor):
        self._stacks = [stack if isinstance(stack.layers[0], nn.Linear) else folded(stack) for stack in stacks]
        self._features = features
        self._was_asked = False
        self._members: list[_Member] | None = None
        self.n_outputs = next(layer.out_features for layer in reversed(stacks[0].layers) if hasattr(layer, "out_features"))

    def _members_for(self, n_particles: int) -> "Sequence[_Member]":
        if n_particles == 1 and not self._was_asked:
            self._was_asked = True
            return [_Once(stack, self._features) for stack in self._stacks]
        if self._members is None:
            self._members = [_Member(stack, self._features) for stack in self._stacks]
        return self._members

    @staticmethod
    def stacks_of(networks: Sequence[nn.Module]) -> list[Stack] | None:
        """
        Convert an ensemble's members to stacks of layers with hand-written gradients.

        :param networks: the members
        :return: their stacks, or ``None`` where one has unknown layers
        """
        stacks = [Stack.of(network) for network in networks]
        known = [
            stack for stack in stacks if stack is not None and (isinstance(stack.layers[0], nn.Linear) or begins_linear(stack))
        ]
        return known if len(known) == len(stacks) else None

    def values(self, actions: th.Tensor) -> th.Tensor:
        """
        Evaluate every member of the ensemble at action particles.

        :param actions: ``(B, N, A)``
        :return: ``(C, B, N, O)``, without a graph
        """
        n_observations, n_particles = actions.shape[:2]
        members = self._members_for(n_particles)
        found = actions.new_empty(len(members), n_observations, n_particles, self.n_outputs)
        with th.no_grad():
            for rows, columns in _in_cache(n_observations, n_particles):
                part = actions[rows, columns]
                for member, values in zip(members, found, strict=True):
                    values[rows, columns] = member.forward(rows, part, []).unflatten(0, part.shape[:2])
        return found

    def value_and_gradient(self, actions: th.Tensor, weigh: WeighFn, sparse: bool = False) -> tuple[th.Tensor, th.Tensor]:
        """
        One value for each action and its gradient. A member's value is the mean of its ``O`` outputs.

        :param actions: ``(B, N, A)``
        :param weigh: how the members' values become one
        :param sparse: whether most derivatives of that are 0; nothing goes back through a member then where its are
        :return: ``(B, N)`` and ``(B, N, A)``, without a graph
        """
        chunks, members = list(_in_cache(*actions.shape[:2])), self._members_for(actions.shape[1])
        with th.no_grad():
            if len(chunks) == 1:
                return self._value_and_gradient(members, chunks[0][0], actions, weigh, sparse)
            values, gradients = actions.new_empty(actions.shape[:2]), th.empty_like(actions)
            for rows, columns in chunks:
                part = self._value_and_gradient(members, rows, actions[rows, columns], weigh, sparse)
                values[rows, columns], gradients[rows, columns] = part
        return values, gradients

    def _value_and_gradient(
        self, members: "Sequence[_Member]", rows: slice, actions: th.Tensor, weigh: WeighFn, sparse: bool
    ) -> tuple[th.Tensor, th.Tensor]:
        tapes: list[Tape] = [[] for _ in members]
        outputs = [member.forward(rows, actions, tape) for member, tape in zip(members, tapes, strict=True)]
        q_values = th.stack(outputs) if self.n_outputs == 1 else th.stack(outputs).mean(dim=-1)
        values, weights = weigh(q_values.reshape(-1, *actions.shape[:2]))
        weights = weights.reshape(len(outputs), -1, 1)
        if self.n_outputs > 1:
            weights = (weights / self.n_outputs).expand(-1, -1, self.n_outputs)
        gathers = sparse and len(members) > 2  # of two members each has about half of the rows: that is too many
        gradients: th.Tensor | None = None
        for member, weight, tape in zip(members, weights, tapes, strict=True):
            part = member.backward_where(weight, tape) if gathers else member.backward(weight, tape)
            gradients = part if gradients is None else gradients.add_(part)
        assert gradients is not None
        return values, gradients.reshape(actions.shape)


class _Member:
    """One network, its first layer split into the share of the features and that of the actions."""

    def __init__(self, stack: Stack, features: th.Tensor):
        self._split(stack.layers[0], features)
        self.rest = Stack(stack.layers[1:])

    def _split(self, first: nn.Linear, features: th.Tensor) -> None:
        n_features = features.shape[1]
        with th.no_grad():
            self.share = F.linear(features, first.weight[:, :n_features], first.bias)
            self.action_weight = first.weight[:, n_features:].contiguous()

    def forward(self, rows: slice, actions: th.Tensor, tape: Tape) -> th.Tensor:
        """``(b, n, A) -> (b n, O)``."""
        return self.rest.forward(self._first(rows, actions), tape)

    def _first(self, rows: slice, actions: th.Tensor) -> th.Tensor:
        if actions.shape[1] == 1:
            return self._of_one(self.share[rows], actions[:, 0])
        first = actions.flatten(0, 1) @ self.action_weight.t()
        first.unflatten(0, actions.shape[:2]).add_(self.share[rows].unsqueeze(1))
        return first

    def _of_one(self, share: th.Tensor, actions: th.Tensor) -> th.Tensor:
        if actions.shape[1] <= 8 and prefers_mkl(actions):
            with MatmulPrecision("highest"):
                return th.addmm(share, actions, self.action_weight.t())
        return th.addmm(share, actions, self.action_weight.t())

    def backward(self, dy: th.Tensor, tape: Tape) -> th.Tensor:
        """``(b n, O) -> (b n, A)``."""
        dz = self.rest.backward(dy, tape)
        assert dz is not None
        return dz @ self.action_weight

    def backward_where(self, dy: th.Tensor, tape: Tape) -> th.Tensor:
        """The same, computed for the rows alone in which there is something to send back."""
        # Which rows these are is not known to who compiles or sends the work to a GPU
        if len(dy) < FEWEST_TO_GATHER or not is_host(dy) or th.compiler.is_compiling():
            return self.backward(dy, tape)
        silent = dy[:, 0] == 0.0
        # Few different numbers of rows: the matrix library prepares, and keeps, code for each that it meets
        n = -((int(silent.sum()) - len(dy)) // FEWEST_TO_GATHER) * FEWEST_TO_GATHER
        if 3 * n > len(dy):  # gathering costs about as much as half of the rows
            return self.backward(dy, tape)
        index = silent.to(th.uint8).argsort()[:n]  # those that have something to say, and some that have nothing
        gradients = dy.new_zeros(len(dy), self.action_weight.shape[1])
        return gradients.index_copy_(0, index, self.backward(dy[index], [kept[index] for kept in tape]))


class _Once(_Member):
    """The same for one action, with the first layer as it is."""

    def _split(self, first: nn.Linear, features: th.Tensor) -> None:
        self.first, self.features = first, features
        self.action_weight = first.weight[:, features.shape[1] :]

    def _first(self, rows: slice, actions: th.Tensor) -> th.Tensor:
        return F.linear(th.cat([self.features[rows], actions[:, 0]], dim=1), self.first.weight, self.first.bias)


def _in_cache(n_observations: int, n_particles: int) -> Iterator[tuple[slice, slice]]:
    """Blocks of observations and of their particles, of so many rows that all layers of them fit into the cache."""
    height, width = max(1, ROWS_IN_CACHE // max(n_particles, 1)), min(n_particles, ROWS_IN_CACHE)
    for row in range(0, n_observations, height):
        for column in range(0, n_particles, max(width, 1)):
            yield slice(row, row + height), slice(column, column + width)
