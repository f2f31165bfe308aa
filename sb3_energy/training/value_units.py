"""What a model's critics learn in units of: the scale of the return, which follows the returns."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch as th

from sb3_energy.deferred import NonFiniteError
from sb3_energy.networks import ScaledValues, rescale, scaled_heads, set_scale
from sb3_energy.training.arguments import SCALED
from sb3_energy.training.return_scale import ReturnScale

SMALLEST_CHANGE = 0.01
"""Of the scale, in parts of it. Smaller ones are left for later: they do not matter, and cost a pass over all parameters."""

FIRST_ENT_COEF = 0.01
"""Of a learned entropy coefficient, in units of the scale. SAC's first one, 1 in the units of the reward, is about that where
returns are of the order of 100; 1 unit of the scale is as much as all returns together, and falls for thousands of updates."""

MOMENTS = dict(
    exp_avg=1, exp_avg_sq=2, max_exp_avg_sq=2, exp_inf=1, momentum_buffer=1, square_avg=2, grad_avg=1, sum=2
)  # fmt: skip
"""Statistics of gradients that torch's optimizers keep, and the power of the gradient that each is a mean of."""


class Valued(NamedTuple):
    """
    The parts of a model that are in units of values.

    :param critics: online and target networks, the policy's critic first
    :param followers: optimizers of losses that are linear in values, as the actor's is
    :param derived: tensors in units of values
    """

    critics: Sequence[ScaledValues]
    followers: Sequence[th.optim.Optimizer]
    derived: Sequence[th.Tensor] = ()


class ValueUnits:
    """
    Sets the scale ``σ`` of a model's critics at the beginning of each call of ``train()``.

    * The first scale is declared: networks that have not learned are what they are, in units of it. So what is learned does
      not depend on the scale of rewards.
    * Later ones preserve values (:func:`sb3_energy.networks.rescale`), and what optimizers know of gradients is converted: in
      new units a head's are multiplied by ``ρ = σ_old / σ_new``, and those of the layers below, to which the head hands them
      down, by ``ρ²``. So a change of units changes neither the direction nor the size of the next step.
    * A fixed ``ent_coef`` is the least scale: the return that a critic learns has entropies in it. With a learned one, or
      without, the scale stays open while all rewards are 0, and the first other one is declared, too: values then consist of
      entropies, which are in units of ``σ``.

    :param model: an off-policy algorithm whose critic has a scale
    """

    def __init__(self, model: Any):
        self.returns = ReturnScale(model.n_envs)
        self._is_open = True  # whether other units may still be declared
        self._rewarded: th.Tensor | None = None
        if model.ent_coef == "auto" and model.log_ent_coef is not None:
            with th.no_grad():
                model.log_ent_coef.copy_(th.log(th.full_like(model.log_ent_coef, FIRST_ENT_COEF)))
        self.sigma = float(np.float32(self.returns.sigma(_least_scale(model)) or 1.0))  # as it is stored
        valued = model.valued()
        _change(valued, list(valued.critics), self.sigma, 1.0 / self.sigma, is_set=False)  # of networks that are new

    def note(self, rewards: th.Tensor) -> None:
        """
        Record what is learned from, for as long as the scale is open.

        :param rewards: ``(B, 1)`` of a batch
        """
        if self._is_open:
            found = (rewards != 0.0).any()
            self._rewarded = found if self._rewarded is None else self._rewarded | found

    def begin(self, model: Any) -> None:
        """
        Set the scale of all returns so far.

        :param model: an off-policy algorithm, before its updates
        :raises FloatingPointError: if the scale of its critic is no number above 0
        :raises TypeError: if a network cannot be rescaled by now
        """
        scale = model.critic.value_scale
        before, is_set = scale.sigma.item(), scale.is_set.item()
        if not 0.0 < before < math.inf:
            raise NonFiniteError(f"the critic's value_scale is {before}", "a checkpoint from before")
        self._is_open, self.sigma = not is_set, before
        self._observe_buffer(model)
        if self._rewarded is not None:
            self.returns.learned_from_rewards |= bool(self._rewarded)
            self._rewarded = None
        wanted = self.returns.sigma(_least_scale(model))
        if wanted == 0.0 or (is_set and abs(wanted / before - 1.0) < SMALLEST_CHANGE):
            return
        has_learned = model._n_updates > 0
        is_declared = not is_set and not (has_learned and self.returns.learned_from_rewards)
        valued = model.valued()
        moves = [critic for critic in valued.critics if is_declared or not critic.preserves_values]
        if not is_set and ((has_learned and not moves) or (not has_learned and _is_of_the_reward(model.ent_coef))):
            _preserve_ent_coef(model, wanted / before)
        _change(valued, moves, wanted, before / wanted)
        self._is_open, self.sigma = False, float(np.float32(wanted))

    def _observe_buffer(self, model: Any) -> None:
        """See what others have put into the replay buffer: it holds more than the environments have paid."""
        buffer = model.replay_buffer
        rewards, dones = (getattr(buffer, name, None) for name in ("rewards", "dones"))
        if rewards is None or dones is None or buffer.size() * buffer.n_envs <= self.returns.count:
            return
        ages = (np.arange(buffer.size()) + (buffer.pos if buffer.full else 0)) % buffer.buffer_size
        rewards, dones = (th.as_tensor(part).cpu().numpy()[ages] for part in (rewards, dones))
        env = model._vec_normalize_env
        self.returns.observe_episodes(rewards if env is None else env.normalize_reward(rewards), dones, model.gamma)


def _least_scale(model: Any) -> float:
    """A fixed entropy coefficient, else 0."""
    found = 0.0 if model.log_ent_coef is not None else float(model.ent_coef_tensor)
    return found if 0.0 < found < math.inf else 0.0


def _is_of_the_reward(ent_coef: Any) -> bool:
    """Whether the start of a learned coefficient is a number in units of the reward, as ``"auto_0.1"`` is."""
    return "_" in str(ent_coef) and not str(ent_coef).endswith(SCALED)


@th.no_grad()
def _preserve_ent_coef(model: Any, factor: float) -> None:
    """Keep a learned coefficient what it is in the units of the reward."""
    if model.log_ent_coef is not None:
        model.log_ent_coef.sub_(math.log(factor))


@th.no_grad()
def _change(valued: Valued, moves: list[ScaledValues], sigma: float, ratio: float, is_set: bool = True) -> None:
    """Set the scale: values of critics that move are multiplied by ``1 / ratio``, the others' are preserved."""
    kept = [critic for critic in valued.critics if not any(critic is one for one in moves)]
    heads = {id(parameter) for head in scaled_heads(kept) for parameter in head.parameters()}
    rescale(kept, sigma)
    set_scale(moves, sigma, is_set)
    for critic in kept:
        optimizer: Any = getattr(critic, "optimizer", None)  # a target network has none
        if optimizer is not None:
            convert_moments(optimizer, ratio, heads)
    if any(critic is valued.critics[0] for critic in moves):
        for number in valued.derived:
            number.div_(ratio)
    else:
        for optimizer in valued.followers:
            convert_moments(optimizer, ratio)


@th.no_grad()
def convert_moments(optimizer: th.optim.Optimizer, ratio: float, heads: Iterable[int] | None = None) -> None:
    """
    Convert an optimizer's statistics of gradients to other units.

    :param optimizer: torch's, or another one; statistics that are not known are left
    :param ratio: by which gradients are multiplied
    :param heads: identities of the parameters of which this is true, and that hand gradients down to the others, which are
        multiplied by ``ratio²`` then (``None``: all are multiplied by ``ratio``)
    """
    for parameter, state in optimizer.state.items():
        factor = ratio if heads is None or id(parameter) in heads else ratio**2
        for name, power in MOMENTS.items():
            if isinstance(state.get(name), th.Tensor):
                state[name].mul_(factor**power)
