"""What PGAC's potential learns from: positives of the law that is acted, and chains of which half start at them."""

import collections

import numpy as np
import pytest
import torch as th

from sb3_energy.pgac import potential_learner
from tests.laws import total_variation

ONE_OF_MANY = dict(n_observations=6000, n_candidates=200, top_k=1, n_refined=0)
"""One positive of many candidates is a draw from the density itself; without replacement, the twentieth is not."""


def steep(make_model, **kwargs):
    """A model whose transitions all begin at one observation, and whose critic has a slope and a curvature there."""
    model = make_model(buffer_size=50, **kwargs).learn(21)
    model.replay_buffer.observations[:] = 0.5
    with th.no_grad():
        for network in model.critic.q_networks:
            network[0].weight[:, 3:] *= 8.0
            network[-1].weight *= 3.0 / model.critic.value_scale.sigma  # so steep in the units of the reward
    return model


def seen_in_an_update(model, monkeypatch):
    """The positives of the transport loss and the starts of the negatives' chains."""
    seen = {}
    loss, ends = potential_learner.weighted_transport_loss, potential_learner.chain_ends

    def watched_loss(network, features, starts, ends, *args):
        seen["positives"] = ends.clone()
        return loss(network, features, starts, ends, *args)

    def watched_ends(network, features, starts, *args):
        seen["starts"] = starts.clone()
        return ends(network, features, starts, *args)

    monkeypatch.setattr(potential_learner, "weighted_transport_loss", watched_loss)
    monkeypatch.setattr(potential_learner, "chain_ends", watched_ends)
    np.random.seed(0)
    th.manual_seed(0)
    n = model.potential_learner.training.n_observations
    model._update_potential(model._sample(n), model._current_ent_coef(), collections.defaultdict(list))
    return seen


@pytest.mark.parametrize(
    "settings",
    [dict(), dict(temperature=0.3), dict(guidance=3.0, temperature=0.5), dict(normalize_q=False, temperature=0.2)],
    ids=str,
)
def test_positives_follow_the_law_that_is_acted_with(make_model, monkeypatch, settings):
    """Without a potential that is ``exp(-E)`` of the policy's own energy, by quadrature."""
    model = steep(make_model, policy_kwargs=dict(energy_kwargs=settings), potential_training_kwargs=ONE_OF_MANY)
    with th.no_grad():
        for parameter in model.policy.potential.parameters():
            parameter.zero_()
    model.potential_learner.settings = model.potential_learner.settings._replace(divergence_coef=0.0)
    model.policy.q_scale.n_updates.zero_()  # the spread of now alone
    positives = seen_in_an_update(model, monkeypatch)["positives"]
    assert positives.shape == (6000, 1, 1)
    with th.no_grad():
        for parameter in model.policy.potential.parameters():
            parameter.zero_()
        energy = model.policy.energy_fn(th.full((1, 3), 0.5))

    def scaled(factor):
        return lambda x: factor * energy(x.float()).double().detach()

    draws = positives.reshape(-1, 1)
    assert total_variation(draws, scaled(1.0), 20) < 0.05
    for factor in (1.0 / 3.0, 3.0):
        assert total_variation(draws, scaled(factor), 20) > 0.1


def test_half_of_the_chains_start_at_positives(make_model, monkeypatch):
    training = dict(n_observations=16, n_candidates=40, top_k=5, n_negatives=16)
    seen = seen_in_an_update(steep(make_model, potential_training_kwargs=training), monkeypatch)
    starts, positives = seen["starts"], seen["positives"]
    assert starts.shape == (16, 8, 1) and starts.abs().max() <= 1.0
    at_positives = (starts == positives.transpose(1, 2)).any(dim=2)
    assert (at_positives.sum(dim=1) == 4).all()
    others = starts[~at_positives]
    assert len(others.unique()) == len(others) and others.std() > 0.45, "uniform ones, anew for each"
