"""What users add to a registry works by its name: in constructors, in files, in the zoo's YAML and in its Optuna search."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import optuna
import pytest
import torch as th

from sb3_energy import PGAC, EnergySAC
from sb3_energy.energies import ENERGIES, GuidedPotential, QEnergy
from sb3_energy.entropy import ENTROPY_ESTIMATORS
from sb3_energy.networks import BACKBONES, Backbone
from sb3_energy.policies.heads import HEADS, VelocityHead
from sb3_energy.refinement.estimators import choose_estimator, valid_estimators
from sb3_energy.refinement.proposals import INITIAL_PARTICLES
from sb3_energy.refiners import REFINERS, Flow, Langevin
from sb3_energy.types import EntropyEstimate

NO_HER = {"using_her_replay_buffer": False, "her_kwargs": {}}
SMALL = dict(learning_starts=4, buffer_size=50, batch_size=4, seed=0)


@dataclass(frozen=True)
class Mine(Langevin):
    """A refiner with a space of its own for the search."""

    strength: float = 1.0

    search_space: ClassVar[dict] = dict(steps=(2, 3), particles_pow=(1, 1), strength=(0.5, 2.0), max_grad_norm=[None, 1.0])


@dataclass(frozen=True)
class Plain(Langevin):
    """A refiner that says nothing of a search."""


@dataclass(frozen=True)
class Energy(QEnergy):
    """An energy."""


@dataclass(frozen=True)
class PotentialOne(GuidedPotential):
    """An energy with a potential."""


@dataclass(frozen=True)
class Estimator:
    """An estimator for any refiner."""

    offset: float = 0.0

    def estimate(self, context):
        return EntropyEstimate(context.base_log_prob + self.offset)


@dataclass(frozen=True)
class OfMala(Estimator):
    """An estimator for one refiner."""

    refiners: ClassVar[tuple] = ("mala", Mine)


def build(input_dim, net_arch, activation_fn):
    return BACKBONES["plain"].build(input_dim, net_arch, activation_fn)


PARTS = {
    "refiner": (REFINERS, Mine, EnergySAC, dict(policy_kwargs=dict(refiner="mine"))),
    "energy": (ENERGIES, Energy, EnergySAC, dict(policy_kwargs=dict(energy="mine"))),
    "estimator": (ENTROPY_ESTIMATORS, Estimator, EnergySAC, dict(entropy_estimator="mine")),
    "backbone": (BACKBONES, Backbone(build), EnergySAC, dict(policy_kwargs=dict(backbone="mine"))),
    "pgac's refiner": (REFINERS, Mine, PGAC, dict(policy_kwargs=dict(refiner="mine"))),
    "pgac's energy": (ENERGIES, PotentialOne, PGAC, dict(policy_kwargs=dict(energy="mine"))),
    "pgac's backbone": (BACKBONES, Backbone(build), PGAC, dict(policy_kwargs=dict(backbone="mine"))),
}
each_part = pytest.mark.parametrize("part", PARTS)


@pytest.fixture
def registered(request, monkeypatch):
    registry, value, algorithm, kwargs = PARTS[request.getfixturevalue("part")]
    monkeypatch.setitem(registry, "mine", value)
    return algorithm, kwargs | dict(policy_kwargs=dict(net_arch=[8, 8]) | kwargs.get("policy_kwargs", {}))


@each_part
def test_it_trains_and_is_saved_and_loaded_by_its_name(part, registered, tmp_path, monkeypatch):
    algorithm, kwargs = registered
    model = algorithm("MlpPolicy", "Pendulum-v1", **SMALL, **kwargs).learn(8)
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy")
    obs = np.zeros((2, 3), np.float32)
    expected = model.predict(obs, deterministic=True)[0]
    np.testing.assert_array_equal(algorithm.load(tmp_path / "model").predict(obs, deterministic=True)[0], expected)
    if part != "estimator":
        policy = type(model.policy).load(tmp_path / "policy")
        np.testing.assert_array_equal(policy.predict(obs, deterministic=True)[0], expected)
    monkeypatch.delitem(PARTS[part][0], "mine")
    with pytest.raises(ValueError, match=r"got 'mine'; .*registered before a model is made or loaded") as error:
        algorithm.load(tmp_path / "model")
    assert "\n" not in str(error.value)


@each_part
def test_it_works_in_the_zoo_s_yaml(part, registered):
    pytest.importorskip("rl_zoo3")
    import rl_zoo3.exp_manager as zoo

    algorithm, kwargs = registered
    evaluated = kwargs | dict(policy_kwargs=eval(repr(kwargs["policy_kwargs"]), vars(zoo)))  # as the zoo does
    assert algorithm("MlpPolicy", "Pendulum-v1", **SMALL, **evaluated).policy is not None


def sampled(sample, convert):
    """Parameters of random trials, each of which the converter understands and the algorithm takes."""
    found = []

    def objective(trial):
        hyperparams = sample(trial, 1, 1, dict(NO_HER))
        assert convert(trial.params) == hyperparams
        found.append((trial.params, hyperparams))
        return 0.0

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).optimize(objective, n_trials=100)
    return found


@pytest.mark.parametrize("part", [part for part in PARTS if part != "pgac's refiner"])  # PGAC's search has one, the JKO scheme
def test_it_joins_the_search(part, registered):
    pytest.importorskip("rl_zoo3")
    from sb3_energy.zoo import samplers

    algorithm, _ = registered
    key = {"refiner": "refiner", "energy": "energy", "backbone": "backbone"}.get(part.split()[-1])
    if algorithm is PGAC:
        trials = sampled(samplers.sample_pgac_params, samplers.convert_pgac_params)
    else:
        trials = sampled(samplers.sample_energy_sac_params, samplers.convert_energy_sac_params)
    if key is None:
        chosen = [hyper for _, hyper in trials if hyper.get("entropy_estimator") == "mine"]
    else:
        chosen = [hyper for _, hyper in trials if hyper["policy_kwargs"].get(key) == "mine"]
    assert chosen
    for hyperparams in chosen[:2]:
        hyperparams = hyperparams | dict(buffer_size=50, learning_starts=4, batch_size=4)
        assert algorithm("MlpPolicy", "Pendulum-v1", **hyperparams).policy is not None


def test_a_refiner_s_own_space_is_searched(monkeypatch):
    pytest.importorskip("rl_zoo3")
    from sb3_energy.zoo import samplers

    monkeypatch.setitem(REFINERS, "mine", Mine)
    monkeypatch.setitem(REFINERS, "plain_one", Plain)
    trials = sampled(samplers.sample_energy_sac_params, samplers.convert_energy_sac_params)
    found = [hyper["policy_kwargs"] for _, hyper in trials if hyper["policy_kwargs"]["refiner"] == "mine"]
    assert found
    for kwargs in found:
        assert kwargs["refiner_steps"] in (2, 3) and kwargs["n_particles"] == 2
        assert 0.5 <= kwargs["refiner_kwargs"]["strength"] <= 2.0 and kwargs["refiner_kwargs"]["max_grad_norm"] in (None, 1.0)
    assert samplers.search_space("plain_one") == dict(steps=(1, 10), particles_pow=(0, 7))


def test_an_estimator_says_for_which_refiners_it_is(monkeypatch):
    monkeypatch.setitem(REFINERS, "mine", Mine)
    monkeypatch.setitem(ENTROPY_ESTIMATORS, "any", Estimator)
    monkeypatch.setitem(ENTROPY_ESTIMATORS, "of_mala", OfMala)
    assert valid_estimators(REFINERS["mala"]) == ["base", "soft_value", "smc", "any", "of_mala"]
    assert valid_estimators(Mine)[-2:] == ["any", "of_mala"] and "of_mala" not in valid_estimators(REFINERS["hmc"])

    def model(refiner, estimator):
        return EnergySAC("MlpPolicy", "Pendulum-v1", entropy_estimator=estimator, policy_kwargs=dict(refiner=refiner))

    for given in ("of_mala", OfMala):
        assert type(model("mala", given).entropy_term.estimator) is OfMala
        with pytest.raises(ValueError, match=r"entropy_estimator must be one of \[.*'any'\] with HamiltonianMonteCarlo, got"):
            model("hmc", given)
    for given in ("any", Estimator):
        assert type(model("hmc", given).entropy_term.estimator) is Estimator
    assert choose_estimator("any", dict(offset=1.0), model("hmc", "base").policy.refinement).offset == 1.0


def by_hand(observations, actions):
    return actions.square().sum(-1)


def test_a_function_and_an_initial_particles_of_one_s_own(monkeypatch):
    monkeypatch.setitem(ENERGIES, "mine", by_hand)
    monkeypatch.setitem(INITIAL_PARTICLES, "quarter", 0.25)
    kwargs = dict(net_arch=[8], energy="mine", initial_particles="quarter", refiner_steps=100)
    model = EnergySAC("MlpPolicy", "Pendulum-v1", **SMALL, policy_kwargs=kwargs).learn(6)
    np.testing.assert_allclose(model.predict(np.zeros(3, np.float32), deterministic=True)[0], 0.0, atol=0.2)


def test_a_head_of_one_s_own(monkeypatch):
    class MyHead(VelocityHead):
        def __init__(self, features_dim, action_dim, net_arch, activation_fn, backbone, scale=1.0):
            super().__init__(features_dim, action_dim, net_arch=net_arch, activation_fn=activation_fn, backbone=backbone)
            self.scale = scale

    @dataclass(frozen=True)
    class MyFlow(Flow):
        head: ClassVar[str] = "mine"

    monkeypatch.setitem(HEADS, "mine", MyHead)
    monkeypatch.setitem(REFINERS, "mine", MyFlow)
    kwargs = dict(net_arch=[8], refiner="mine", initial_particles="base", head_kwargs=dict(scale=2.0))
    assert EnergySAC("MlpPolicy", "Pendulum-v1", **SMALL, policy_kwargs=kwargs).policy.head.scale == 2.0
    kwargs["head_kwargs"] = dict(scal=2.0)
    with pytest.raises(TypeError, match=r"head_kwargs of refiner='mine' must be among .*did you mean 'scale'\?$"):
        EnergySAC("MlpPolicy", "Pendulum-v1", **SMALL, policy_kwargs=kwargs)


def test_a_refiner_lists_an_estimator_of_one_s_own(monkeypatch):
    @dataclass(frozen=True)
    class Lists(Langevin):
        estimators: ClassVar[tuple] = ("any",)

    monkeypatch.setitem(ENTROPY_ESTIMATORS, "any", Estimator)
    model = EnergySAC("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(refiner=Lists))
    assert type(model.entropy_term.estimator) is Estimator and th.isfinite(model.policy.temperature)
