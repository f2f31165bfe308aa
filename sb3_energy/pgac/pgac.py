"""The potential-guided actor-critic, whose policy is a potential sampled by the JKO scheme."""

import warnings
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import recursive_getattr
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, ReplayBufferSamples

from sb3_energy.checks import check_bool, check_integer
from sb3_energy.energy_sac import EnergySAC
from sb3_energy.keywords import plain_arguments, refuse_changed
from sb3_energy.pgac.persistent_chains import NStepChainReplayBuffer, buffer_with_chains
from sb3_energy.pgac.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_energy.pgac.potential_learner import PotentialLearner
from sb3_energy.pgac.potential_policy import GSDE_OF_THE_ALGORITHM, NO_GSDE, PotentialPolicy
from sb3_energy.pgac.potential_training import PotentialSettings, PotentialTraining, check_potential_training
from sb3_energy.policies.critics import EnsembleCritic
from sb3_energy.registry import resolve
from sb3_energy.training.guards import Records
from sb3_energy.training.value_units import Valued

SelfPGAC = TypeVar("SelfPGAC", bound="PGAC")

BEHAVIOUR_CRITIC = ("potential_learner.behaviour_critic", "potential_learner.behaviour_critic.optimizer")
"""Names of parameters that only a model with value weights has."""


class PGAC(EnergySAC):
    """
    Potential-guided actor-critic: the policy is a time-independent potential ``V(s, a)``, both velocity field and energy. An
    action starts at the base, is transported along ``-∇U`` with ``U = V - λ Q``, and ends as a draw from approximately
    ``exp(-U / ε)``.

    Critics, temperature and the Gaussian actor, from which particles start, learn as in SAC. ``V`` learns the optimal
    transport from the base to candidates of an observation that are drawn by ``exp(Q)``, ``L_OT`` (Energy Matching, Balcerak
    et al. 2025), with a larger weight where the replayed action was better than others there (value weight), and by
    contrastive divergence between these candidates and its own draws, ``L_CD``. Its loss is
    ``transport_coef L_OT + ω L_CD + matching_coef L_GM - end_to_end_coef E[Q̂]``, of which the last two are off by default.

    Sampling is configured by ``policy_kwargs`` (see :class:`sb3_energy.pgac.potential_policy.PotentialPolicy`): ``λ`` and
    ``ε`` are ``energy_kwargs``.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param args: SAC's other arguments in SAC's order
    :param transport_coef: coefficient of the transport loss; 0 switches it off
    :param divergence_coef: ``ω``, coefficient of the contrastive divergence; 0 switches it off
    :param value_weight: weight of an observation in the transport loss, by the advantage of its replayed action over the best
        behaviour in the replay buffer, in units of the advantages' root mean square: ``"relu"`` (the advantage where it is
        positive), ``"exp"`` (its exponential), or ``None`` (1)
    :param matching_coef: coefficient of the gradient matching loss between ``-∇V / ε`` and ``∇ min Q / α``; needs
        ``guidance=0``
    :param end_to_end_coef: coefficient of ``-E[Q̂]`` of the sampler's actions, Q over its spread, differentiated through all of
        its steps
    :param policy_delay: the potential is updated in one of so many updates
    :param persistent_chains: whether the negatives' chains start where the last ones at the same transition ended; they are
        stored in the replay buffer and saved with it
    :param potential_training_kwargs: Keyword arguments of :class:`sb3_energy.pgac.potential_training.PotentialTraining`
    :param update_particles: in updates, the most proposals from which the start of a refined candidate's chain is chosen
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :param kwargs: all of :class:`sb3_energy.EnergySAC`'s and SAC's keyword arguments
    :raises ValueError: if a name or a number is not accepted
    :raises TypeError: if an argument has the wrong type
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
        self._training = resolve({}, PotentialTraining, self.potential_training_kwargs, "potential_training")
        self.persistent_chains = check_bool("persistent_chains", self.persistent_chains)
        if self.persistent_chains:
            if self.divergence_coef == 0.0:
                raise ValueError(
                    f"persistent_chains=True needs chains, and divergence_coef above 0, got {self.divergence_coef!r}"
                )
            self.replay_buffer_class, self.replay_buffer_kwargs = buffer_with_chains(self, self._training.n_chains)
        with warnings.catch_warnings():
            if self.replay_buffer_class is NStepChainReplayBuffer and self.replay_buffer_kwargs.get("n_steps") == self.n_steps:
                warnings.filterwarnings("ignore", r"`n_steps=\d+` is ignored")  # SB3 takes the class for the user's own
            super()._setup_model()
        policy = self.policy
        policy.potential.by_hand = self.update == "lean"
        self.policy_delay = check_integer("policy_delay", self.policy_delay, minimum=1)
        settings = PotentialSettings(
            self.transport_coef, self.divergence_coef, self.end_to_end_coef, self.matching_coef, self.value_weight
        ).check(getattr(policy.energy, "guidance", 0.0), policy.refinement.refiner)
        check_potential_training(self._training, self.transport_coef, self.divergence_coef, self.value_weight)
        self.potential_learner = PotentialLearner(policy, self._training, settings, self.lr_schedule, self.tau)

    def _update_others(self, batch: ReplayBufferSamples, records: Records) -> None:
        """Update the behaviour critic and, in one of ``policy_delay`` updates, the potential."""
        super()._update_others(batch, records)
        self.potential_learner.learn_behaviour(self.policy, batch, gamma=self.gamma, records=records)
        self._update_index += 1
        if self._update_index % self.policy_delay == 0:
            self._update_potential(batch, self._current_ent_coef(), records)

    def _update_potential(self, batch: ReplayBufferSamples, ent_coef: th.Tensor, records: Records) -> None:
        buffer: Any = self.replay_buffer
        self.potential_learner.step(
            self.policy,
            batch,
            ent_coef=ent_coef,
            n_particles=self.update_particles,
            records=records,
            chains=buffer if self.persistent_chains else None,
        )

    def _optimizers(self) -> list[th.optim.Optimizer]:
        return [*super()._optimizers(), *self.potential_learner.optimizers(self.policy)]

    def valued(self) -> Valued:
        """
        List what is in units of values, the spread of Q and the behaviour critic included.

        :return: critics, optimizers and numbers
        """
        critics, followers, _ = super().valued()
        learner = getattr(self, "potential_learner", None)  # which is made later
        behaviour = None if learner is None else learner.behaviour_critic
        found = critics if behaviour is None else [*critics, behaviour]
        return Valued(found, followers, [self.policy.q_scale.spread])

    def _check_settings(self) -> None:
        super()._check_settings()
        refuse_changed(vars(self), GSDE_OF_THE_ALGORITHM, NO_GSDE)

    def _chooses_proposals(self, uses_estimate: bool) -> bool:
        refines = self._training.n_refined > 0 or self.end_to_end_coef != 0.0  # which is checked later
        return refines or super()._chooses_proposals(uses_estimate)

    def _check_ent_coef(self, ent_coef: float) -> None:
        if not ent_coef >= 0.0:
            raise ValueError(f"ent_coef must be at least 0, got {self.ent_coef!r}")
        if ent_coef == 0.0 and self.matching_coef > 0.0:
            raise ValueError(f"ent_coef is what matching_coef divides Q by and must be above 0, got {self.ent_coef!r}")

    def _sync_temperature(self) -> None:
        """Nothing: the policy's temperature is ``ε`` and a part of the energy; ``α`` is that of the Gaussian actor alone."""

    def _check_replay_buffer(self, buffer: ReplayBuffer) -> None:
        found = getattr(buffer, "chains", np.zeros((1, 1, 0))).shape[2]
        if self.persistent_chains and found != self._training.n_chains:
            raise ValueError(f"persistent_chains=True needs a buffer of {self._training.n_chains} chains, got one of {found}")
        super()._check_replay_buffer(buffer)

    def set_parameters(self, load_path_or_dict: Any, exact_match: bool = True, device: th.device | str = "auto") -> None:
        """
        As in SB3. Value weights may be switched on or off for a saved model: a behaviour critic that this model does not have
        is ignored, and one that is not in the file stays as it is here.

        :param load_path_or_dict: Location of the saved data or a nested dictionary of parameters
        :param exact_match: Whether all of the other parts must be there
        :param device: Device on which the code should run.
        """
        found = load_path_or_dict
        if not isinstance(found, dict):
            super().set_parameters(found, exact_match, device)  # which calls this again, with a dictionary
            return
        own: dict[str, Any] = {}
        if self.potential_learner.behaviour_critic is None:
            found = {name: part for name, part in found.items() if name not in BEHAVIOUR_CRITIC}
        elif not any(name in found for name in BEHAVIOUR_CRITIC):
            own = {name: recursive_getattr(self, name).state_dict() for name in BEHAVIOUR_CRITIC}
        super().set_parameters(own | found, exact_match, device)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_training", "potential_learner"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, tensors = super()._get_torch_save_params()
        state_dicts.append("policy.potential.optimizer")
        if self.potential_learner.behaviour_critic is not None:
            state_dicts += BEHAVIOUR_CRITIC
        return state_dicts, tensors

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
