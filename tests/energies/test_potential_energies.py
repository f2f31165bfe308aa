"""The potential as an energy, alone and guided by the critic."""

import math

import pytest
import torch as th
from torch import nn

from sb3_energy import EnergySAC
from sb3_energy.energies import ENERGIES, GuidedPotential, PotentialEnergy, QEnergy
from sb3_energy.networks import PotentialNetwork
from sb3_energy.refinement.proposals import energy_of_starts
from sb3_energy.refinement.sliceable_energy import bind_sliceable
from sb3_energy.types import Networks

B, N, A, F = 3, 5, 2, 4


class Critic(nn.Module):
    """Two critics that disagree, and a count of who asked."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale, self.n_asked = scale, 0

    def encode(self, obs):
        return obs

    def evaluate(self, features, actions):
        self.n_asked += 1
        values = features.sum(1, keepdim=True) * actions.sum(-1)
        return self.scale * th.stack([values, values + actions[..., 0]])


def networks(critic=None, spread=2.0):
    th.manual_seed(0)
    potential = PotentialNetwork(F, A, [8])
    nn.init.normal_(potential.network[-1].weight)
    return Networks(critic or Critic(), potential=potential, q_scale=th.tensor(spread))


def inputs():
    generator = th.Generator().manual_seed(1)
    return th.randn(B, F, generator=generator), th.randn(B, N, A, generator=generator)


@pytest.mark.parametrize("normalize_q", [True, False])
@pytest.mark.parametrize("aggregate", ["mean", "min"])
def test_it_is_what_its_formula_says(normalize_q, aggregate):
    found, (obs, actions) = networks(), inputs()
    energy = GuidedPotential(guidance=0.7, temperature=0.3, normalize_q=normalize_q, aggregate=aggregate)
    values = found.potential(obs, actions)
    q_values = -QEnergy(aggregate).bind(found, obs)(actions)
    expected = (values - 0.7 * q_values / (2.0 if normalize_q else 1.0)) / 0.3
    th.testing.assert_close(energy.bind(found, obs)(actions), expected)
    alone = PotentialEnergy(temperature=0.3).bind(found, obs)(actions)
    th.testing.assert_close(alone, values / 0.3)


def test_the_critic_alone_says_where_chains_start():
    found, (obs, actions) = networks(), inputs()
    starts = energy_of_starts(GuidedPotential(guidance=0.7, temperature=0.3).bind(found, obs))
    q_values = -QEnergy().bind(found, obs)(actions)
    th.testing.assert_close(starts(actions), -0.7 * q_values / 2.0 / 0.3)
    unguided = GuidedPotential(guidance=0.0).bind(found, obs)
    assert th.equal(energy_of_starts(unguided)(actions), unguided(actions)), "the potential, where nobody else is there"
    q_energy = QEnergy().bind(found, obs)
    assert energy_of_starts(q_energy) is q_energy
    by_rows = bind_sliceable(GuidedPotential(guidance=0.7, temperature=0.3), found, obs)
    th.testing.assert_close(energy_of_starts(by_rows)(actions), starts(actions))


@pytest.mark.parametrize("energy", [PotentialEnergy(), GuidedPotential(guidance=0.0)])
def test_without_guidance_the_critic_is_not_asked(energy):
    critic, (obs, actions) = Critic(), inputs()
    found = networks(critic)
    th.testing.assert_close(energy.bind(found, obs)(actions), found.potential(obs, actions) / energy.temperature)
    assert critic.n_asked == 0


def test_the_scale_is_that_of_when_it_was_bound():
    found, (obs, actions) = networks(), inputs()
    bound = GuidedPotential().bind(found, obs)
    before = bound(actions)
    found.q_scale.fill_(100.0)
    assert th.equal(bound(actions), before)
    assert not th.allclose(GuidedPotential().bind(found, obs)(actions), before)


def test_the_guidance_has_no_scale():
    obs, actions = inputs()
    one = GuidedPotential().bind(networks(Critic(1.0), 2.0), obs)(actions)
    hundred = GuidedPotential().bind(networks(Critic(100.0), 200.0), obs)(actions)
    th.testing.assert_close(one, hundred, rtol=1e-5, atol=1e-5)


OF_BOTH = [
    (dict(temperature=0.0), ValueError, "temperature must be above 0, got 0.0"),
    (dict(temperature=math.inf), ValueError, "temperature must be finite, got inf"),
    (dict(temperature="hot"), TypeError, "temperature must be a number, got 'hot'"),
    (dict(temperature=True), TypeError, "temperature must be a number, got True"),
]
OF_THE_GUIDED_ONE = [
    (dict(guidance=-1.0), ValueError, "guidance must be at least 0, got -1.0"),
    (dict(guidance=math.nan), ValueError, "guidance must be finite, got nan"),
    (dict(guidance=None), TypeError, "guidance must be a number, got None"),
    (dict(normalize_q=1), TypeError, "normalize_q must be True or False, got 1"),
    (dict(aggregate="max"), ValueError, "aggregate must be one of .*, got 'max'"),
    (dict(coefficient=1.0), ValueError, "coefficient .*"),
]


@pytest.mark.parametrize(
    "name, kwargs, error, match",
    [("potential", *case) for case in OF_BOTH] + [("guided_potential", *case) for case in OF_BOTH + OF_THE_GUIDED_ONE],
    ids=str,
)
def test_wrong_arguments(name, kwargs, error, match):
    with pytest.raises(error, match=f"^{match}$"):
        ENERGIES[name](**kwargs)


@pytest.mark.parametrize("energy", ["potential", "guided_potential", GuidedPotential])
def test_a_policy_without_potential_refuses_it(energy):
    with pytest.raises(ValueError, match=r"needs a potential, which the policies of PGAC have; use energy='q'$"):
        EnergySAC("MlpPolicy", "Pendulum-v1", buffer_size=10, policy_kwargs=dict(energy=energy))
