"""Replay buffers whose transitions keep the chains that were run at them."""

from typing import Any

import numpy as np
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize

from sb3_energy.checks import check_integer
from sb3_energy.keywords import plain_arguments


class PersistentChains(ReplayBuffer):
    """
    Mixin for SB3's replay buffers: beside each transition stand the ends of ``n_chains`` chains, from which the next run at
    that observation goes on (persistent contrastive divergence, Tieleman 2008). They go when the transition does, and are
    saved with the buffer.

    :param args: of the buffer
    :param n_chains: for each transition
    :param kwargs: of the buffer
    :raises ValueError: if there is no chain
    :raises TypeError: if their number is no integer
    """

    @plain_arguments
    def __init__(self, *args: Any, n_chains: int = 8, **kwargs: Any):
        check_integer("n_chains", n_chains, minimum=1)
        super().__init__(*args, **kwargs)
        shape = (self.buffer_size, self.n_envs)
        self.chains = np.zeros((*shape, n_chains, self.action_dim), dtype=np.float32)
        self.has_chains = np.zeros(shape, dtype=bool)
        self.last_rows: tuple[np.ndarray, np.ndarray] | None = None

    def add(self, *args: Any, **kwargs: Any) -> None:
        """As in SB3. The chains of the transition that was here before are forgotten."""
        self.has_chains[self.pos] = False
        super().add(*args, **kwargs)

    def reset(self) -> None:
        """As in SB3."""
        super().reset()
        self.has_chains[:] = False

    def _get_samples(self, batch_inds: np.ndarray, env: VecNormalize | None = None) -> Any:
        # SB3 draws here, before anything else, of which environment each row is: draw the same, and let it draw again
        state = np.random.get_state()
        self.last_rows = (batch_inds, np.random.randint(0, high=self.n_envs, size=(len(batch_inds),)))
        np.random.set_state(state)
        return super()._get_samples(batch_inds, env)

    def last_chains(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """
        :param n: of how many of the transitions that were sampled last, the first ones
        :return: ``(n, n_chains, A)`` ends, and ``(n,)`` whether there were any
        """
        rows = self._last(n)
        return self.chains[rows], self.has_chains[rows]

    def keep_chains(self, ends: np.ndarray) -> None:
        """
        :param ends: ``(n, n_chains, A)`` of the first ``n`` transitions that were sampled last
        """
        rows = self._last(len(ends))
        self.chains[rows], self.has_chains[rows] = ends, True

    def _last(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        if self.last_rows is None:
            raise RuntimeError("chains belong to transitions that were sampled, and none has been")
        return self.last_rows[0][:n], self.last_rows[1][:n]


class ChainReplayBuffer(PersistentChains):
    """SB3's ``ReplayBuffer`` with :class:`PersistentChains`."""


class DictChainReplayBuffer(PersistentChains, DictReplayBuffer):
    """SB3's ``DictReplayBuffer`` with :class:`PersistentChains`."""


class NStepChainReplayBuffer(PersistentChains, NStepReplayBuffer):
    """SB3's ``NStepReplayBuffer`` with :class:`PersistentChains`."""
