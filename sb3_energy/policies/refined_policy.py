"""A Gaussian policy whose actions are refined by an energy."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.sac.policies import SACPolicy
from torch import nn

from sb3_energy.checks import check_integer
from sb3_energy.conversion import as_native
from sb3_energy.deferred import NonFiniteError
from sb3_energy.energies import is_finite_energy, tempered
from sb3_energy.keywords import plain_arguments, takes_arguments
from sb3_energy.networks import backbone_beside, default_activation, find_activation, running_statistics
from sb3_energy.policies.actor import BackboneActor
from sb3_energy.policies.arguments import PolicyArguments, check_sb3_arguments
from sb3_energy.policies.categorical_critic import CategoricalCritic
from sb3_energy.policies.causes import policy_cause
from sb3_energy.policies.critics import EnsembleCritic
from sb3_energy.policies.fast_predict.conditions import known_policy
from sb3_energy.policies.fast_predict.fast_predict import FastPredict
from sb3_energy.policies.heads import HEADS, LearnedHead
from sb3_energy.policies.own_energy import check_policy_energy
from sb3_energy.policies.policy_files import PersistentModel
from sb3_energy.policies.quantile_critic import QuantileCritic
from sb3_energy.refinement.bases import Gaussian, GaussianOfNoise, NoiseFn
from sb3_energy.refinement.proposals import draw_proposals, draws_unseen
from sb3_energy.refinement.sliceable_energy import bind_sliceable
from sb3_energy.refinement.warm_start import Plans, PredictState
from sb3_energy.steps import zero_energy
from sb3_energy.types import Chains, EnergyFn, Head, Networks, RefinerInfo

CRITICS: dict[str, type[EnsembleCritic]] = {
    "scalar": EnsembleCritic,
    "quantile": QuantileCritic,
    "categorical": CategoricalCritic,
}
"""By the argument ``critic``."""


@known_policy
@takes_arguments(PolicyArguments)
class RefinedPolicy(PersistentModel, SACPolicy):
    """
    SB3's SAC policy, refined: ``p(a|s) ∝ exp(-E(s, a) / temperature)``, started from the Gaussian actor.

    Everything that ``predict`` needs is here, the temperature included, so that a policy which is saved and loaded
    without its algorithm acts the same.

    :param observation_space: Observation space
    :param action_space: Action space
    :param lr_schedule: Learning rate schedule (could be constant)
    :param net_arch: The specification of the policy and value networks.
    :param activation_fn: Activation function, a class of ``torch.nn`` or its name (``None``: the backbone's own, SiLU for
        the actor and ReLU for critics with ``"layer_norm"``, ReLU otherwise)
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
    :raises ValueError: if a name or a number is not one of those that are accepted
    :raises TypeError: if something has the wrong type
    """

    default_features_extractor_class: ClassVar[type[BaseFeaturesExtractor]] = FlattenExtractor
    arguments_class: ClassVar[type[PolicyArguments]]
    actor: BackboneActor
    critic: EnsembleCritic
    critic_target: EnsembleCritic
    temperature: th.Tensor
    head: LearnedHead | None
    """The network that the refiner learns beside the energy."""

    has_batch_norm: bool
    """
    Whether the backbone normalises batches, so that its statistics are this package's to keep. Layers of torch's class, such
    as a user's features extractor has, take theirs from every batch in training mode, as in SB3.
    """

    has_potential: ClassVar[bool] = False

    starts_normal: bool = False
    """Whether particles start from a standard Gaussian, pre-tanh, in place of the actor's."""

    fast_predict: bool = True
    """Set to ``False``, on the policy or the class, to predict by torch alone."""

    noise: NoiseFn | None = None
    """Source of the noise of the Gaussian's draws, while an exploration replaces it."""

    compiled_sample: Callable[..., th.Tensor] | None = None
    """Called in place of :meth:`Refinement.sample`, where an algorithm has compiled it."""

    _energy_is_checked: bool = False

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
        **others: Any,
    ):
        sb3: dict[str, Any] = dict(
            net_arch=net_arch,
            activation_fn=activation_fn,
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
        check_sb3_arguments(dict(observation_space=observation_space, action_space=action_space) | sb3)
        self.arguments = arguments = self.arguments_class(**others)
        self.refinement = arguments.make_refinement()
        self.energy = arguments.make_energy()
        if getattr(self.energy, "needs_potential", False) and not self.has_potential:
            raise ValueError(f"energy={arguments.energy!r} needs a potential, which the policies of PGAC have; use energy='q'")
        if use_sde and not self.refinement.is_identity:
            raise ValueError(
                f"use_sde=True keeps its noise for several steps and needs refiner='none', got {arguments.refiner!r}"
            )
        if use_sde and arguments.log_std_range is not None:
            raise ValueError(f"log_std_range needs use_sde=False, which has no such layer, got {arguments.log_std_range!r}")
        self._critic_settings = arguments.critic_settings()
        self.backbone = arguments.backbone
        self._refines = True
        self._fast = FastPredict()
        self._plans: Plans | None = None  # set during a predict of torch's that hands plans on
        self._activation_fn = activation_fn if activation_fn is None else find_activation(activation_fn)
        sb3["activation_fn"] = self._activation_fn or default_activation(self.backbone)
        super().__init__(observation_space, action_space, lr_schedule, **sb3)
        _check_networks(self)
        self.has_batch_norm = self.actor.has_batch_norm or self.critic.has_batch_norm
        # The energy is divided by SAC's entropy coefficient, which the algorithm keeps up to date
        self.register_buffer("temperature", th.ones(()))

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        # SB3's own policy forgets the first one; without the second, critics have another one than the actor
        ours = dict(share_features_extractor=self.share_features_extractor, activation_fn=self._activation_fn)
        return data | ours | vars(self.arguments)

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> BackboneActor:
        """
        Construct the Gaussian actor.

        :param features_extractor: one to share, or ``None`` for a new one
        :return: the Gaussian actor
        """
        actor_kwargs = self._update_features_extractor(self.actor_kwargs, features_extractor)
        actor_kwargs |= dict(backbone=self.backbone, log_std_range=self.arguments.log_std_range)
        return BackboneActor(**actor_kwargs).to(self.device)

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> EnsembleCritic:
        """
        Construct the ensemble of critics, scalar, quantile or categorical.

        :param features_extractor: one to share, or ``None`` for a new one
        :return: the critics
        """
        critic_kwargs = self._update_features_extractor(self.critic_kwargs, features_extractor)
        critic_kwargs |= self._critic_settings | dict(backbone=self.backbone, value_scale=self.arguments.scale_of_values)
        return CRITICS[self.arguments.critic](**critic_kwargs).to(self.device)

    def make_head(self) -> LearnedHead | None:
        """
        Construct the network that the refiner learns beside the energy.

        :return: the head, or ``None`` for a refiner that learns nothing
        """
        name = getattr(self.refinement.refiner, "head", None)
        if name is None:
            return None
        settings = self.arguments.head_settings(name)
        backbone = backbone_beside(self.backbone)
        defaults: dict[str, Any] = dict(backbone=backbone, net_arch=self.actor.net_arch, activation_fn=nn.SiLU)
        head_class: Any = HEADS[name]
        head = head_class(self.actor.features_dim, get_action_dim(self.action_space), **(defaults | settings))
        if settings and not any(True for _ in head.parameters()):
            raise ValueError(f"head_kwargs={settings!r} needs actions of more than one coordinate, got one, without prefix")
        return head.to(self.device)

    def _build(self, lr_schedule: Schedule) -> None:
        self.critic_kwargs["activation_fn"] = self._activation_fn or default_activation(self.backbone, of_critic=True)
        super()._build(lr_schedule)
        self.head = head = self.make_head()
        if isinstance(head, nn.Module):
            self._add_optimizer(head, lr_schedule)

    def _add_optimizer(self, network: nn.Module, lr_schedule: Schedule) -> None:
        """Give a network an optimiser of its own, unless it has no parameters."""
        optimizer_class: Any = self.optimizer_class
        parameters = list(network.parameters())
        if parameters:
            network.optimizer = optimizer_class(parameters, lr=lr_schedule(1), **self.optimizer_kwargs)

    def obs_to_tensor(self, observation: np.ndarray | dict[str, np.ndarray]) -> tuple[PyTorchObs, bool]:
        """
        As in SB3, but raises for NaN and infinity.

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
        Update the running statistics of actor and critic, where the backbone has them.

        :param obs: ``B`` observations
        """
        self.actor.update_normalization(obs)
        self.critic.update_normalization(obs)

    def networks(self) -> Networks:
        """
        The networks that energies are made of.

        :return: the critic
        """
        return Networks(critic=self.critic)

    def base(self, obs: PyTorchObs) -> Gaussian:
        """
        Base distribution: the actor's diagonal Gaussian, by running statistics where its backbone normalises batches.

        :param obs: ``B`` observations
        :return: the Gaussian actor's mean and standard deviation ``(B, A)``, pre-tanh
        """
        with running_statistics(self.actor.latent_pi) if self.actor.has_batch_norm else nullcontext():
            mean, log_std, latent = self.actor.get_action_dist_params(obs)
        if self.actor.use_sde:  # log_std is per feature: the actions' standard deviation follows from both
            normal = self.actor.action_dist.proba_distribution(mean, log_std, **latent).distribution
            return Gaussian(normal.mean, normal.stddev)
        return Gaussian(mean, log_std.exp())

    def start_base(self, obs: PyTorchObs, base: Gaussian | None = None) -> Gaussian:
        """
        Initial distribution of the particles.

        :param obs: ``B`` observations
        :param base: the Gaussian actor at these observations, if known
        :return: the Gaussian that particles start from: the actor's, or a standard one where ``starts_normal``
        """
        base = self.base(obs) if base is None else base
        return Gaussian(th.zeros_like(base.mean), th.ones_like(base.std)) if self.starts_normal else base

    def energy_fn(self, obs: PyTorchObs) -> EnergyFn:
        """
        Condition the energy on observations.

        :param obs: ``B`` observations, which are encoded once
        :return: ``(B, N, A) -> (B, N)``: the energy of actions scaled to [-1, 1], without the temperature
        """
        if not self._energy_is_checked:
            self.check_energy()
        networks = self.networks()
        if self.refinement.tolerance is None:
            return self.energy.bind(networks, obs)
        return bind_sliceable(self.energy, networks, obs)

    def check_energy(self, needs_gradient: bool | None = None) -> None:
        """
        Try an energy of the user's own, see :func:`sb3_energy.policies.own_energy.check_policy_energy`. :meth:`energy_fn`
        does so at its first call.

        :param needs_gradient: whether a gradient is needed (``None``: if the refiner follows it)
        :raises ValueError: if a shape or a device is wrong, there is no gradient, or no value is finite
        :raises TypeError: if the energy is no tensor of floats
        """
        check_policy_energy(self, needs_gradient)
        self._energy_is_checked = True

    def features(self, obs: PyTorchObs) -> th.Tensor:
        """
        The actor's features, which learned heads see too. They learn from the actor's loss only.

        :param obs: ``B`` observations
        :return: ``(B, F)``, without a graph
        """
        with th.no_grad():
            return self.actor.extract_features(obs, self.actor.features_extractor)

    def bound_head(self, obs: PyTorchObs) -> Head:
        """
        Condition the learned head on observations.

        :param obs: ``B`` observations
        :return: the learned head at these observations, empty where the refiner learns nothing
        """
        return Head() if self.head is None else self.head.bind(self.features(obs))

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
        Refined actions, pre-tanh.

        :param obs: ``B`` observations
        :param deterministic: whether to return the lowest energy that a descent without noise finds, in place of a draw
        :param base: the Gaussian actor at these observations, if known
        :param energy: :meth:`energy_fn` of these observations, if known
        :param generator: source of the noise (``None``: torch's global one)
        :param infos: a list to which one ``RefinerInfo`` a step is appended
        :param plans: with ``mppi`` and ``warm_start=True``, where to start from and where to write the plans
        :param n_particles: draw chains from at most this many proposals (``None``: from all)
        :return: ``(B, A)``; their ``tanh`` are the actions scaled to [-1, 1]
        :raises RuntimeError: while the policy is traced or exported
        """
        if th.jit.is_tracing() or th.compiler.is_exporting():
            raise RuntimeError(
                "a refined policy needs gradients and cannot be exported; export policy.actor or use refiner='none'"
            )
        with th.no_grad():
            base = self.start_base(obs, base)
            if self.noise is not None and not deterministic:
                base = GaussianOfNoise.of(base, self.noise)
            if energy is None:  # a flow draws without one, and binding it encodes the observations
                unseen = draws_unseen(self.refinement.refiner) and not deterministic and infos is None
                energy = zero_energy if unseen else self.energy_fn(obs)
            head = self.bound_head(obs)
            refinement = self.refinement.thinned(n_particles)
            if deterministic:
                head = head.through(partial(tempered, temperature=1.0 / self.temperature))  # as the energy: without it
                return refinement.best(base, energy, infos=infos, plans=plans, head=head)
            if self.compiled_sample is not None and generator is None and plans is None and self.noise is None:
                return self.compiled_sample(refinement, base, energy, self.temperature, infos)
            is_finite = is_finite_energy(self.energy)  # on the box, as long as the networks' parameters are
            return refinement.sample(
                base, energy, self.temperature, generator=generator, infos=infos, plans=plans, head=head, is_finite=is_finite
            )

    def simulate(
        self,
        obs: PyTorchObs,
        n_chains: int,
        base: Gaussian | None = None,
        energy: EnergyFn | None = None,
        n_particles: int | None = None,
    ) -> Chains:
        """
        Independent chains of the refinement before their first step, for estimators of its entropy.

        :param obs: ``B`` observations
        :param n_chains: how many for each; a refiner that compares particles has its ``n_particles`` instead
        :param base: the Gaussian actor at these observations, if known
        :param energy: :meth:`energy_fn` of these observations, if known
        :param n_particles: draw chains from at most this many proposals (``None``: from all)
        :return: the chains
        """
        with th.no_grad():
            base = self.start_base(obs, base)
            energy = self.energy_fn(obs) if energy is None else energy
            refinement = self.refinement.thinned(n_particles)
            return refinement.simulate(base, energy, self.temperature, n_chains=n_chains, head=self.bound_head(obs))

    def sample_actions(self, obs: Any, n: int) -> th.Tensor:
        """
        Several refined actions for each observation, for diagnostics such as
        :func:`sb3_energy.entropy.von_neumann_entropy`.

        :param obs: ``B`` observations as tensors, or one or several as ``predict`` takes them
        :param n: how many for each
        :return: ``(B, n, A)`` independent draws, scaled to [-1, 1]
        :raises ValueError: if ``n`` is below 1, or an observation is not finite
        :raises TypeError: if ``n`` is no integer
        """
        n = check_integer("n", n, minimum=1)
        batch = obs if _is_batch_of_tensors(obs, self.observation_space) else self.obs_to_tensor(obs)[0]
        if _n_observations(batch) == 0:
            return th.zeros((0, n, get_action_dim(self.action_space)), device=self.device)
        with th.no_grad():
            if self.refinement.is_identity:
                return th.tanh(draw_proposals(self.base(batch), n, 0.0).particles)
        if isinstance(batch, dict):
            repeated: PyTorchObs = {key: part.repeat_interleave(n, 0) for key, part in batch.items()}
        else:
            repeated = batch.repeat_interleave(n, 0)
        return th.tanh(self.refine(repeated)).unflatten(0, (-1, n))

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        if _n_observations(observation) == 0:
            return th.zeros((0, get_action_dim(self.action_space)), device=self.device)
        if self.refinement.is_identity or not self._refines:
            actions = self._gaussian_actions(observation, deterministic)
            # torch's distributions check their parameters, but not after torch.compile or with python -O
            if not (th.jit.is_tracing() or th.compiler.is_exporting() or bool(th.isfinite(actions).all())):
                raise NonFiniteError("the action is NaN or infinity", "a lower learning_rate or backbone='layer_norm'")
            return actions
        return th.tanh(self.refine(observation, deterministic, plans=self._plans))

    def _gaussian_actions(self, obs: PyTorchObs, deterministic: bool) -> th.Tensor:
        """Those of SB3's actor, or by the noise of an exploration."""
        if self.noise is None or deterministic:
            return self.actor(obs, deterministic)
        return th.tanh(GaussianOfNoise.of(self.base(obs), self.noise).sample(1).squeeze(1))

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: PredictState = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, PredictState]:
        """
        As in SB3. With ``mppi`` and ``warm_start=True`` the next state holds the means of the plans, and plans that are
        passed in are among the starts of the next ones.

        :param observation: the input observation
        :param state: the state that the last call returned (``None``: there was none)
        :param episode_start: where an episode begins, so that its plan is forgotten (``None``: nowhere)
        :param deterministic: Whether or not to return deterministic actions.
        :return: the model's action and the next state: a tuple of one array ``(n_envs, A)``, pre-tanh, or the state that was
            passed where no plans are kept
        :raises ValueError: if the observation is not finite or has another shape than those of the space, or the state or
            ``episode_start`` do not fit to it
        :raises FloatingPointError: if an energy is not finite
        """
        plans = Plans(state, episode_start) if self.refinement.keeps_plans and self._refines else None
        try:
            actions = self._fast.actions(self, observation, deterministic, plans)
            if actions is None:
                self._plans = plans
                actions, _ = super().predict(observation, state, episode_start, deterministic)
        except NonFiniteError as error:
            cause = policy_cause(self, "energy" in error.what)
            if cause is None:
                raise
            raise error.because(*cause) from error
        finally:
            self._plans = None
        return actions, state if plans is None else plans.state

    @contextmanager
    def torch_predict(self) -> Iterator[None]:
        """Within this context ``predict`` is SB3's, bit by bit."""
        before, self.fast_predict = self.fast_predict, False
        try:
            yield
        finally:
            self.fast_predict = before

    @contextmanager
    def unrefined(self) -> Iterator[None]:
        """Within this context ``predict`` gives the Gaussian actor's own actions."""
        before, self._refines = self._refines, False
        try:
            yield
        finally:
            self._refines = before

    def q_values(self, observation: np.ndarray | dict[str, np.ndarray], scaled_actions: np.ndarray) -> np.ndarray:
        """
        The critic's values that the actor climbs.

        :param observation: ``B`` observations, as for ``predict``
        :param scaled_actions: ``(B, *A)``, scaled to [-1, 1]
        :return: ``(B,)``
        :raises ValueError: if the observation is not finite
        """
        self.set_training_mode(False)  # as in predict
        actions = np.array(as_native(scaled_actions), np.float32, order="C")
        actions = actions.reshape(len(actions), get_action_dim(self.action_space))
        values = self._fast.q_values(self, observation, actions)
        if values is not None:
            return values
        obs_tensor, _ = self.obs_to_tensor(observation)
        with th.no_grad():
            tensor = self.critic.policy_values(obs_tensor, th.as_tensor(actions, device=self.device))
        return tensor.squeeze(1).cpu().numpy()

    def set_training_mode(self, mode: bool) -> None:
        """
        As in SB3, but nothing is done where the mode is right already: SB3 visits all modules at each prediction.

        :param mode: if true, set to training mode, else set to evaluation mode
        """
        if not self.training == mode == self.actor.training == self.critic.training:
            super().set_training_mode(mode)


def _n_observations(obs: PyTorchObs) -> int:
    return len(next(iter(obs.values())) if isinstance(obs, dict) else obs)


def _is_batch_of_tensors(obs: Any, space: Any) -> bool:
    """Whether these are tensors with an axis of observations, which need no conversion."""
    parts = obs if isinstance(space, spaces.Dict) else {"": obs}
    whole: Any = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    return all(isinstance(part, th.Tensor) and part.dim() > len(whole[key].shape) for key, part in parts.items())


def _check_networks(policy: RefinedPolicy) -> None:
    # A subclass may make its own. SB3's do not encode observations once and evaluate many actions
    for make, network, known in (
        ("make_actor", policy.actor, BackboneActor),
        ("make_critic", policy.critic, EnsembleCritic),
    ):
        if not isinstance(network, known):
            raise TypeError(
                f"{make} of {type(policy).__name__} must return a {known.__name__} or a subclass of it, "
                f"got {type(network).__name__} of {type(network).__module__}"
            )
    if policy.arguments.scale_of_values == "auto" and policy.critic.value_scale is None:
        raise ValueError(
            f"make_critic of {type(policy).__name__} must hand value_scale='auto' on to its critic, "
            "got one without; use value_scale='none'"
        )
