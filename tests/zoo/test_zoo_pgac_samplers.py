"""PGAC's search space: every combination gives arguments that PGAC accepts, and the converter gives the same ones."""

import itertools

import optuna
import pytest

pytest.importorskip("rl_zoo3")

from sb3_energy import PGAC
from sb3_energy.refiners import MetropolisAdjustedLangevin
from sb3_energy.zoo.samplers import AGGREGATES, convert_pgac_params, sample_pgac_params

NO_HER = {"using_her_replay_buffer": False, "her_kwargs": {}}
SAC_PARAMS = dict(one_minus_gamma=0.01, batch_size_pow=4, learning_rate=1e-3, train_freq=2, tau=0.01, net_arch="small")
POTENTIAL = dict(
    **dict(guidance=3.0, temperature=0.1, refiner_steps=6, transport_part=0.25, n_particles_pow=2),
    **dict(initial_particles="normal", aggregate="min", backbone="bro", divergence_coef=0.3, value_weight=None),
    **dict(policy_delay=4, refine_exploration=False, refine_target=True),
)
CORNERS = (
    dict(guidance=0.1, temperature=0.01, refiner_steps=4, transport_part=0.0, n_particles_pow=0, divergence_coef=0.01),
    dict(guidance=10.0, temperature=1.0, refiner_steps=16, transport_part=0.9, n_particles_pow=7, divergence_coef=1.0),
)


def combinations():
    turns = [itertools.cycle(values) for values in (CORNERS, AGGREGATES, (1, 2, 4), (True, False))]
    names = itertools.product(("base", "uniform", "mixture", "normal"), (None, "relu", "exp"), (True, False))
    for initial, weight, refine_target in names:
        corner, aggregate, delay, explores = (next(turn) for turn in turns)
        yield {
            **(SAC_PARAMS | corner),
            **dict(initial_particles=initial, value_weight=weight, refine_target=refine_target, backbone="plain"),
            **dict(aggregate=aggregate, policy_delay=delay, refine_exploration=explores),
        }


def build(hyperparams, ent_coef="auto") -> PGAC:
    return PGAC("MlpPolicy", "Pendulum-v1", buffer_size=100, learning_starts=10, ent_coef=ent_coef, **hyperparams)


@pytest.mark.parametrize("ent_coef", ["auto", 0.1])
def test_every_combination_is_accepted(ent_coef):
    for params in combinations():
        trial = optuna.trial.FixedTrial(params)
        hyperparams = sample_pgac_params(trial, 1, 1, dict(NO_HER))
        assert trial.params == params  # each is asked for, and nothing else
        assert convert_pgac_params(trial.params) == hyperparams
        build(hyperparams, ent_coef)


def test_what_is_sampled_is_what_the_model_has():
    model = build(convert_pgac_params(SAC_PARAMS | POTENTIAL))
    policy, refinement = model.policy, model.policy.refinement
    assert (policy.energy.guidance, policy.energy.temperature, policy.energy.aggregate) == (3.0, 0.1, "min")
    assert (refinement.n_steps, refinement.n_particles, policy.backbone) == (6, 4, "bro")
    base = policy.start_base(policy.obs_to_tensor(model.observation_space.sample())[0])
    assert base.mean.item() == 0.0 and base.std.item() == 1.0
    transport, chain = refinement.refiner.members
    assert transport.noise_scale == 0.0 and type(chain) is MetropolisAdjustedLangevin and refinement.refiner.steps == (2, 4)
    assert (model.divergence_coef, model.value_weight, model.policy_delay) == (0.3, None, 4)
    assert (model.refine_exploration, model.refine_target) == (False, True)
    assert (model.gamma, model.batch_size, policy.net_arch) == (0.99, 16, [64, 64])


@pytest.mark.parametrize("backbone, net_arch", [("layer_norm", [400, 300]), ("simba", [400, 400]), ("bro", [400, 400])])
def test_residual_backbones_get_one_width(backbone, net_arch):
    params = SAC_PARAMS | POTENTIAL | dict(net_arch="big", backbone=backbone)
    assert convert_pgac_params(params)["policy_kwargs"]["net_arch"] == net_arch


def test_random_trials_train():
    def objective(trial):
        hyperparams = sample_pgac_params(trial, 1, 1, dict(NO_HER))
        hyperparams["batch_size"] = 8
        model = build(hyperparams).learn(20)
        assert model._n_updates > 0
        return 0.0

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=3)
    for trial in study.trials:
        assert trial.state == optuna.trial.TrialState.COMPLETE
        convert_pgac_params(trial.params)


def test_hindsight_replay_is_sampled_and_converted():
    params = SAC_PARAMS | POTENTIAL | dict(n_sampled_goal=3, goal_selection_strategy="final")
    trial = optuna.trial.FixedTrial(params)
    hyperparams = sample_pgac_params(trial, 1, 1, {"using_her_replay_buffer": True, "her_kwargs": {}})
    assert hyperparams["replay_buffer_kwargs"] == dict(n_sampled_goal=3, goal_selection_strategy="final")
    assert convert_pgac_params(trial.params) == hyperparams
