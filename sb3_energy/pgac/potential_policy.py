"""A refined policy with a learned potential, which its energy is made of."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import Schedule

from sb3_energy.checks import check_bool, check_choice, check_integer, check_keywords
from sb3_energy.energies import ENERGIES, make_energy
from sb3_energy.keywords import plain_arguments
from sb3_energy.networks import PotentialNetwork, find_activation
from sb3_energy.pgac.potential_training import base_actions
from sb3_energy.policies.q_scale import QScale
from sb3_energy.policies.refined_policy import RefinedPolicy
from sb3_energy.policies.unread_arguments import GSDE_OF_THE_POLICY, NO_GSDE, refuse_changed
from sb3_energy.refinement.proposals import INITIAL_PARTICLES, Gaussian
from sb3_energy.refiners import REFINERS, Identity, Langevin, jko_langevin
from sb3_energy.registry import resolve
from sb3_energy.types import Energy, Networks, Refiner

JKO_STEPS = 6
"""Of transport and Langevin together, where nobody says how many."""

JKO_PARTICLES = 32
"""Fewer than Langevin has elsewhere: transport does a part of what choosing among them does, and all pay for its steps."""

POTENTIAL_ARGUMENTS = ("net_arch", "activation_fn", "layer_norm", "spectral_norm", "input_gain")

SMALLEST_ARCHITECTURE = [64, 64]
"""Of a potential whose critic has no hidden layer: a linear one would lead everywhere alike, and to no action."""

NORMAL = "normal"
"""Where particles start, beside what a refined policy knows: a standard Gaussian before the squash at any observation."""


class PotentialPolicy(RefinedPolicy, is_known=True):
    """
    A refined policy whose energy is a potential guided by the critic, ``exp(-U / ε)`` with ``U = V - λ Q``, sampled by the JKO
    scheme: from the base along ``-∇U`` without noise, then Langevin with noise that rises to that of ``ε``.

    What is said here comes beside or in place of :class:`RefinedPolicy`'s arguments.

    :param observation_space: Observation space
    :param action_space: Action space
    :param lr_schedule: Learning rate schedule (could be constant)
    :param refiner: As there, but not ``"none"``; ``"langevin"`` takes the steps of the JKO scheme
    :param refiner_kwargs: As there; of ``"langevin"`` not ``step_size`` and ``noise_scale``, which follow from the times
    :param refiner_steps: How many steps (``None``: 6 with ``"langevin"``)
    :param n_particles: As there (``None``: 32 with ``"langevin"``)
    :param initial_particles: As there, or ``"normal"``: a standard Gaussian before the squash at every observation
    :param precondition: As there, but not unless it is asked for: the potential is a velocity in the box
    :param energy: ``"guided_potential"``, ``"potential"``, or a class with ``needs_potential = True`` and a ``temperature``
    :param energy_kwargs: Keyword arguments of the energy: ``guidance`` (``λ``), ``temperature`` (``ε``), ``normalize_q``,
        ``aggregate``, ``coefficient``
    :param trust_region: Step ``Δt`` of the transport cost ``|a - a_start|² / (2 Δt)``, in units of ``U`` (``None``: no cost)
    :param box: As there
    :param sampling_time: Of the JKO scheme (``None``: 1)
    :param transport_time: ``τ*``, until which there is no noise (``None``: half of the sampling time)
    :param potential_kwargs: Of the potential: ``net_arch`` (``None``: the critic's, or ``[64, 64]`` where that has no hidden
        layer), ``activation_fn``, ``layer_norm``, ``spectral_norm``, ``input_gain``, see
        :class:`sb3_energy.networks.PotentialNetwork`
    :param kwargs: of :class:`RefinedPolicy`; ``tolerance`` is in units of ``U / ε``
    :raises ValueError: if a name or a number is not one of those that are accepted
    :raises TypeError: if something has the wrong type
    """

    has_potential: ClassVar[bool] = True
    potential: PotentialNetwork
    q_scale: QScale

    @plain_arguments
    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        refiner: str | type[Refiner] = "langevin",
        refiner_kwargs: dict[str, Any] | None = None,
        refiner_steps: int | None = None,
        n_particles: int | None = None,
        initial_particles: str | None = None,
        precondition: bool = False,
        energy: str | type[Energy] | Callable[..., th.Tensor] = "guided_potential",
        energy_kwargs: dict[str, Any] | None = None,
        trust_region: float | None = None,
        box: str = "reflect",
        sampling_time: float | None = None,
        transport_time: float | None = None,
        potential_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        self._potential_kwargs = _checked_potential_kwargs(potential_kwargs)
        if check_bool("use_sde", kwargs.get("use_sde", False)):
            raise ValueError(
                "use_sde=True keeps its noise for several steps, which a potential's starts do not, "
                f"and needs EnergySAC with refiner='none', got {refiner!r}"
            )
        refuse_changed(kwargs, GSDE_OF_THE_POLICY, NO_GSDE)
        if (isinstance(refiner, str) and refiner == "none") or (isinstance(refiner, type) and issubclass(refiner, Identity)):
            raise ValueError(
                f"refiner must be one that follows the potential, such as 'langevin', got {refiner!r}; EnergySAC takes it"
            )
        if initial_particles is not None:
            check_choice("initial_particles", initial_particles, sorted([NORMAL, *INITIAL_PARTICLES]))
        self.starts_normal = initial_particles == NORMAL
        self.epsilon = _temperature_of(energy, energy_kwargs)
        given = dict(refiner_kwargs=refiner_kwargs, refiner_steps=refiner_steps, n_particles=n_particles)
        times = (sampling_time, transport_time)
        if isinstance(refiner, (str, type)) and refiner in ("langevin", Langevin):
            refiner_steps = JKO_STEPS if refiner_steps is None else refiner_steps
            n_particles = JKO_PARTICLES if n_particles is None else n_particles
            refiner_kwargs = _jko_kwargs(refiner, refiner_kwargs, refiner_steps, self.epsilon, *times)
        else:
            _refuse_times(refiner, *times)
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            refiner=refiner,
            refiner_kwargs=refiner_kwargs,
            refiner_steps=refiner_steps,
            n_particles=n_particles,
            initial_particles="base" if self.starts_normal else initial_particles,
            precondition=precondition,
            energy=energy,
            energy_kwargs=energy_kwargs,
            trust_region=_over(trust_region, self.epsilon),
            box=box,
            **kwargs,
        )
        self._own_parameters |= given | dict(
            initial_particles=initial_particles,
            trust_region=trust_region,
            sampling_time=sampling_time,
            transport_time=transport_time,
            potential_kwargs=potential_kwargs,
        )

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        kwargs: dict[str, Any] = dict(net_arch=self.critic.net_arch or SMALLEST_ARCHITECTURE)
        kwargs |= self._potential_kwargs
        action_dim = get_action_dim(self.action_space)
        self.potential = PotentialNetwork(self.critic.features_dim, action_dim, **kwargs).to(self.device)
        optimizer_class: Any = self.optimizer_class
        self.potential.optimizer = optimizer_class(self.potential.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)
        self.q_scale = QScale().to(self.device)

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
        :return: critic, potential and the spread of Q
        """
        return Networks(critic=self.critic, potential=self.potential, q_scale=self.q_scale.spread)

    def start_actions(self, base: Gaussian, n: int) -> th.Tensor:
        """
        :param base: what :meth:`start_base` gave
        :param n: how many for each observation
        :return: ``(B, n, A)`` in the box, where particles start
        """
        return base_actions(base, n, INITIAL_PARTICLES[self.refinement.initial_particles])


def _temperature_of(energy: Any, energy_kwargs: Any) -> float:
    made = make_energy(ENERGIES, energy, energy_kwargs)
    if isinstance(made, Energy) and not getattr(made, "needs_potential", False):  # what is none is refused elsewhere
        raise ValueError(
            "energy must be made of the potential and say so by needs_potential=True, such as 'guided_potential', "
            f"got {energy!r}; EnergySAC follows other energies"
        )
    return getattr(made, "temperature", 1.0)


def _jko_kwargs(
    refiner: Any,
    refiner_kwargs: Any,
    n_steps: int,
    temperature: float,
    sampling_time: float | None,
    transport_time: float | None,
) -> dict[str, Any]:
    """Langevin's arguments: what is given, and the steps that follow from the times."""
    given = dict(refiner_kwargs) if isinstance(refiner_kwargs, dict) else {}
    fixed = sorted({"step_size", "noise_scale"} & set(given))
    if fixed:
        raise ValueError(
            f"refiner_kwargs of a potential's 'langevin' must leave {fixed} to sampling_time and transport_time, got {given}"
        )
    resolve(REFINERS, refiner, refiner_kwargs, "refiner")  # says what is wrong with the others
    check_integer("refiner_steps", n_steps, minimum=1)
    time = 1.0 if sampling_time is None else sampling_time
    transport = 0.5 * time if transport_time is None and isinstance(time, (int, float)) else transport_time
    jko = jko_langevin(n_steps, temperature, time, transport)
    return given | dict(step_size=jko.step_size, noise_scale=jko.noise_scale)


def _refuse_times(refiner: Any, sampling_time: float | None, transport_time: float | None) -> None:
    for name, value in (("sampling_time", sampling_time), ("transport_time", transport_time)):
        if value is not None:
            raise ValueError(f"{name} belongs to the JKO scheme of refiner='langevin', got {value!r} with {refiner!r}")


def _over(trust_region: Any, temperature: float) -> Any:
    """The energy is ``U / ε``, and so is the cost that is added to it. What is no number is somebody else's to refuse."""
    is_number = isinstance(trust_region, (int, float)) and not isinstance(trust_region, bool)
    return trust_region * temperature if is_number else trust_region


def _checked_potential_kwargs(potential_kwargs: Any) -> dict[str, Any]:
    if potential_kwargs is None:
        return {}
    if not isinstance(potential_kwargs, dict):
        raise TypeError(f"potential_kwargs must be a dict, got {potential_kwargs!r}")
    check_keywords("potential_kwargs", potential_kwargs, POTENTIAL_ARGUMENTS)
    given = {name: value for name, value in potential_kwargs.items() if value is not None}
    if "activation_fn" in given:
        given["activation_fn"] = find_activation(given["activation_fn"])
    PotentialNetwork(1, 1, **(dict(net_arch=[1]) | given))  # says what is wrong with them
    return given
