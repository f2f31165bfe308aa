"""IBC: an energy learned from data, and the proposal and energies of prefixes that may learn beside it."""

from functools import partial
from typing import Any, ClassVar, cast

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_energy.checks import check_choice
from sb3_energy.keywords import plain_arguments
from sb3_energy.networks import SMOOTH_ACTIVATIONS, MixtureDensityNetwork
from sb3_energy.offline.fit import descend
from sb3_energy.offline.ibc.energy_training import LOSSES, EnergyTraining, check_training
from sb3_energy.offline.ibc.negatives import (
    Negatives,
    draw_uniform,
    moved_by_chain,
    proposed_negatives,
    uniform_negatives,
)
from sb3_energy.offline.ibc.objectives import Examples, prefix_losses
from sb3_energy.offline.ibc.policies import IBCCnnPolicy, IBCMultiInputPolicy, IBCPolicy
from sb3_energy.offline.offline_algorithm import Losses, OfflineAlgorithm
from sb3_energy.offline.offline_dataset import Batch
from sb3_energy.refinement.boxes import ReflectingBox
from sb3_energy.refiners import AnnealedGradient, Langevin
from sb3_energy.refiners.annealed_gradient import warn_if_out_of_reach
from sb3_energy.registry import resolve
from sb3_energy.types import EnergyFn


class IBC(OfflineAlgorithm):
    """
    Implicit behavioral cloning (Florence et al. 2021): a network learns an energy ``E(s, a)`` that is low at the actions of
    the data, and the policy acts where it is lowest, or draws from ``exp(-E / T)``. Unlike a regression it can jump where the
    data do and has as many answers as they have.

    Losses differ in what becomes of ``exp(-E / T)`` at their optimum, up to a factor of the observation:

    * ``"info_nce"``: the law of the data over that of the counter-examples; draws are right with uniform ones only
    * ``"r_nce"``: the law of the data, whatever the counter-examples are; these are drawn from a proposal that learns beside
      the energy (Singh, Tu and Sindhwani 2023)
    * ``"nce"``: the same, normalised (Gutmann and Hyvärinen 2010)
    * ``"contrastive_divergence"``: the same, if the chains of the counter-examples are long enough
    * ``"denoising_score_matching"``: that of the data with noise, near them; ``"sliced_score_matching"``: that of the data,
      near them. Nothing is learned far from data, and nothing of the shares of modes that are apart
    * ``"ebt"``: no density. Descents of the policy's refiner end at the mean action of the data, as a regression's output does

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy)
    :param dataset: as in :class:`~sb3_energy.offline.offline_algorithm.OfflineAlgorithm`
    :param env: The environment to evaluate in (if registered in Gym, can be str); training does not step it
    :param learning_rate: learning rate for the optimizer,
        it can be a function of the current progress remaining (from 1 to 0)
    :param batch_size: Minibatch size for each gradient update
    :param loss: what the energy learns by, see above
    :param energy_training_kwargs: Keyword arguments of :class:`~sb3_energy.offline.ibc.EnergyTraining`: counter-examples,
        gradient penalty
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation, see
        :class:`~sb3_energy.offline.ibc.IBCPolicy`
    :param verbose: Verbosity level: 0 for no output, 1 for info messages (such as device or wrappers used), 2 for
        debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run.
        Setting it to auto, the code will be run on the GPU if possible.
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: if a number, the data or the environment are not accepted, or do not go together
    :raises TypeError: if an argument has the wrong type
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": IBCPolicy,
        "CnnPolicy": IBCCnnPolicy,
        "MultiInputPolicy": IBCMultiInputPolicy,
    }
    policy: IBCPolicy
    proposal: Any
    """The network that counter-examples are drawn from with ``negatives="proposal"``, and its ``optimizer``."""
    advice: ClassVar[str] = "a lower learning_rate, or energy_training_kwargs=dict(gradient_margin=1.0)"

    @plain_arguments
    def __init__(
        self,
        policy: str | type[IBCPolicy],
        dataset: Any = None,
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule = 1e-3,
        batch_size: int = 128,
        loss: str = "info_nce",
        energy_training_kwargs: dict[str, Any] | None = None,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        self.loss, self.energy_training_kwargs = loss, energy_training_kwargs
        others = (tensorboard_log, policy_kwargs, verbose, seed, device, _init_setup_model)
        super().__init__(policy, dataset, env, learning_rate, batch_size, *others)

    def _setup_model(self) -> None:
        check_choice("loss", self.loss, LOSSES)
        self._training = resolve({}, EnergyTraining, self.energy_training_kwargs, "energy_training")
        super()._setup_model()
        self._check_settings()
        if self._kind == "proposal":
            policy, optimizer_class = self.policy, cast(Any, self.policy.optimizer_class)
            proposal = MixtureDensityNetwork(policy.features_dim, policy.action_dim, policy.net_arch, policy.activation_fn)
            self.proposal = proposal.to(self.device)
            self.proposal.optimizer = optimizer_class(
                self.proposal.parameters(), lr=self.lr_schedule(1), **policy.optimizer_kwargs
            )

    @property
    def _kind(self) -> str | None:
        return self._training.kind_for(self.loss)

    def _check_settings(self) -> None:
        """Check the loss, its settings and the policy against each other."""
        policy, training = self.policy, self._training
        check_training(training, self.loss, policy.learns_prefixes)
        if LOSSES[self.loss].needs_smooth and policy.activation_fn not in SMOOTH_ACTIVATIONS:
            names = [smooth.__name__ for smooth in SMOOTH_ACTIVATIONS]
            raise ValueError(
                f"activation_fn must be smooth with loss={self.loss!r}, which learns by the derivative of a gradient, one of "
                f"torch.nn's {names}, got {policy.activation_fn.__name__}"
            )
        refiner: Any = policy.refinement.refiner
        if self.loss == "ebt" and not (type(refiner) is Langevin and refiner.noise_scale == 0.0):
            raise ValueError(
                "refiner must be the descent that loss='ebt' learns through, policy_kwargs=dict(refiner='langevin', "
                f"refiner_kwargs=dict(noise_scale=0.0)), got {refiner!r}"
            )
        if training.gradient_margin is not None:
            self._warn_of_reach(training.gradient_margin / policy.temperature)

    def _warn_of_reach(self, margin: float) -> None:
        if self._kind in ("chain", "both"):
            chain, n_steps = self._training.make_chain()
            if isinstance(chain, AnnealedGradient):
                warn_if_out_of_reach(chain, margin, n_steps)
        refinement = self.policy.refinement
        first = refinement.parts()[0]
        sees_actions = isinstance(refinement.box, ReflectingBox) and not refinement.precondition
        if isinstance(first.refiner, AnnealedGradient) and sees_actions:
            warn_if_out_of_reach(first.refiner, margin, first.n_steps)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_training"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, tensors = super()._get_torch_save_params()
        return [*state_dicts, *(["proposal", "proposal.optimizer"] if self._kind == "proposal" else [])], tensors

    def _optimizers(self) -> list[th.optim.Optimizer]:
        proposal = [self.proposal.optimizer] if self._kind == "proposal" else []
        return [self.policy.optimizer, *proposal]

    def _losses(self, batch: Batch) -> dict[str, th.Tensor]:
        policy, training = self.policy, self._training
        features, actions = policy.features(batch.observations), batch.actions.unsqueeze(1)
        negatives, found = self._negatives(features.detach(), actions)
        examples = Examples(policy.bind(features), actions, negatives, training, partial(policy.descents, features))
        found |= LOSSES[self.loss].objective(examples)
        if policy.learns_prefixes:
            prefixes = policy.bind_prefixes(features).prefix_energy
            assert prefixes is not None
            uniform = draw_uniform(actions, training.n_negatives, training.width)
            found["prefix_loss"] = prefix_losses(prefixes, actions, uniform)
            found["loss"] = found["loss"] + found["prefix_loss"]
        return found

    def _negatives(self, features: th.Tensor, actions: th.Tensor) -> tuple[Negatives | None, dict[str, th.Tensor]]:
        """Counter-examples, and the loss of the proposal that they are drawn from, if there is one."""
        kind, training = self._kind, self._training
        if kind is None:
            return None, {}
        if kind == "uniform":
            return uniform_negatives(actions, training.n_negatives, training.width), {}
        if kind == "proposal":
            mixture = self.proposal(features)
            numbers = training.n_negatives, training.n_uniform, training.width
            return proposed_negatives(actions, mixture, *numbers), dict(proposal_loss=-mixture.log_prob(actions).mean())
        energy: EnergyFn = self.policy.bind(features)
        starts = draw_uniform(actions, training.n_negatives, training.width)
        n_still = training.n_uniform if kind == "both" else 0
        still, moving = starts.tensor_split([n_still], dim=1)
        with th.no_grad():
            moved = moved_by_chain(energy, moving, *training.make_chain(), training.width)
        return Negatives(th.cat([still, moved], dim=1)), {}

    def _update(self, batch: Batch) -> Losses:
        losses = self._losses(batch)
        step = f"of gradient step {self._n_updates + 1}"
        descend(self.policy.optimizer, losses["loss"], f"the loss {step}", self.advice)
        if "proposal_loss" in losses:
            descend(self.proposal.optimizer, losses["proposal_loss"], f"the proposal's loss {step}", self.advice)
        return {name: value.detach() for name, value in losses.items()}
