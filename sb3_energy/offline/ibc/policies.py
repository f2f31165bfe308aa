"""Policies that act where a learned energy of observations and actions is low."""

from dataclasses import replace
from typing import Any, ClassVar, cast

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule

from sb3_energy.checks import check_integer, check_number
from sb3_energy.energies import tempered
from sb3_energy.keywords import plain_arguments
from sb3_energy.networks import EnergyNetwork, PrefixEnergies
from sb3_energy.networks.energy import normalise_spectra
from sb3_energy.offline.policies import OfflinePolicy
from sb3_energy.refinement.arguments import RefinementArguments
from sb3_energy.refinement.bases import UniformBase
from sb3_energy.refinement.chosen_refiner import make_refiner
from sb3_energy.refinement.refinement import Refinement
from sb3_energy.refiners import AnnealedGradient, DerivativeFree, Identity, refine
from sb3_energy.types import EnergyFn, Head, Refiner, Target

PREFIX_ENERGY = "prefix_energy"
PARTICLES: dict[type, int] = {DerivativeFree: 1024, AnnealedGradient: 512}
"""Default numbers of particles that differ from the refiner's own: here all of them start anywhere in the box."""
POINTS_AT_A_TIME = 2**18
"""Particles of all observations together that are evaluated at once."""


class IBCPolicy(OfflinePolicy):
    """
    A policy that acts where an energy ``E(s, a)`` is low (Florence et al. 2021), by any refiner of the registry that starts
    anywhere in the box. ``predict(deterministic=True)`` searches from fixed starts and returns the lowest energy that it
    finds; ``deterministic=False`` draws from about ``exp(-E / temperature)``.

    How such draws are distributed is the refiner's affair: with ``"langevin"``, ``"mala"``, ``"hmc"`` and ``"smc"`` by that
    density, as far as their steps go; ``"derivative_free"`` and ``"annealed_gradient"`` draw nearer to the lowest points.

    :param observation_space: Observation space
    :param action_space: Action space
    :param lr_schedule: Learning rate schedule (could be constant)
    :param backbone: a name in :data:`sb3_energy.networks.BACKBONES`, of one without batch normalisation
    :param spectral_norm: whether the weights of each linear layer are divided by their largest singular value
    :param temperature: ``T``: losses, chains and draws see ``E / T``
    :param refiner: how actions are searched: a name in :data:`sb3_energy.refiners.REFINERS`, a class, or a list of these,
        which are run in sequence. ``"derivative_free"`` is method A of the paper; ``"autoregressive_derivative_free"`` B,
        which learns an energy of each prefix of the action as well; ``"annealed_gradient"`` C, whose schedule is followed by
        as many steps of its last size
    :param refiner_kwargs: keyword arguments of the refiner; for a list of refiners a list of dicts and ``None``
    :param refiner_steps: number of refinement steps (``None``: the refiner's own default); for a list of refiners a list
    :param n_particles: number of particles for each observation (``None``: 1024 with ``"derivative_free"``, 512 with
        ``"annealed_gradient"``, else the refiner's own default). A draw of a refiner that moves each particle alone is one
        chain, whose start is chosen from this many by its energy
    :param deterministic_particles: number of particles in deterministic predictions, for refiners that move each particle
        alone (``None``: ``n_particles``)
    :param box: how particles stay in the box of actions: ``"reflect"``: they are reflected at its walls, ``"tanh"``: they move
        pre-tanh
    :param precondition: whether step sizes are in units of the standard deviation of a uniform draw, instead of actions scaled
        to [-1, 1]
    :param kwargs: the arguments of :class:`~sb3_energy.offline.policies.OfflinePolicy`
    :raises ValueError: if a name or a number is not one of those that are accepted
    :raises TypeError: if something has the wrong type
    """

    @plain_arguments
    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        backbone: str = "plain",
        spectral_norm: bool = False,
        temperature: float = 1.0,
        refiner: str | type[Refiner] | list[Any] = "derivative_free",
        refiner_kwargs: dict[str, Any] | list[Any] | None = None,
        refiner_steps: int | list[Any] | None = None,
        n_particles: int | None = None,
        deterministic_particles: int | None = None,
        box: str = "reflect",
        precondition: bool = False,
        **kwargs: Any,
    ):
        self._own: dict[str, Any] = dict(
            refiner=refiner,
            refiner_kwargs=refiner_kwargs,
            refiner_steps=refiner_steps,
            n_particles=n_particles,
            deterministic_particles=deterministic_particles,
            box=box,
            precondition=precondition,
        )
        self.refinement = make_refinement(self._own)
        self.temperature = check_number("temperature", temperature, strict=True)
        self.backbone, self.spectral_norm = backbone, spectral_norm
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)
        self._build(lr_schedule)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        own = dict(backbone=self.backbone, spectral_norm=self.spectral_norm, temperature=self.temperature)
        return super()._get_constructor_parameters() | own | self._own

    @property
    def learns_prefixes(self) -> bool:
        """Whether the refiner needs energies of prefixes, which are learned beside the energy."""
        return getattr(self.refinement.refiner, "head", None) == PREFIX_ENERGY

    def make_networks(self) -> None:
        """Make the network of the energy and, if the refiner needs them, those of prefixes."""
        sizes: Any = dict(net_arch=self.net_arch, activation_fn=self.activation_fn, backbone=self.backbone)
        self.energy_network = EnergyNetwork(self.features_dim, self.action_dim, **sizes, spectral_norm=self.spectral_norm)
        self.prefix_energies: PrefixEnergies | None = None
        if self.learns_prefixes:
            self.prefix_energies = PrefixEnergies(self.features_dim, self.action_dim, **sizes)
            if self.spectral_norm:
                normalise_spectra(self.prefix_energies)

    def bind(self, features: th.Tensor) -> EnergyFn:
        """
        The energy at features, as the networks are now.

        :param features: ``(B, F)``
        :return: ``(B, N, A) -> (B, N)`` of actions scaled to [-1, 1], over the temperature
        """
        return tempered(self.energy_network.bind(features), self.temperature)

    def bind_prefixes(self, features: th.Tensor) -> Head:
        """
        The energies of prefixes at features.

        :param features: ``(B, F)``
        :return: over the temperature; empty if the refiner does not need them
        """
        if self.prefix_energies is None:
            return Head()
        return Head(prefix_energy=tempered(self.prefix_energies.bind(features), self.temperature))

    def energy_fn(self, obs: PyTorchObs) -> EnergyFn:
        """
        Condition the energy on observations.

        :param obs: ``B`` observations, which are encoded once
        :return: ``(B, N, A) -> (B, N)`` of actions scaled to [-1, 1], over the temperature
        """
        return self.bind(self.features(obs))

    def descents(self, features: th.Tensor, n: int) -> th.Tensor:
        """
        Where descents by the policy's refiner end that start anywhere, with a graph through all steps.

        :param features: ``(B, F)``
        :param n: how many for each observation
        :return: ``(B, n, A)`` scaled to [-1, 1]
        """
        refinement, base = self.refinement, self._base(features)
        coordinates = refinement.coordinates(base)
        refiner: Any = refinement.refiner
        target = Target(coordinates.descended(self.bind(features)))
        state = refine(
            replace(refiner, differentiable=True), coordinates.start(base.sample(n)), target, n_steps=refinement.n_steps
        )
        return refinement.actions(base, state.particles)

    def _base(self, features: th.Tensor) -> UniformBase:
        return UniformBase(features.new_zeros((len(features), self.action_dim)))

    def _refined(self, features: th.Tensor, deterministic: bool) -> th.Tensor:
        base, energy, head = self._base(features), self.bind(features), self.bind_prefixes(features)
        if deterministic:
            return th.tanh(self.refinement.best(base, energy, head=head))
        return th.tanh(self.refinement.sample(base, energy, head=head))

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        features = self.features(observation)
        n_particles = max(self.refinement.n_particles, self.refinement.n_starts)
        parts = features.split(max(POINTS_AT_A_TIME // n_particles, 1))
        return (
            th.cat([self._refined(part, deterministic) for part in parts]) if len(features) > 0 else self._base(features).like
        )


class IBCCnnPolicy(IBCPolicy):
    """Image variant of :class:`IBCPolicy`: features by SB3's ``NatureCNN``. Same arguments."""

    default_features_extractor_class: ClassVar[type[BaseFeaturesExtractor]] = NatureCNN


class IBCMultiInputPolicy(IBCPolicy):
    """Variant of :class:`IBCPolicy` for dict observations: features by SB3's ``CombinedExtractor``. Same arguments."""

    default_features_extractor_class: ClassVar[type[BaseFeaturesExtractor]] = CombinedExtractor


def make_refinement(given: dict[str, Any]) -> Refinement:
    """
    The refinement from anywhere in the box.

    :param given: arguments of :class:`IBCPolicy`, those of the refinement
    :return: the refinement; of ``annealed_gradient`` alone with as many steps of its last size as its schedule has
    :raises ValueError: if one is not accepted, or would have no effect beside the others
    :raises TypeError: if one has the wrong type
    """
    refiner: Any = make_refiner(given["refiner"], given["refiner_kwargs"], given["refiner_steps"])[0]
    if isinstance(refiner, Identity) or getattr(refiner, "head", None) not in (None, PREFIX_ENERGY):
        raise ValueError(
            f"refiner must search the energy from anywhere in the box, such as 'derivative_free', got {given['refiner']!r}"
        )
    found = RefinementArguments(**given, initial_particles="uniform").make_refinement()
    if found.keeps_plans:
        raise ValueError("refiner_kwargs must have warm_start=False, since no plans are handed on, got True")
    if given["n_particles"] is None:
        found = replace(found, n_particles=PARTICLES.get(type(refiner), found.n_particles))
    if isinstance(refiner, AnnealedGradient):
        n_steps = check_integer("refiner_steps", found.n_steps, minimum=1)
        found = replace(found, refiner=cast(Refiner, refiner.settling(n_steps)), n_steps=2 * n_steps)
    return found
