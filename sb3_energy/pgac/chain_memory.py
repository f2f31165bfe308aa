"""An algorithm's persistent chains: which replay buffer keeps them, and that a loaded one does."""

import warnings
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_energy.checks import check_bool
from sb3_energy.pgac.chain_buffers import (
    ChainReplayBuffer,
    DictChainReplayBuffer,
    NStepChainReplayBuffer,
    PersistentChains,
)
from sb3_energy.pgac.potential_training import PotentialTraining
from sb3_energy.training.persistence import PersistentAlgorithm


class ChainMemory(PersistentAlgorithm):
    """Mixin for off-policy algorithms with a potential: ``persistent_chains``."""

    persistent_chains: bool
    divergence_coef: float
    _training: PotentialTraining

    def _setup_model(self) -> None:
        self._choose_buffer()
        with warnings.catch_warnings():
            if self.replay_buffer_class is NStepChainReplayBuffer and self.replay_buffer_kwargs.get("n_steps") == self.n_steps:
                warnings.filterwarnings("ignore", r"`n_steps=\d+` is ignored")  # SB3 takes the class for the user's own
            super()._setup_model()

    def _choose_buffer(self) -> None:
        self.persistent_chains = check_bool("persistent_chains", self.persistent_chains)
        if not self.persistent_chains:
            return
        if self.divergence_coef == 0.0:
            raise ValueError(f"persistent_chains=True needs chains, and divergence_coef above 0, got {self.divergence_coef!r}")
        if self.replay_buffer_class is None:
            self.replay_buffer_class = self._chain_buffer_class()
        chosen: Any = self.replay_buffer_class
        if not (isinstance(chosen, type) and issubclass(chosen, PersistentChains)):
            raise ValueError(
                "persistent_chains=True needs replay_buffer_class=None or one with PersistentChains, "
                f"got {getattr(chosen, '__name__', repr(chosen))}"
            )
        self.replay_buffer_kwargs = self.replay_buffer_kwargs | dict(n_chains=self._training.n_chains)

    def _check_replay_buffer(self, buffer: ReplayBuffer) -> None:
        found = getattr(buffer, "chains", np.zeros((1, 1, 0))).shape[2]
        if self.persistent_chains and found != self._training.n_chains:
            raise ValueError(f"persistent_chains=True needs a buffer of {self._training.n_chains} chains, got one of {found}")
        super()._check_replay_buffer(buffer)

    def _chain_buffer_class(self) -> type[PersistentChains]:
        if isinstance(self.observation_space, spaces.Dict):
            if self.n_steps > 1:  # as SB3 says where it chooses the buffer
                raise ValueError(f"n_steps must be 1 with observations that are a dictionary, got {self.n_steps!r}")
            return DictChainReplayBuffer
        if self.n_steps == 1:
            return ChainReplayBuffer
        self.replay_buffer_kwargs = self.replay_buffer_kwargs | dict(n_steps=self.n_steps, gamma=self.gamma)
        return NStepChainReplayBuffer
