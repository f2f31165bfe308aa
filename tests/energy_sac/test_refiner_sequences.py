"""Models whose refiners take turns: they learn, act, and come back with their arguments."""

import numpy as np
import pytest
import torch as th

from sb3_energy import PGAC, EnergySAC
from sb3_energy.energy_sac import MlpPolicy
from sb3_energy.energy_sac.policies import MlpPolicy as Policy
from sb3_energy.envs import MultiGoalEnv
from sb3_energy.landscape import landscape_of
from sb3_energy.policies.own_energy import asks_for_gradient
from sb3_energy.refiners import Flow, Langevin, MetropolisAdjustedLangevin, RefinerSequence
from tests.energy_sac.test_sb3_saving import assert_acts_the_same

OBS = np.random.default_rng(0).uniform(-1, 1, size=(6, 2)).astype(np.float32)
FLOW_MALA = dict(refiner=["flow", "mala"], refiner_kwargs=[None, dict(step_size=0.2)], refiner_steps=[2, 3])


def make(policy_kwargs, cls=EnergySAC, **kwargs):
    settings = dict(learning_starts=20, batch_size=16, buffer_size=500, seed=0, device="cpu") | kwargs
    return cls("MlpPolicy", MultiGoalEnv(), policy_kwargs=dict(net_arch=[16]) | policy_kwargs, **settings)


def parameters(module):
    return {name: value.detach().clone() for name, value in module.named_parameters()}


SEQUENCES = [
    FLOW_MALA,
    dict(refiner=["mean_flow", "langevin"]),
    dict(refiner=["flow", "svgd"], n_particles=4),
    dict(refiner=["langevin", "mala"], n_particles=4),
    dict(refiner=["snis", "hmc"], n_particles=8),
    dict(refiner=["smc", "mala"], n_particles=8, refiner_steps=[3, 2]),
    dict(refiner=["autoregressive_derivative_free", "langevin"], n_particles=8),
]


@pytest.mark.parametrize("policy_kwargs", SEQUENCES, ids=lambda value: " ".join(value["refiner"]))
@pytest.mark.parametrize("refine_target", [False, True])
def test_it_learns_and_acts_the_same_when_it_is_loaded(policy_kwargs, refine_target, tmp_path):
    model = make(policy_kwargs, refine_target=refine_target, distillation_coef=0.1).learn(24)
    before = None if model.policy.head is None else parameters(model.policy.head)
    model.train(2, 16)
    if before is not None:
        assert all(not th.equal(before[name], value) for name, value in parameters(model.policy.head).items())
    model.save(tmp_path / "model")
    loaded = EnergySAC.load(tmp_path / "model", device="cpu")
    assert loaded.policy.refinement == model.policy.refinement
    assert loaded.policy_kwargs["refiner"] == policy_kwargs["refiner"]
    assert_acts_the_same(model, loaded, OBS)
    model.policy.save(tmp_path / "policy")
    policy = Policy.load(tmp_path / "policy", device="cpu")
    assert policy.refinement == model.policy.refinement
    actions = [each.predict(OBS, deterministic=True)[0] for each in (model, policy)]
    np.testing.assert_array_equal(*actions)


def test_the_head_learns_as_it_does_for_the_flow_alone():
    """With the same batches and draws of the head's loss, whatever follows the flow."""
    heads = []
    for refiner in ("flow", ["flow", "mala"]):
        model = make(dict(refiner=refiner), ent_coef=0.1, refine_exploration=False).learn(24)
        heads.append(parameters(model.policy.head))
    assert heads[0].keys() == heads[1].keys()
    for name, value in heads[0].items():
        th.testing.assert_close(heads[1][name], value)


def test_the_chain_follows_the_critic_when_acting():
    model = make(FLOW_MALA).learn(22)
    calls, original = [], model.critic.evaluate
    model.critic.evaluate = lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs)
    model.predict(OBS)
    assert calls, "a flow that a chain follows needs energies"


def test_few_observations_go_through_torch():
    model = make(FLOW_MALA)
    th.manual_seed(0)
    fast = model.predict(OBS[0])[0]
    th.manual_seed(0)
    with model.policy.torch_predict():
        np.testing.assert_array_equal(model.predict(OBS[0])[0], fast)


def test_whether_a_gradient_is_needed_is_asked_of_the_members_without_a_head():
    assert asks_for_gradient(make(FLOW_MALA).policy)
    assert not asks_for_gradient(make(dict(refiner="flow")).policy)
    assert not asks_for_gradient(make(dict(refiner=["flow", "derivative_free"])).policy)


@pytest.mark.parametrize("capture", ["cuda_graph", "compile"])
def test_a_head_is_not_captured(capture):
    with pytest.raises(ValueError, match="needs a refiner that learns nothing beside the critic"):
        make(FLOW_MALA, capture=capture)


def test_an_argument_in_a_wrong_place_is_answered_with_the_list():
    with pytest.raises(TypeError, match=r"write policy_kwargs=dict\(refiner_kwargs=\[None, dict\(step_size=0.1\)\]\)"):
        make(FLOW_MALA, step_size=0.1)
    with pytest.raises(TypeError, match=r"the refiner 'mala': write refiner_kwargs=\[None, dict\(step_size=0.1\)\]"):
        make(FLOW_MALA | dict(step_size=0.1))
    with pytest.raises(TypeError, match=r"n_particles is an argument of the policy"):
        make(dict(refiner=["flow", "mala"], refiner_kwargs=[None, dict(n_particles=3)]))


def test_update_particles_have_no_effect_after_a_flow():
    with pytest.raises(ValueError, match="update_particles=3 needs updates that refine"):
        make(FLOW_MALA, refine_target=True, update_particles=3)


def test_a_landscape_shows_both():
    model = make(FLOW_MALA)
    found = landscape_of(model, OBS[0], n_grid=5, n_particles=3)
    assert found.refiner == "flow, mala" and not found.resamples
    assert found.noise.tolist() == [False, False, True, True, True] and found.positions.shape == (6, 3, 2)
    found = landscape_of(make(dict(refiner=["flow", "svgd"], n_particles=4)), OBS[0], n_grid=5)
    assert not found.noise.any() and not found.resamples


TRAINING = dict(n_observations=4, n_candidates=26, n_refined=2, top_k=3, n_negatives=4, negative_steps=2)
OF_PGAC = dict(potential_training_kwargs=TRAINING)


def test_pgac_takes_the_jko_scheme_first_and_another_chain_after_it():
    jko = dict(refiner="langevin", refiner_steps=4, sampling_time=0.5)
    alone = make(jko, PGAC, **OF_PGAC).policy.refinement
    model = make(jko | dict(refiner=["langevin", "mala"], refiner_steps=[4, 2]), PGAC, **OF_PGAC).learn(24)
    sequence = model.policy.refinement
    assert sequence.refiner == RefinerSequence((alone.refiner, MetropolisAdjustedLangevin()), (4, 2))
    assert (sequence.n_particles, sequence.precondition) == (32, False)
    model = make(dict(refiner=["flow", "langevin"], box="tanh"), PGAC, **OF_PGAC).learn(24)
    assert model.policy.refinement.refiner.members == (Flow(), Langevin()) and model.head_learner is not None
    with pytest.raises(ValueError, match="sampling_time belongs to the JKO scheme of"):
        make(dict(refiner=["hmc", "langevin"], sampling_time=0.5), PGAC, **OF_PGAC)
    with pytest.raises(ValueError, match=r"must leave \['step_size'\] to sampling_time"):
        make(dict(refiner=["langevin", "mala"], refiner_kwargs=[dict(step_size=0.1), None]), PGAC, **OF_PGAC)


def test_pgac_learns_through_the_steps_of_all_members():
    kwargs = OF_PGAC | dict(end_to_end_coef=0.5)
    model = make(dict(refiner=["langevin", "langevin"], refiner_steps=[2, 2]), PGAC, **kwargs).learn(24)
    assert model._n_updates > 0
    with pytest.raises(ValueError, match="needs a refiner that can be differentiated"):
        make(dict(refiner=["langevin", "hmc"]), PGAC, **kwargs)


def test_it_is_made_by_a_class_of_policies():
    model = EnergySAC(MlpPolicy, MultiGoalEnv(), policy_kwargs=dict(refiner=("flow", Langevin)), buffer_size=10)
    assert model.policy.refinement.refiner.members == (Flow(), Langevin())
