"""A refined policy with a learned potential, which its energy is made of."""

from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import Schedule

from sb3_energy.checks import check_bool
from sb3_energy.keywords import plain_arguments, refuse_changed, takes_arguments
from sb3_energy.networks import PotentialNetwork
from sb3_energy.pgac.action_candidates import base_actions
from sb3_energy.pgac.arguments import NORMAL, PotentialArguments, potential_settings
from sb3_energy.pgac.numpy_potential import FAST_POTENTIALS
from sb3_energy.pgac.q_scale import QScale
from sb3_energy.policies.fast_predict.conditions import known_policy
from sb3_energy.policies.fast_predict.numpy_energies import FAST_ENERGIES
from sb3_energy.policies.refined_policy import RefinedPolicy
from sb3_energy.refinement.bases import Gaussian
from sb3_energy.refinement.proposals import INITIAL_PARTICLES
from sb3_energy.types import Networks

GSDE_OF_THE_ALGORITHM = dict(sde_sample_freq=-1, use_sde_at_warmup=False)
GSDE_OF_THE_POLICY = dict(log_std_init=-3, use_expln=False, clip_mean=2.0)
"""SAC's arguments of gSDE and their defaults."""

NO_GSDE = "use_sde=True, which PGAC does not take; EnergySAC with refiner='none' does"

SMALLEST_ARCHITECTURE = [64, 64]
"""Of a potential whose critic has no hidden layer: a linear potential has the same gradient at all actions."""


FAST_ENERGIES.update(FAST_POTENTIALS)


@known_policy
@takes_arguments(PotentialArguments)
class PotentialPolicy(RefinedPolicy):
    """
    A refined policy whose energy is a potential guided by the critic, ``exp(-U / ε)`` with ``U = V - λ Q``, sampled by the JKO
    scheme: from the base along ``-∇U`` without noise, then Langevin with noise that rises to that of ``ε``.

    SB3's arguments are those of :class:`RefinedPolicy`.

    :param observation_space: Observation space
    :param action_space: Action space
    :param lr_schedule: Learning rate schedule (could be constant)
    :raises ValueError: if a name or a number is not one of those that are accepted
    :raises TypeError: if an argument has the wrong type
    """

    has_potential: ClassVar[bool] = True
    arguments: PotentialArguments
    potential: PotentialNetwork
    q_scale: QScale

    @plain_arguments
    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        **kwargs: Any,
    ):
        if check_bool("use_sde", kwargs.get("use_sde", False)):
            raise ValueError(
                "use_sde=True keeps its noise for several steps, which a potential's starts do not, "
                f"and needs EnergySAC with refiner='none', got {kwargs.get('refiner', 'mala')!r}"
            )
        refuse_changed(kwargs, GSDE_OF_THE_POLICY, NO_GSDE)
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)
        self.starts_normal = self.arguments.initial_particles == NORMAL

    @property
    def epsilon(self) -> float:
        """The temperature ``ε`` of the potential's energy."""
        return getattr(self.energy, "temperature", 1.0)

    def temperature_of_q(self) -> th.Tensor:
        """
        The temperature ``T`` of the guidance ``exp(Q / T)``: of the proposals' weights and of the positives.

        :return: scalar; of an energy that does not say it, ``ε`` times the spread of Q
        """
        spread = self.q_scale.spread
        known = getattr(self.energy, "temperature_of_q", None)
        return th.as_tensor(self.epsilon * spread if known is None else known(spread), device=spread.device)

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        settings: dict[str, Any] = dict(net_arch=self.critic.net_arch or SMALLEST_ARCHITECTURE)
        settings |= potential_settings(self.arguments.potential_kwargs)
        action_dim = get_action_dim(self.action_space)
        self.potential = PotentialNetwork(self.critic.features_dim, action_dim, **settings).to(self.device)
        self._add_optimizer(self.potential, lr_schedule)
        self.q_scale = QScale(action_dim).to(self.device)

    def set_training_mode(self, mode: bool) -> None:
        """
        As in SB3, also for the potential: normalised weights change at each look at them while they learn.

        :param mode: if true, set to training mode, else set to evaluation mode
        """
        super().set_training_mode(mode)
        if self.potential.training != mode:  # each prediction comes here
            self.potential.train(mode)

    def networks(self) -> Networks:
        """
        The networks that energies are made of.

        :return: critic, potential and the spread of Q
        """
        return Networks(critic=self.critic, potential=self.potential, q_scale=self.q_scale.spread)

    def start_actions(self, base: Gaussian, n: int) -> th.Tensor:
        """
        Sample the initial particles.

        :param base: what :meth:`start_base` gave
        :param n: how many for each observation
        :return: ``(B, n, A)`` in the box, where particles start
        """
        return base_actions(base, n, INITIAL_PARTICLES[self.refinement.initial_particles])
