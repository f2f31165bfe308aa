"""The potential-guided actor-critic, whose policy is a potential sampled by the JKO scheme."""

from typing import Any, ClassVar, TypeVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, ReplayBufferSamples

from sb3_energy.energy_sac import EnergySAC
from sb3_energy.keywords import plain_arguments
from sb3_energy.pgac.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_energy.pgac.potential_policy import PotentialPolicy
from sb3_energy.pgac.potential_updates import PotentialUpdates
from sb3_energy.policies.critics import EnsembleCritic
from sb3_energy.policies.unread_arguments import (
    GSDE_OF_THE_ALGORITHM,
    NO_GSDE,
    refuse_changed,
)
from sb3_energy.training.guards import Records

SelfPGAC = TypeVar("SelfPGAC", bound="PGAC")


class PGAC(PotentialUpdates, EnergySAC):
    """
    Potential-guided actor-critic: in place of a Gaussian, a time-independent potential ``V(s, a)`` that is velocity field and
    energy at once. An action starts at the base, is transported along ``-∇U`` with ``U = V - λ Q`` and ends as a draw from
    about ``exp(-U / ε)``.

    Critics, temperature and the Gaussian actor, from which particles start, learn as in SAC. ``V`` learns to lead from the
    base to the best of an observation's candidates by optimal transport, ``L_OT`` (Energy Matching, Balcerak et al. 2025),
    where the behaviour of the replay buffer was better than the policy more than elsewhere (value weight), and to tell these
    from its own draws, ``L_CD``. Its loss is ``transport_coef L_OT + ω L_CD + matching_coef L_GM - end_to_end_coef E[Q̂]``, of
    which the last two are off by default; ``λ`` is no part of it, but of ``U``.

    How actions are drawn is a matter of the policy (``policy_kwargs``, see
    :class:`sb3_energy.pgac.potential_policy.PotentialPolicy`): ``λ`` and ``ε`` are ``energy_kwargs``.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param args: SAC's other arguments in SAC's order
    :param transport_coef: of the transport loss; 0 switches it off
    :param divergence_coef: ``ω``, of the contrastive divergence; 0 switches it off
    :param value_weight: how much an observation's transport counts, by how much better what was done there is than what the
        policy does: ``"relu"`` (the advantage where it is positive), ``"exp"`` (its exponential), in units of its root mean
        square, or ``None`` (1)
    :param matching_coef: of the gradient matching loss, by which ``-∇V / ε`` follows ``∇ min Q / α``; needs ``guidance=0``
    :param end_to_end_coef: of ``-E[Q̂]`` of the sampler's actions, Q over its spread, differentiated through all of its steps
    :param policy_delay: the potential learns in one of so many updates; one for many observations costs less than many for few
    :param persistent_chains: whether the negatives' chains go on where the last ones at the same transition ended; they are
        kept in the replay buffer and saved with it
    :param potential_training_kwargs: Keyword arguments of :class:`sb3_energy.pgac.potential_training.PotentialTraining`
    :param update_particles: the most proposals that a refined candidate is chosen from in updates
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :param kwargs: all of :class:`sb3_energy.EnergySAC`'s and SAC's keyword arguments
    :raises ValueError: if a name or a number is not one of those that are accepted
    :raises TypeError: if something has the wrong type
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    learns_potential: ClassVar[bool] = True
    default_update_particles: ClassVar[int] = 8
    policy: PotentialPolicy
    critic: EnsembleCritic

    @plain_arguments
    def __init__(
        self,
        policy: str | type[PotentialPolicy],
        env: GymEnv | str,
        *args: Any,
        transport_coef: float = 1.0,
        divergence_coef: float = 0.1,
        value_weight: str | None = "exp",
        matching_coef: float = 0.0,
        end_to_end_coef: float = 0.0,
        policy_delay: int = 4,
        persistent_chains: bool = False,
        potential_training_kwargs: dict[str, Any] | None = None,
        update_particles: int = 8,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ):
        self.transport_coef = transport_coef
        self.divergence_coef = divergence_coef
        self.value_weight = value_weight
        self.matching_coef = matching_coef
        self.end_to_end_coef = end_to_end_coef
        self.policy_delay = policy_delay
        self.persistent_chains = persistent_chains
        self.potential_training_kwargs = potential_training_kwargs
        self._update_index = 0
        if isinstance(policy, type) and not issubclass(policy, PotentialPolicy):
            raise TypeError(f"policy must be one of {list(self.policy_aliases)} or a PotentialPolicy, got {policy.__name__}")
        super().__init__(policy, env, *args, update_particles=update_particles, _init_setup_model=False, **kwargs)
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        if isinstance(self.capture, str) and self.capture == "cuda_graph":
            raise ValueError(
                "capture='cuda_graph' needs updates without the host, which assigns a potential's pairs; use None"
            )
        super()._setup_model()
        self.policy.potential.by_hand = self._is_lean

    def _update(self, batch: ReplayBufferSamples, records: Records) -> None:
        super()._update(batch, records)
        self._update_index += 1
        if self._update_index % self.policy_delay == 0:
            self._update_potential(batch, self._current_ent_coef(), records)

    def _optimizers(self) -> list[th.optim.Optimizer]:
        return [*super()._optimizers(), *self._potential_optimizers()]

    def _check_settings(self) -> None:
        super()._check_settings()
        refuse_changed(vars(self), GSDE_OF_THE_ALGORITHM, NO_GSDE)

    def _chooses_proposals(self, uses_estimate: bool) -> bool:
        refines = self._training.n_refined > 0 or self.end_to_end_coef != 0.0  # which nobody has checked yet
        return refines or super()._chooses_proposals(uses_estimate)

    def _check_ent_coef(self, ent_coef: float) -> None:
        if not ent_coef >= 0.0:
            raise ValueError(f"ent_coef must be at least 0, got {self.ent_coef!r}")
        if ent_coef == 0.0 and self.matching_coef > 0.0:
            raise ValueError(f"ent_coef is what matching_coef divides Q by and must be above 0, got {self.ent_coef!r}")

    def _sync_temperature(self) -> None:
        """The temperature is ``ε`` and a part of the energy; the entropy coefficient is the Gaussian's alone."""

    def learn(
        self: SelfPGAC,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "PGAC",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfPGAC:
        """
        Train, as SB3's SAC does.

        :param total_timesteps: The total number of samples (env steps) to train on
        :param callback: callback(s) called at every step with state of the algorithm.
        :param log_interval: for on-policy algos (e.g., PPO, A2C, ...) this is the number of
            training iterations before logging; for off-policy ones the number of episodes.
        :param tb_log_name: the name of the run for TensorBoard logging
        :param reset_num_timesteps: whether or not to reset the current timestep number (used in logging)
        :param progress_bar: Display a progress bar using tqdm and rich.
        :return: the trained model
        """
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
