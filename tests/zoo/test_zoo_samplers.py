"""The search space: every branch gives arguments that EnergySAC accepts, and the converter gives the same ones."""

import itertools

import optuna
import pytest

pytest.importorskip("rl_zoo3")

from sb3_energy import EnergySAC
from sb3_energy.refiners import REFINERS
from sb3_energy.zoo.samplers import convert_energy_sac_params, sample_energy_sac_params

NO_HER = {"using_her_replay_buffer": False, "her_kwargs": {}}
SAC_PARAMS = dict(one_minus_gamma=0.01, batch_size_pow=4, learning_rate=1e-3, train_freq=2, tau=0.01, net_arch="small")
OTHERS = {
    "none": {},
    "langevin": dict(langevin_steps=2, langevin_particles_pow=0, langevin_step_size=0.01),
    "mala": dict(mala_steps=2, mala_particles_pow=0, mala_step_size=0.1),
    "hmc": dict(hmc_steps=1, hmc_particles_pow=1, hmc_step_size=0.1),
    "svgd": dict(svgd_steps=2, svgd_particles_pow=2, svgd_step_size=0.1),
    "derivative_free": dict(derivative_free_steps=2, derivative_free_particles_pow=4, derivative_free_noise_std=0.3),
    "annealed_gradient": dict(annealed_gradient_steps=5, annealed_gradient_particles_pow=1, annealed_gradient_noise_scale=0.5),
    "mppi": dict(mppi_steps=2, mppi_particles_pow=4),
    "autoregressive_derivative_free": dict(
        autoregressive_derivative_free_steps=1,
        autoregressive_derivative_free_particles_pow=4,
        autoregressive_derivative_free_noise_std=0.3,
    ),
    "flow": dict(flow_steps=2, flow_particles_pow=1),
    "mean_flow": dict(mean_flow_steps=1, mean_flow_particles_pow=0),
    "snis": dict(snis_particles_pow=3),
    "smc": dict(smc_steps=2, smc_particles_pow=3),
}


def branches():
    for refiner, refine_target in itertools.product(REFINERS, (True, False)):
        estimators = [name for name in REFINERS[refiner].estimators if name not in ("mixture", "path", "trace")]
        for estimator, initial in itertools.product(estimators, ("base", "uniform", "mixture")):
            yield {
                **SAC_PARAMS,
                **OTHERS[refiner],
                **dict(refiner=refiner, backbone="layer_norm", initial_particles=initial, box="reflect", aggregate="lcb"),
                **{"refine_exploration": True, "refine_target": refine_target, f"{refiner}_entropy": estimator},
            }


def build(hyperparams, ent_coef):
    return EnergySAC("MlpPolicy", "Pendulum-v1", buffer_size=100, learning_starts=10, ent_coef=ent_coef, **hyperparams)


@pytest.mark.parametrize("ent_coef", ["auto", 0.1])
def test_every_branch_is_accepted(ent_coef):
    seen = set()
    for params in branches():
        trial = optuna.trial.FixedTrial(params)
        hyperparams = sample_energy_sac_params(trial, 1, 1, dict(NO_HER))
        assert convert_energy_sac_params(trial.params) == hyperparams
        if str(hyperparams) not in seen:
            seen.add(str(hyperparams))
            model = build(hyperparams, ent_coef)
            assert model.policy.refinement.is_identity == (params["refiner"] == "none")
    # initial particles x (no refined target, or its estimators), flows without the first, and nothing of it without a refiner
    n_starts = {name: 1 if name in ("flow", "mean_flow") else 3 for name in set(REFINERS) - {"none"}}
    n_estimators = {name: len(set(REFINERS[name].estimators) - {"mixture", "path", "trace"}) for name in n_starts}
    assert len(seen) == sum(n_starts[name] * (1 + n_estimators[name]) for name in n_starts) + 1


def test_what_is_sampled_is_what_the_model_has():
    params = dict(
        **SAC_PARAMS,
        **dict(refiner="langevin", langevin_steps=4, langevin_particles_pow=3, langevin_step_size=0.02, backbone="bro"),
        **dict(initial_particles="uniform", aggregate="min", refine_exploration=False, refine_target=True),
        langevin_entropy="soft_value",
    )
    model = build(convert_energy_sac_params(params), "auto")
    refinement = model.policy.refinement
    assert (refinement.n_steps, refinement.n_particles, refinement.refiner.step_size) == (4, 8, 0.02)
    assert (refinement.initial_particles, model.policy.energy.aggregate, model.policy.backbone) == ("uniform", "min", "bro")
    assert (model.refine_exploration, model.refine_target, model.entropy_estimator) == (False, True, "soft_value")
    assert (model.gamma, model.batch_size, model.policy.net_arch) == (0.99, 16, [64, 64])


@pytest.mark.parametrize("backbone, net_arch", [("layer_norm", [400, 300]), ("simba", [400, 400]), ("bro", [400, 400])])
def test_residual_backbones_get_one_width(backbone, net_arch):
    params = {**SAC_PARAMS, "net_arch": "big", "refiner": "none", "backbone": backbone}
    assert build(convert_energy_sac_params(params), "auto").policy.net_arch == net_arch


def test_random_trials_train():
    def objective(trial):
        hyperparams = sample_energy_sac_params(trial, 1, 1, dict(NO_HER))
        hyperparams["batch_size"] = 8
        build(hyperparams, "auto").learn(20)
        return 0.0

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=6)
    assert len({trial.params["refiner"] for trial in study.trials}) > 1
    for trial in study.trials:
        assert trial.state == optuna.trial.TrialState.COMPLETE
        convert_energy_sac_params(trial.params)


def test_hindsight_replay_is_sampled_and_converted():
    params = dict(**SAC_PARAMS, refiner="none", backbone="plain", n_sampled_goal=3, goal_selection_strategy="final")
    her = {"using_her_replay_buffer": True, "her_kwargs": {}}
    trial = optuna.trial.FixedTrial(params)
    hyperparams = sample_energy_sac_params(trial, 1, 1, her)
    assert hyperparams["replay_buffer_kwargs"] == dict(n_sampled_goal=3, goal_selection_strategy="final")
    assert convert_energy_sac_params(trial.params) == hyperparams


def test_a_list_of_refiners_is_replaced_by_what_is_sampled():
    """The zoo hands the arguments of a file to the search and takes the sampled ones in their place."""
    sampled = convert_energy_sac_params({**SAC_PARAMS, **OTHERS["mala"], "refiner": "mala", "backbone": "plain"})
    given = dict(policy_kwargs=dict(refiner=["flow", "mala"], refiner_steps=[2, 3]))
    model = build({**given, **sampled}, "auto")
    assert type(model.policy.refinement.refiner) is REFINERS["mala"]


@pytest.mark.parametrize("critic, joint_batch, actor_delay", [("scalar", True, 2), ("categorical", False, 1)])
def test_flash_has_parameters_of_its_own(critic, joint_batch, actor_delay):
    own = dict(critic=critic, joint_batch=joint_batch, actor_delay=actor_delay)
    trial = optuna.trial.FixedTrial({**SAC_PARAMS, "refiner": "none", "backbone": "flash"} | own)
    hyperparams = sample_energy_sac_params(trial, 1, 1, dict(NO_HER))
    assert convert_energy_sac_params(trial.params) == hyperparams
    model = build(hyperparams, "auto")
    assert (model.joint_batch, model.actor_delay, model.policy.arguments.critic) == (joint_batch, actor_delay, critic)
    assert model.critic.value_scale is not None and model.policy.backbone == "flash"
