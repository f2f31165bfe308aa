"""An energy of some observations is that of all, at their rows, and encodes nothing twice."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch as th
from torch import nn

from sb3_energy.energies import QEnergy, added
from sb3_energy.refinement.sliceable_energy import SliceableEnergy, bind_sliceable
from sb3_energy.types import Networks

ACTIONS = th.randn((6, 3, 2), generator=th.Generator().manual_seed(0))
OBS = th.randn((6, 4), generator=th.Generator().manual_seed(1))
INDEX = th.tensor([4, 1])


class Critic(nn.Module):
    """Counts the observations it encodes."""

    def __init__(self):
        super().__init__()
        self.encoder, self.head, self.encoded = nn.Linear(4, 5), nn.Linear(7, 2), []

    def encode(self, obs):
        obs = obs["vector"] if isinstance(obs, dict) else obs
        self.encoded.append(len(obs))
        return self.encoder(obs)

    def evaluate(self, features, actions):
        inputs = th.cat([features.unsqueeze(1).expand(-1, actions.shape[1], -1), actions], dim=-1)
        return self.head(inputs).permute(2, 0, 1)


@dataclass(frozen=True)
class Shifted:
    """An energy of the user's own: of two observations, the second of which it makes."""

    def bind(self, networks, obs):
        return added(QEnergy().bind(networks, obs), QEnergy("min").bind(networks, obs + 1.0), partial(effort, obs))


def effort(obs, actions):
    return obs[:, :1] * actions.square().sum(-1)


@dataclass(frozen=True)
class Effort:
    """No critic in it."""

    def bind(self, networks, obs):
        return partial(effort, obs)


@pytest.mark.parametrize("energy", [QEnergy(), QEnergy("lcb"), Shifted(), Effort()])
def test_rows_are_those_of_the_whole(energy):
    critic = Critic()
    bound = bind_sliceable(energy, Networks(critic), OBS)
    whole = energy.bind(Networks(critic), OBS)(ACTIONS)
    th.testing.assert_close(bound(ACTIONS), whole)
    part = bound.rows(INDEX)
    assert isinstance(part, SliceableEnergy)
    th.testing.assert_close(part(ACTIONS[INDEX]), whole[INDEX])
    th.testing.assert_close(part.rows(th.tensor([1]))(ACTIONS[1:2]), whole[1:2])


def test_observations_of_a_dictionary():
    critic = Critic()
    bound = bind_sliceable(QEnergy(), Networks(critic), dict(vector=OBS))
    th.testing.assert_close(bound.rows(INDEX)(ACTIONS[INDEX]), bound(ACTIONS)[INDEX])
    assert critic.encoded == [6]


def test_what_is_bound_is_encoded_once_and_what_an_energy_makes_each_time():
    critic = Critic()
    bind_sliceable(QEnergy(), Networks(critic), OBS).rows(INDEX).rows(th.tensor([0]))
    assert critic.encoded == [6]
    critic.encoded.clear()
    bind_sliceable(Shifted(), Networks(critic), OBS).rows(INDEX)
    assert critic.encoded == [6, 6, 2]
    critic.encoded.clear()
    bind_sliceable(Effort(), Networks(critic), OBS).rows(INDEX)
    assert critic.encoded == []


def test_the_critic_itself_is_left_as_it_is():
    critic = Critic()
    bind_sliceable(QEnergy(), Networks(critic), OBS)
    assert "encode" not in vars(critic)
    th.testing.assert_close(critic.encode(OBS[:1]), critic.encoder(OBS[:1]))
