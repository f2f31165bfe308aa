"""How many descents a prediction without noise makes, and that draws do not mind."""

import numpy as np
import pytest
import torch as th

from sb3_energy import PGAC, EnergySAC
from sb3_energy.refiners import REFINERS

OBS = np.random.default_rng(0).uniform(-1, 1, size=(32, 3)).astype(np.float32)
ALONE = sorted(name for name, refiner in REFINERS.items() if not refiner.resamples and name != "none")


def make(algorithm=EnergySAC, **kwargs):
    policy_kwargs = dict(net_arch=[32], n_particles=8) | kwargs
    model = algorithm("MlpPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs, buffer_size=50, seed=0, device="cpu")
    with th.no_grad():
        for q_net in model.critic.q_networks:
            q_net[-1].weight.mul_(10.0)  # so that starts differ
    return model


def drawn(model):
    th.manual_seed(0)
    return model.predict(OBS)[0]


@pytest.mark.parametrize("algorithm", [EnergySAC, PGAC])
@pytest.mark.parametrize("fast", [True, False])
def test_descents_are_counted_apart_from_proposals(algorithm, fast):
    few, many = make(algorithm, n_particles=2), make(algorithm)
    mixed = make(algorithm, deterministic_particles=2)
    for model in (few, many, mixed):
        model.policy.fast_predict = fast
    best, of_all = (model.predict(OBS, deterministic=True)[0] for model in (mixed, many))
    np.testing.assert_array_equal(best, few.predict(OBS, deterministic=True)[0])
    np.testing.assert_array_equal(drawn(mixed), drawn(many))
    assert np.abs(best - of_all).max() > 1e-3


@pytest.mark.parametrize("refiner", ALONE)
def test_each_refiner_that_moves_particles_alone_has_it(refiner):
    actions, _ = make(refiner=refiner, n_particles=None, deterministic_particles=3).predict(OBS, deterministic=True)
    np.testing.assert_allclose(actions, make(refiner=refiner, n_particles=3).predict(OBS, deterministic=True)[0], atol=1e-6)


def test_it_costs_what_it_says():
    model, asked = make(deterministic_particles=1), []
    outputs = model.critic.outputs
    model.critic.outputs = lambda features, actions: asked.append(actions[..., 0].numel()) or outputs(features, actions)
    model.policy.refine(th.as_tensor(OBS), deterministic=True)
    n_steps = model.policy.refinement.n_steps
    assert sum(asked) == len(OBS) * (1 + n_steps + 2)  # at the start, at each step's end, and of both that compete


@pytest.mark.parametrize("algorithm", [EnergySAC, PGAC])
def test_it_is_saved(algorithm, tmp_path):
    model = make(algorithm, deterministic_particles=2)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", device="cpu")
    assert loaded.policy.refinement.deterministic_particles == 2 == loaded.policy.refinement.n_starts
    np.testing.assert_array_equal(loaded.predict(OBS, deterministic=True)[0], model.predict(OBS, deterministic=True)[0])


def test_a_bound_on_particles_is_one_on_descents():
    refinement = make(deterministic_particles=4).policy.refinement
    assert refinement.thinned(8) is refinement and refinement.thinned(None) is refinement
    found = [(refinement.thinned(n).n_particles, refinement.thinned(n).n_starts) for n in (6, 3)]
    assert found == [(6, 4), (3, 3)]
    many = make(n_particles=2, deterministic_particles=4).policy.refinement.thinned(3)
    assert (many.n_particles, many.n_starts) == (2, 3)
