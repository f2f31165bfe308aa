"""Replay buffers that keep Langevin chains beside their transitions (persistent contrastive divergence)."""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize

from sb3_energy.checks import check_integer
from sb3_energy.keywords import plain_arguments


class PersistentChains(ReplayBuffer):
    """
    Base class, to be combined with one of SB3's replay buffers: with each transition it keeps the ends of ``n_chains`` chains,
    from which the next chains at that observation start (persistent contrastive divergence, Tieleman 2008). They are
    overwritten and saved together with the transition.

    :param args: of the buffer
    :param n_chains: number of chains for each transition
    :param kwargs: of the buffer
    :raises ValueError: if ``n_chains`` is below 1
    :raises TypeError: if it is no integer
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
        """As in SB3. The chains of the overwritten transition are dropped."""
        self.has_chains[self.pos] = False
        super().add(*args, **kwargs)

    def reset(self) -> None:
        """As in SB3."""
        super().reset()
        self.has_chains[:] = False

    def _get_samples(self, batch_inds: np.ndarray, env: VecNormalize | None = None) -> Any:
        # SB3 draws the rows' environments in the parent's method and does not return them: draw the same numbers twice
        state = np.random.get_state()
        self.last_rows = (batch_inds, np.random.randint(0, high=self.n_envs, size=(len(batch_inds),)))
        np.random.set_state(state)
        return super()._get_samples(batch_inds, env)

    def last_chains(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """
        Look up the persistent chains of the last sampled transitions.

        :param n: number of transitions, the first of the last sample
        :return: ``(n, n_chains, A)`` ends of their chains, and ``(n,)`` whether chains have run there
        """
        rows = self._last(n)
        return self.chains[rows], self.has_chains[rows]

    def keep_chains(self, ends: np.ndarray) -> None:
        """
        Store the ends of chains beside their transitions.

        :param ends: ``(n, n_chains, A)`` for the first ``n`` transitions of the last sample
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


def buffer_with_chains(model: Any, n_chains: int) -> tuple[type[PersistentChains], dict[str, Any]]:
    """
    Choose a replay buffer that stores persistent chains.

    :param model: an off-policy algorithm that is not set up yet
    :param n_chains: number of chains for each transition
    :return: class and keyword arguments of its replay buffer
    :raises ValueError: if the class that it asks for keeps no chains, or there is none
    """
    chosen, kwargs = model.replay_buffer_class, model.replay_buffer_kwargs | dict(n_chains=n_chains)
    if chosen is None:
        chosen = ChainReplayBuffer
        if isinstance(model.observation_space, spaces.Dict):
            if model.n_steps > 1:  # as SB3 says where it chooses the buffer
                raise ValueError(f"n_steps must be 1 with observations that are a dictionary, got {model.n_steps!r}")
            chosen = DictChainReplayBuffer
        elif model.n_steps > 1:
            chosen = NStepChainReplayBuffer
            kwargs |= dict(n_steps=model.n_steps, gamma=model.gamma)
    if not (isinstance(chosen, type) and issubclass(chosen, PersistentChains)):
        raise ValueError(
            "persistent_chains=True needs replay_buffer_class=None or one with PersistentChains, "
            f"got {getattr(chosen, '__name__', repr(chosen))}"
        )
    return chosen, kwargs
