"""A Gaussian policy whose actions are refined by an energy."""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_energy.conversion import as_native
from sb3_energy.deferred import NonFiniteError
from sb3_energy.energies import ENERGIES, FINITE, as_imported, make_energy, tempered
from sb3_energy.keywords import plain_arguments
from sb3_energy.networks import default_activation, find_activation
from sb3_energy.policies.action_bounds import check_action_bounds
from sb3_energy.policies.actor import BackboneActor
from sb3_energy.policies.critics import EnsembleCritic
from sb3_energy.policies.fast_predict.fast_predict import FastPredict
from sb3_energy.policies.head_policy import checked_head_kwargs
from sb3_energy.policies.network_arguments import check_network_arguments
from sb3_energy.policies.own_energy import OwnEnergy
from sb3_energy.policies.policy_draws import PolicyDraws
from sb3_energy.policies.policy_files import PersistentModel
from sb3_energy.policies.quantile_critic import QuantileCritic, quantile_kwargs
from sb3_energy.policies.unread_arguments import check_energy_is_asked
from sb3_energy.policies.warm_predict import WarmPredict
from sb3_energy.refinement.arguments import make_refinement
from sb3_energy.refinement.proposals import Gaussian
from sb3_energy.refinement.sliceable_energy import bind_sliceable
from sb3_energy.refinement.starts import is_flow, zero_energy
from sb3_energy.refinement.warm_start import Plans
from sb3_energy.types import Energy, EnergyFn, Networks, Refiner, RefinerInfo


class RefinedPolicy(FastPredict, WarmPredict, OwnEnergy, PolicyDraws, PersistentModel, is_known=True):
    """
    SB3's SAC policy, refined: ``p(a|s) ∝ exp(-E(s, a) / temperature)``, started from the Gaussian actor.

    Everything that ``predict`` needs is here, the temperature included, so that a policy which is saved and loaded
    without its algorithm acts the same.

    :param observation_space: Observation space
    :param action_space: Action space
    :param lr_schedule: Learning rate schedule (could be constant)
    :param net_arch: The specification of the policy and value networks.
    :param activation_fn: Activation function, a class of ``torch.nn`` or its name (``None``: the backbone's own, SiLU with
        ``"layer_norm"``, ReLU otherwise)
    :param use_sde: Whether to use State Dependent Exploration or not; only with ``refiner="none"``
    :param log_std_init: Initial value for the log standard deviation
    :param use_expln: Use ``expln()`` function instead of ``exp()`` when using gSDE to ensure
        a positive standard deviation (cf paper).
    :param clip_mean: Clip the mean output when using gSDE to avoid numerical instability.
    :param features_extractor_class: Features extractor to use (``None``: the one of SB3's policy of this name).
    :param features_extractor_kwargs: Keyword arguments
        to pass to the features extractor.
    :param normalize_images: Whether to normalize images or not,
         dividing by 255.0 (True by default)
    :param optimizer_class: The optimizer to use,
        ``th.optim.Adam`` by default
    :param optimizer_kwargs: Additional keyword arguments,
        excluding the learning rate, to pass to the optimizer
    :param n_critics: Number of critic networks to create.
    :param share_features_extractor: Whether to share or not the features extractor
        between the actor and the critic (this saves computation time)
    :param refiner: How the Gaussian's actions are refined: a name in :data:`sb3_energy.refiners.REFINERS`
        (``"langevin"``, ``"mala"``, ``"hmc"``, ``"svgd"``, ``"mppi"``, ``"derivative_free"``,
        ``"autoregressive_derivative_free"``, ``"flow"``, ``"mean_flow"``, ``"snis"``, ``"none"``) or a class
    :param refiner_kwargs: Keyword arguments of the refiner
    :param refiner_steps: How many steps (``None``: the refiner's own default)
    :param n_particles: How many particles for each observation (``None``: the refiner's own default)
    :param initial_particles: What they are drawn from: ``"base"`` (the Gaussian), ``"uniform"`` (the box) or
        ``"mixture"`` (half and half, the first from the base); ``None``: ``"base"`` for flows, ``"mixture"`` for others
    :param precondition: Whether the refiner measures its steps in units of the Gaussian's standard deviation
        (of 1, where it is wider); ``None``: unless it is a flow
    :param head_kwargs: Of what the refiner learns (``"flow"``, ``"mean_flow"``, ``"autoregressive_derivative_free"``):
        ``net_arch`` (``None``: the actor's), ``activation_fn`` (``None``: SiLU), ``backbone`` (``None``: the policy's), for
        flows ``gated`` and ``n_frequencies``, for ``"mean_flow"`` ``same_fraction``
    :param energy: What is low where an action is good: a name in :data:`sb3_energy.energies.ENERGIES`, a class with a method
        ``bind(networks, obs)``, or a function ``(observations, actions) -> (B, N)`` at the top level of a module
    :param energy_kwargs: Keyword arguments of the energy, such as ``dict(aggregate="min")``
    :param trust_region: Step ``Δt`` of the JKO transport cost ``|a - a_start|² / (2 Δt)`` (``None``: no cost)
    :param box: How particles stay in the box of actions: ``"tanh"`` (they move before the squash) or ``"reflect"`` (they
        move in the box and bounce off its walls)
    :param tolerance: When predicting deterministically, an observation whose lowest energy falls by no more than this in
        a step, in units of Q, takes no further one and costs no more (``None``: all take all steps)
    :param deterministic_particles: How many particles when predicting deterministically, for refiners that move each alone
        (``None``: ``n_particles``); the first one starts at the mean of the Gaussian, and the lowest energy wins
    :param backbone: Of actor and critics: ``"plain"`` (SB3's), ``"layer_norm"``, ``"simba"`` or ``"bro"``
    :param critic: ``"scalar"`` Q-values (SAC) or ``"quantile"`` (TQC)
    :param n_quantiles: Quantiles of each quantile critic (``None``: 25)
    :param top_quantiles_to_drop_per_net: Largest quantiles of each critic which the target leaves out (``None``: 2)
    :raises ValueError: if a name or a number is not one of those that are accepted
    :raises TypeError: if something has the wrong type
    """

    default_features_extractor_class: ClassVar[type[BaseFeaturesExtractor]] = FlattenExtractor
    actor: BackboneActor
    critic: EnsembleCritic
    critic_target: EnsembleCritic
    temperature: th.Tensor
    has_potential: ClassVar[bool] = False

    compiled_sample: Callable[..., th.Tensor] | None = None
    """What stands for :meth:`Refinement.sample`, where an algorithm has compiled it."""

    @plain_arguments
    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] | str | None = None,
        use_sde: bool = False,
        log_std_init: float = -3,
        use_expln: bool = False,
        clip_mean: float = 2.0,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        n_critics: int = 2,
        share_features_extractor: bool = False,
        refiner: str | type[Refiner] = "langevin",
        refiner_kwargs: dict[str, Any] | None = None,
        refiner_steps: int | None = None,
        n_particles: int | None = None,
        initial_particles: str | None = None,
        precondition: bool | None = None,
        head_kwargs: dict[str, Any] | None = None,
        energy: str | type[Energy] | Callable[..., th.Tensor] = "q",
        energy_kwargs: dict[str, Any] | None = None,
        trust_region: float | None = None,
        box: str = "tanh",
        tolerance: float | None = None,
        deterministic_particles: int | None = None,
        backbone: str = "layer_norm",
        critic: str = "scalar",
        n_quantiles: int | None = None,
        top_quantiles_to_drop_per_net: int | None = None,
    ):
        check_action_bounds(action_space)
        check_network_arguments(locals())
        energy = as_imported(energy)
        self._own_parameters = dict(
            refiner=refiner,
            refiner_kwargs=refiner_kwargs,
            refiner_steps=refiner_steps,
            n_particles=n_particles,
            initial_particles=initial_particles,
            precondition=precondition,
            head_kwargs=head_kwargs,
            energy=energy,
            energy_kwargs=energy_kwargs,
            trust_region=trust_region,
            box=box,
            tolerance=tolerance,
            deterministic_particles=deterministic_particles,
            backbone=backbone,
            critic=critic,
            n_quantiles=n_quantiles,
            top_quantiles_to_drop_per_net=top_quantiles_to_drop_per_net,
        )
        self.refinement = make_refinement(
            refiner,
            refiner_kwargs,
            refiner_steps,
            n_particles,
            initial_particles,
            precondition,
            trust_region,
            box,
            tolerance,
            deterministic_particles,
        )
        self._head_kwargs = checked_head_kwargs(refiner, self.refinement.refiner, head_kwargs)
        self.energy = make_energy(ENERGIES, energy, energy_kwargs)
        if getattr(self.energy, "needs_potential", False) and not self.has_potential:
            raise ValueError(f"energy={energy!r} needs a potential, which the policies of PGAC have; use energy='q'")
        check_energy_is_asked(refiner, self.refinement, self.energy)
        if use_sde and not self.refinement.is_identity:
            raise ValueError(f"use_sde=True keeps its noise for several steps and needs refiner='none', got {refiner!r}")
        self._quantile_kwargs = quantile_kwargs(critic, n_quantiles, top_quantiles_to_drop_per_net)
        self.backbone = backbone
        self._refines = True
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=net_arch,
            activation_fn=default_activation(backbone) if activation_fn is None else find_activation(activation_fn),
            use_sde=use_sde,
            log_std_init=log_std_init,
            use_expln=use_expln,
            clip_mean=clip_mean,
            features_extractor_class=features_extractor_class or self.default_features_extractor_class,
            features_extractor_kwargs=features_extractor_kwargs,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            n_critics=n_critics,
            share_features_extractor=share_features_extractor,
        )
        _check_networks(self)
        # What the energy is divided by: SAC's entropy coefficient, which the algorithm keeps up to date
        self.register_buffer("temperature", th.ones(()))

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        # SB3's own policy forgets the first one
        return data | dict(share_features_extractor=self.share_features_extractor) | self._own_parameters

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> BackboneActor:
        """
        :param features_extractor: one to share, or ``None`` for a new one
        :return: the Gaussian actor
        """
        actor_kwargs = self._update_features_extractor(self.actor_kwargs, features_extractor)
        return BackboneActor(**actor_kwargs, backbone=self.backbone).to(self.device)

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> EnsembleCritic:
        """
        :param features_extractor: one to share, or ``None`` for a new one
        :return: the critics
        """
        critic_kwargs = self._update_features_extractor(self.critic_kwargs, features_extractor)
        critic_class = EnsembleCritic if self._quantile_kwargs is None else QuantileCritic
        critic_kwargs |= self._quantile_kwargs or {}
        return critic_class(**critic_kwargs, backbone=self.backbone).to(self.device)

    def obs_to_tensor(self, observation: np.ndarray | dict[str, np.ndarray]) -> tuple[PyTorchObs, bool]:
        """
        As in SB3, and refuses NaN and infinity.

        :param observation: the input observation
        :return: The observation as PyTorch tensor
            and whether the observation is vectorized or not
        :raises ValueError: if the observation is not finite
        """
        obs_tensor, vectorized = super().obs_to_tensor(as_native(observation))
        for tensor in obs_tensor.values() if isinstance(obs_tensor, dict) else (obs_tensor,):
            if tensor.is_floating_point() and not th.isfinite(tensor.float()).all():  # networks see single precision
                raise ValueError("the observation must be finite, got one with NaN or infinity; check the environment")
        return obs_tensor, vectorized

    def update_normalization(self, obs: PyTorchObs) -> None:
        """
        Show observations to the running statistics of actor and critic, where the backbone has them.

        :param obs: ``B`` observations
        """
        self.actor.update_normalization(obs)
        self.critic.update_normalization(obs)

    def networks(self) -> Networks:
        """
        :return: what energies are made of
        """
        return Networks(critic=self.critic)

    def energy_fn(self, obs: PyTorchObs) -> EnergyFn:
        """
        :param obs: ``B`` observations, which are encoded once
        :return: ``(B, N, A) -> (B, N)``: the energy of actions scaled to [-1, 1], temperature not included
        """
        if not self._energy_is_checked:
            self.check_energy()
        networks = self.networks()
        if self.refinement.tolerance is None:
            return self.energy.bind(networks, obs)
        return bind_sliceable(self.energy, networks, obs)

    def refine(
        self,
        obs: PyTorchObs,
        deterministic: bool = False,
        base: Gaussian | None = None,
        energy: EnergyFn | None = None,
        generator: th.Generator | None = None,
        infos: list[RefinerInfo] | None = None,
        plans: Plans | None = None,
        n_particles: int | None = None,
    ) -> th.Tensor:
        """
        Refined actions, before the squash.

        :param obs: ``B`` observations
        :param deterministic: the lowest energy that a noise-free descent finds, in place of a draw
        :param base: the Gaussian at these observations, if it is known already
        :param energy: what :meth:`energy_fn` gives for these observations, if it is known already
        :param generator: source of the noise (``None``: torch's global one)
        :param infos: a list to which one ``RefinerInfo`` a step is appended
        :param plans: with ``mppi`` and ``warm_start=True``, where to start from and where to write the plans
        :param n_particles: draw chains from no more proposals than these (``None``: from all)
        :return: ``(B, A)``; ``tanh`` of it are the actions scaled to [-1, 1]
        """
        if th.jit.is_tracing() or th.compiler.is_exporting():
            raise RuntimeError(
                "a refined policy needs gradients and cannot be exported; export policy.actor or use refiner='none'"
            )
        with th.no_grad():
            base = self.start_base(obs, base)
            if energy is None:  # a flow draws without one, and binding it encodes the observations
                unseen = is_flow(self.refinement.refiner) and not deterministic and infos is None
                energy = zero_energy if unseen else self.energy_fn(obs)
            head = self.bound_head(obs)
            if deterministic:
                if head.prefix_energy is not None:  # as the energy itself: without the temperature
                    head = head._replace(prefix_energy=tempered(head.prefix_energy, 1.0 / self.temperature))
                return self.refinement.thinned(n_particles).best(base, energy, infos, plans, head)
            refinement = self.refinement.thinned(n_particles)
            if self.compiled_sample is not None and generator is None and plans is None:
                return self.compiled_sample(refinement, base, energy, self.temperature, infos)
            is_finite = type(self.energy) in FINITE  # on the box, as long as the networks' parameters are
            return refinement.sample(base, energy, self.temperature, generator, infos, plans, head, is_finite)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        if len(next(iter(observation.values())) if isinstance(observation, dict) else observation) == 0:
            return th.zeros((0, get_action_dim(self.action_space)), device=self.device)
        if self.refinement.is_identity or not self._refines:
            actions = self.actor(observation, deterministic)
            # torch's distributions look at their parameters, but not after torch.compile or with python -O
            if not (th.jit.is_tracing() or th.compiler.is_exporting() or bool(th.isfinite(actions).all())):
                raise NonFiniteError("the action is NaN or infinity", "a lower learning_rate or backbone='layer_norm'")
            return actions
        return th.tanh(self.refine(observation, deterministic, plans=self._plans))


def _check_networks(policy: RefinedPolicy) -> None:
    # A subclass may make its own, which have to know what SB3's do not: encode once, evaluate many actions
    for make, network, known in (
        ("make_actor", policy.actor, BackboneActor),
        ("make_critic", policy.critic, EnsembleCritic),
    ):
        if not isinstance(network, known):
            raise TypeError(
                f"{make} of {type(policy).__name__} must return a {known.__name__} or a subclass of it, "
                f"got {type(network).__name__} of {type(network).__module__}"
            )
