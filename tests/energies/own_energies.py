"""Energies as a user writes them, at module level: right ones, and wrong ones of every kind."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch as th


def quadratic(observations, actions, weight=1.0):
    flat = th.cat([part.flatten(1) for part in observations.values()], 1) if isinstance(observations, dict) else observations
    return weight * (actions - 0.5 * th.tanh(flat[:, None, :1].float())).square().sum(-1)


def scalar(observations, actions):
    return actions.square().sum()


def summed_over_particles(observations, actions):
    return actions.square().sum(1)


def mean_over_particles(observations, actions):
    return actions.square().sum(-1).mean(-1)


def keeps_last(observations, actions):
    return actions.square().sum(-1, keepdim=True)


def transposed(observations, actions):
    return actions.square().sum(-1).T


def flattened(observations, actions):
    return actions.square().sum(-1).flatten()


def squeezed(observations, actions):
    return actions.square().sum(-1).squeeze()


def as_array(observations, actions):
    return actions.detach().square().sum(-1).numpy()


def as_float(observations, actions):
    return float(actions.square().sum())


def as_nothing(observations, actions):
    actions.square().sum(-1)


def as_integers(observations, actions):
    return actions.square().sum(-1).long()


def as_booleans(observations, actions):
    return actions.square().sum(-1) > 0.3


def as_complex(observations, actions):
    return th.complex(actions.sum(-1), actions.sum(-1))


def broadcast_wrong(observations, actions):
    return actions.square().sum(-1) + observations[:, 0]


def raises(observations, actions):
    raise KeyError("speed")


def centred(observations, actions):
    energies = actions.square().sum(-1)
    return energies - energies.mean(1, keepdim=True)


def detached(observations, actions):
    return actions.detach().square().sum(-1)


@th.no_grad()
def without_grad(observations, actions):
    return actions.square().sum(-1)


def through_numpy(observations, actions):
    return th.as_tensor(np.square(actions.detach().numpy()).sum(-1))


def constant(observations, actions):
    return actions.new_zeros(actions.shape[:2])


def flat(observations, actions):
    return 0.0 * actions.sum(-1)


def nan(observations, actions):
    return actions.sum(-1) * float("nan")


def minus_infinity(observations, actions):
    return actions.sum(-1) - float("inf")


class Weighted:
    """A class of the user's own, made of the critic and a cost."""

    def __init__(self, weight=0.1):
        self.weight = weight

    def bind(self, networks, obs):
        with th.no_grad():
            features = networks.critic.encode(obs)
        return partial(_weighted, networks.critic, features, self.weight)


def _weighted(critic, features, weight, actions):
    return -critic.evaluate(features, actions).mean(0) + weight * actions.square().sum(-1)


@dataclass(frozen=True)
class BlindToActions:
    """Depends on parameters, and on no action."""

    def bind(self, networks, obs):
        return partial(_blind, networks.critic, networks.critic.encode(obs).detach())


def _blind(critic, features, actions):
    return -critic.evaluate(features, actions.detach()).mean(0)


class WithoutBind:
    pass


class BindsObservationsAlone:
    def bind(self, obs):
        return lambda actions: actions.square().sum(-1)


class BindsNothing:
    def bind(self, networks, obs):
        return None


class NeedsAnArgument:
    def __init__(self, target):
        self.target = target

    def bind(self, networks, obs):
        return lambda actions: actions.square().sum(-1)


class FailsToBind:
    def bind(self, networks, obs):
        return networks.dynamics(obs)
