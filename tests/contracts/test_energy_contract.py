"""One test over the whole registry: a new energy is tested by its line in ``ENERGIES``."""

import dataclasses
import pickle

import pytest
import torch as th
from torch import nn

from sb3_energy.autodiff import energy_and_grad
from sb3_energy.energies import ENERGIES, squashed, tempered
from sb3_energy.networks import PotentialNetwork
from sb3_energy.types import Energy, Networks

B, N, A, OBS = 3, 5, 2, 4
each_energy = pytest.mark.parametrize("name", sorted(ENERGIES))


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        th.manual_seed(0)
        self.encoder = nn.Linear(OBS, 6).double()
        self.heads = nn.ModuleList(nn.Sequential(nn.Linear(6 + A, 8), nn.SiLU(), nn.Linear(8, 1)).double() for _ in range(2))
        self.n_encoded = 0

    def encode(self, obs):
        self.n_encoded += 1
        return self.encoder(obs)

    def evaluate(self, features, actions):
        x = th.cat([features.unsqueeze(1).expand(-1, actions.shape[1], -1), actions], dim=-1)
        return th.stack([head(x).squeeze(-1) for head in self.heads])


def networks(critic=None):
    th.manual_seed(1)
    potential = PotentialNetwork(6, A, [8]).double()
    nn.init.normal_(potential.network[-1].weight)
    return Networks(critic or Critic(), potential=potential, q_scale=th.tensor(3.0, dtype=th.float64))


def draws(*shape, seed=0):
    return th.randn(*shape, dtype=th.float64, generator=th.Generator().manual_seed(seed))


@each_energy
def test_it_is_a_frozen_value_without_networks(name):
    energy = ENERGIES[name]()
    assert isinstance(energy, Energy) and dataclasses.is_dataclass(energy)
    assert pickle.loads(pickle.dumps(energy)) == energy
    with pytest.raises(dataclasses.FrozenInstanceError):
        energy.anything = 1
    assert not any(isinstance(value, nn.Module) for value in vars(energy).values())


@each_energy
@pytest.mark.parametrize("n", [1, N])
def test_it_encodes_once(name, n):
    critic = Critic()
    fn = ENERGIES[name]().bind(networks(critic), draws(B, OBS))
    assert critic.n_encoded == 1
    for seed in range(3):
        assert fn(draws(B, n, A, seed=seed)).shape == (B, n)
        energy_and_grad(squashed(tempered(fn, 0.1)), draws(B, n, A, seed=seed))
    assert critic.n_encoded == 1


@each_energy
def test_its_gradient_is_that_of_finite_differences(name):
    fn, actions, h = ENERGIES[name]().bind(networks(), draws(B, OBS)), draws(B, N, A), 1e-6
    gradients = energy_and_grad(fn, actions)[1]
    for j in range(A):
        shift = h * th.eye(A, dtype=th.float64)[j]
        difference = (fn(actions + shift) - fn(actions - shift)) / (2.0 * h)
        th.testing.assert_close(gradients[..., j], difference.detach(), rtol=0, atol=1e-7)


@each_energy
def test_particles_and_observations_do_not_meet(name):
    fn, actions = ENERGIES[name]().bind(networks(), draws(B, OBS)), draws(B, N, A)
    one = ENERGIES[name]().bind(networks(), draws(B, OBS)[1:2])(actions[1:2, 2:3])
    th.testing.assert_close(fn(actions)[1, 2], one[0, 0])


@each_energy
def test_no_gradient_reaches_the_networks_unasked(name):
    found = networks()
    energies, gradients = energy_and_grad(ENERGIES[name]().bind(found, draws(B, OBS)), draws(B, N, A))
    assert not energies.requires_grad and not gradients.requires_grad
    assert all(p.grad is None for network in (found.critic, found.potential) for p in network.parameters())


@each_energy
def test_what_it_binds_can_be_pickled(name):
    fn = ENERGIES[name]().bind(networks(), draws(B, OBS))
    assert th.equal(pickle.loads(pickle.dumps(fn))(draws(B, N, A)), fn(draws(B, N, A)))


def test_low_is_good():
    critic = Critic()
    obs, actions = draws(B, OBS), draws(B, N, A)
    q_values = critic.evaluate(critic.encode(obs), actions).mean(0)
    th.testing.assert_close(ENERGIES["q"]().bind(networks(critic), obs)(actions), -q_values)
