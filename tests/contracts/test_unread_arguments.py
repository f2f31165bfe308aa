"""What nothing would read is refused when the model is made, in one sentence that names it, its value and what it needs."""

import numpy as np
import pytest
from stable_baselines3.common.noise import NormalActionNoise

from sb3_energy import PGAC, EnergyMatching, EnergySAC
from sb3_energy.energies import QEnergy
from sb3_energy.energy_sac import MlpPolicy
from tests.fingerprints import Target

NONE = dict(refiner="none")
FIXED = dict(ent_coef=0.2)
OFTEN = dict(exploration_kwargs=dict(fraction=0.1))
NOISE = NormalActionNoise(np.zeros(2), np.ones(2))


class Own(QEnergy):
    """An energy of one's own."""


def policy(**kwargs):
    return dict(policy_kwargs=kwargs)


def training(**kwargs):
    return dict(potential_training_kwargs=kwargs)


def head_training(refiner, **kwargs):
    return dict(head_training_kwargs=kwargs) | policy(refiner=refiner)


OF_ENERGY_SAC = [
    (policy(**NONE) | dict(refine_target=True), "refine_target=True needs a refiner, and refiner='none' .*"),
    (policy(**NONE, box="reflect"), "box must be 'tanh' with refiner='none', which moves nothing, got 'reflect'"),
    (policy(**NONE, initial_particles="uniform"), "initial_particles must be 'base' with refiner='none', .*, got 'uniform'"),
    (policy(**NONE, initial_particles="mixture"), "initial_particles must be 'base' with refiner='none', .*, got 'mixture'"),
    (policy(**NONE, precondition=True), "precondition must be False with refiner='none', .*, got True"),
    (policy(**NONE, refiner_steps=2), "refiner_steps must be at most 0 with refiner='none', got 2"),
    (policy(**NONE, n_particles=2), "refiner='none' .* takes n_particles=1 .*, got 2 and None"),
    (policy(**NONE, trust_region=0.1), "refiner='none' .* trust_region=None, got 1 and 0.1"),
    (policy(**NONE, tolerance=0.1), "tolerance .* needs refiner_steps of at least 2, got 0 with refiner='none'"),
    (policy(**NONE, deterministic_particles=1), "deterministic_particles needs a refiner .*, got 1 with refiner='none'"),
    (policy(**NONE, head_kwargs={}), "head_kwargs needs a refiner that learns, .* with 'none'"),
    (policy(**NONE, energy_kwargs=dict(aggregate="min")), "energy and energy_kwargs need a refiner .*'min'.*refiner='none'"),
    (policy(**NONE, energy=Own), r"energy and energy_kwargs need a refiner that follows them, got Own\(.*\) with .*"),
    (policy(**NONE) | dict(distillation_coef=0.1), "distillation_coef=0.1 needs refined actions .*"),
    (policy(**NONE) | dict(update_particles=4), "update_particles=4 needs updates that refine: .*"),
    (policy(**NONE) | dict(head_training_kwargs=dict(n_points=2)), "head_training_kwargs needs a refiner that learns, .*"),
    (policy(**NONE) | dict(entropy_estimator="soft_value"), r"entropy_estimator must be one of \['base'\] .*'soft_value'"),
    (policy(refiner_steps=0), "refiner_steps must be at least 1 with MetropolisAdjustedLangevin, .*, got 0; .*"),
    (policy(refiner="mppi", refiner_steps=0), "refiner_steps must be at least 1 with MPPI, .*, got 0; .*"),
    (policy(refiner="mppi", trust_region=0.1), "trust_region needs a refiner that moves each particle alone, .*"),
    (policy(refiner="mppi", deterministic_particles=2), "deterministic_particles needs .*, got 2 with refiner='mppi'"),
    (policy(refiner="snis", tolerance=0.1), "tolerance .* needs refiner_steps of at least 2, got 1 with refiner='snis'"),
    (policy(refiner="flow", box="reflect"), "box must be 'tanh' with refiner='flow', .*, got 'reflect'"),
    (policy(refiner="flow", initial_particles="uniform"), "initial_particles must be 'base' with refiner='flow', .*"),
    (policy(refiner="langevin", head_kwargs=dict(net_arch=[4])), "head_kwargs needs a refiner that learns, .*"),
    (policy(refiner="mppi", refiner_kwargs=dict(warm_start=True), n_particles=1), "warm_start=True needs n_particles .*"),
    (policy(n_quantiles=5), "n_quantiles .* need critic='quantile', got 5 and None with critic='scalar'"),
    (policy(top_quantiles_to_drop_per_net=1), ".*top_quantiles_to_drop_per_net need critic='quantile', got None and 1 .*"),
    (
        policy(critic="quantile", target_aggregate="mean"),
        "target_aggregate needs critic='scalar' or 'categorical', .*, got 'mean'",
    ),
    (OFTEN | dict(exploration="none"), "exploration_kwargs needs an exploration, .* with 'none'"),
    (OFTEN | policy(**NONE, backbone="plain"), "exploration_kwargs needs an exploration, .* with 'none'"),
    (OFTEN | dict(action_noise=NOISE), "exploration_kwargs needs an exploration, .* with 'none'"),
    (policy(energy_kwargs=dict(coefficient=2.0)), "coefficient is used by aggregate='lcb' only, got 2.0 with 'mean'"),
    (policy(**NONE, use_sde=True), r"use_sde must be given to the algorithm, .*, got .*\(use_sde=True\) with use_sde=False"),
    (dict(update_particles=4), "update_particles=4 needs updates that refine: refine_target=True, .*"),
    (policy(refiner="flow") | dict(update_particles=4), "update_particles=4 needs .* a refiner that is no flow, .*"),
    (FIXED | dict(entropy_estimator="soft_value"), "entropy_estimator='soft_value' would not be asked: .*"),
    (
        FIXED | policy(refiner="flow") | dict(entropy_estimator_kwargs=dict(n_chains=3)),
        r"entropy_estimator_kwargs=\{'n_chains': 3\} would not be asked: .*",
    ),
    (
        head_training("autoregressive_derivative_free", replay_std=0.5),
        r"head_training_kwargs=dict\(replay_std=0.5\) needs refiner='flow' or 'mean_flow', got AutoregressiveDerivativeFree",
    ),
    (head_training("autoregressive_derivative_free", refined_fraction=0.5), r".*dict\(refined_fraction=0.5\) needs .*"),
    (head_training("autoregressive_derivative_free", step_size=0.5), r".*dict\(step_size=0.5\) needs refiner='flow' .*"),
    (
        head_training("flow", refined_fraction=0.0, step_size=0.5),
        r"head_training_kwargs=dict\(step_size=0.5\) needs refined candidates, got refined_fraction=0.0 of n_candidates=64",
    ),
]
OF_PGAC = [
    (
        dict(transport_coef=0.0, value_weight="relu"),
        "value_weight='relu' weighs the transport loss and needs transport_coef above 0, got 0.0",
    ),
    (
        dict(divergence_coef=0.0) | training(negative_steps=9),
        r"potential_training_kwargs=dict\(negative_steps=9\) needs negatives, and divergence_coef above 0, got 0.0",
    ),
    (
        dict(divergence_coef=0.0) | training(n_negatives=4),
        r".*dict\(n_negatives=4\) needs .* divergence_coef above 0, got 0.0",
    ),
    (dict(divergence_coef=0.0) | training(negative_step=0.1), r".*dict\(negative_step=0.1\) needs .* divergence_coef .*"),
    (dict(divergence_coef=0.0) | training(max_energy=1.0), r".*dict\(max_energy=1.0\) needs .* divergence_coef .*"),
    (dict(divergence_coef=0.0, persistent_chains=True), "persistent_chains=True needs chains, .*, got 0.0"),
    (
        dict(value_weight=None) | training(expectile=0.7),
        r"potential_training_kwargs=dict\(expectile=0.7\) needs value weights, got transport_coef=1.0 and value_weight=None",
    ),
    (dict(transport_coef=0.0) | training(largest_weight=3.0), r".*dict\(largest_weight=3.0\) needs .*transport_coef=0.0 .*"),
    (
        dict(transport_coef=0.0, divergence_coef=0.0) | training(positives="best"),
        r".*dict\(positives='best'\) needs a loss .*",
    ),
    (training(n_refined=0) | dict(update_particles=4), "update_particles=4 needs updates that refine: .*"),
    (
        policy(energy_kwargs=dict(guidance=0.0, normalize_q=False)),
        "normalize_q=False needs guidance above 0, without which Q is not asked, got 0.0",
    ),
    (policy(refiner="hmc", sampling_time=2.0), "sampling_time belongs to .*, got 2.0 with 'hmc'"),
    (policy(refiner="hmc", refiner_steps=0), "refiner_steps must be at least 1 with .*, got 0; .*"),
    (dict(use_sde=True), "use_sde=True .*"),
    (policy(use_sde=True), "use_sde must be given to the algorithm, .*"),
]


def make(algorithm, kwargs, env=None):
    return algorithm("MlpPolicy", Target() if env is None else env, **(dict(buffer_size=10, device="cpu") | kwargs))


def refuses(match, algorithm, kwargs, env=None):
    with pytest.raises(ValueError, match=f"^{match}$") as caught:
        make(algorithm, kwargs, env)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("kwargs, match", OF_ENERGY_SAC, ids=lambda value: str(value)[:80])
def test_energy_sac_refuses_what_nothing_would_read(kwargs, match):
    refuses(match, EnergySAC, kwargs)


@pytest.mark.parametrize("kwargs, match", OF_PGAC, ids=lambda value: str(value)[:80])
def test_pgac_refuses_what_nothing_would_read(kwargs, match):
    refuses(match, PGAC, kwargs)


def test_of_one_coordinate_there_is_no_prefix():
    """And so no network, and nothing that learns."""
    autoregressive = dict(refiner="autoregressive_derivative_free")
    refuses(r"head_kwargs=\{'net_arch': \[4\]\} needs actions of more than one coordinate, got one, .*", EnergySAC,
            policy(**autoregressive, head_kwargs=dict(net_arch=[4])), "Pendulum-v1")  # fmt: skip
    refuses(r"head_training_kwargs=dict\(n_points=2\) needs an action of more than one coordinate, got one, .*", EnergySAC,
            dict(head_training_kwargs=dict(n_points=2)) | policy(**autoregressive), "Pendulum-v1")  # fmt: skip
    make(EnergySAC, policy(**autoregressive), "Pendulum-v1")


def test_energy_matching_refuses_what_nothing_would_read():
    match = (
        r"^noise_fraction below 1 needs negatives, and divergence_coef or magnitude_coef above 0, got 0.5 with 0.0 and 0.0$"
    )
    with pytest.raises(ValueError, match=match):
        EnergyMatching(divergence_coef=0.0, magnitude_coef=0.0, noise_fraction=0.5)


SAYS_WHAT_HAPPENS = [
    (EnergySAC, policy(**NONE) | dict(refine_target=False, refine_exploration=False, update_particles=16)),
    (EnergySAC, policy(**NONE, refiner_steps=0, n_particles=1, initial_particles="base", precondition=False, box="tanh")),
    (EnergySAC, policy(**NONE, trust_region=None, tolerance=None, head_kwargs=None, energy="q", energy_kwargs={})),
    (EnergySAC, policy(**NONE) | dict(entropy_estimator="base", entropy_estimator_kwargs={}, distillation_coef=0.0)),
    (EnergySAC, policy(refiner="flow", initial_particles="base", precondition=False, box="tanh") | FIXED),
    (EnergySAC, FIXED | dict(entropy_estimator="base")),
    (EnergySAC, dict(exploration="none", exploration_kwargs={})),
    (EnergySAC, head_training("autoregressive_derivative_free", replay_std=0.2, refined_fraction=0.25, step_size=0.1)),
    (EnergySAC, dict(refine_target=True, update_particles=4)),
    (EnergySAC, dict(distillation_coef=0.1, update_particles=4)),
    (EnergySAC, dict(entropy_estimator="mixture", update_particles=4) | policy(refiner="langevin")),
    (PGAC, dict(transport_coef=0.0)),
    (PGAC, dict(transport_coef=0.0, value_weight="exp")),
    (PGAC, dict(transport_coef=0.0, value_weight=None)),
    (PGAC, dict(divergence_coef=0.0) | training(n_negatives=16, negative_steps=5, negative_step=0.05, max_energy=10.0)),
    (PGAC, dict(value_weight=None) | training(expectile=0.9, largest_weight=10.0)),
    (PGAC, dict(sde_sample_freq=-1, use_sde=False, use_sde_at_warmup=False, update_particles=16)),
    (PGAC, policy(log_std_init=-3, use_expln=False, clip_mean=2.0)),
    (PGAC, policy(energy_kwargs=dict(guidance=0.0, normalize_q=True))),
]


@pytest.mark.parametrize("algorithm, kwargs", SAYS_WHAT_HAPPENS, ids=lambda value: str(value)[:80])
def test_defaults_and_what_says_what_happens_are_accepted(algorithm, kwargs):
    make(algorithm, kwargs)


@pytest.mark.parametrize("refiner", ["none", "langevin"])
def test_what_was_accepted_is_loaded(tmp_path, refiner):
    """SB3 writes ``use_sde`` into the policy's arguments."""
    make(EnergySAC, policy(refiner=refiner)).save(tmp_path / "model")
    assert EnergySAC.load(tmp_path / "model", env=Target()).policy.refinement.is_identity == (refiner == "none")


def test_a_policy_alone_refuses_too():
    model = make(EnergySAC, {})
    with pytest.raises(ValueError, match=r"^box must be 'tanh' with refiner='none', which moves nothing, got 'reflect'$"):
        MlpPolicy(model.observation_space, model.action_space, model.lr_schedule, refiner="none", box="reflect")
