"""For every argument a value that makes a difference, or the reason why none can. Names are found by introspection."""

import dataclasses
import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_energy import PGAC, EnergySAC
from sb3_energy.energies import ENERGIES
from sb3_energy.entropy import ENTROPY_ESTIMATORS
from sb3_energy.offline.energy_matching import EnergyMatching
from sb3_energy.pgac.arguments import POTENTIAL_ARGUMENTS
from sb3_energy.pgac.potential_policy import PotentialPolicy
from sb3_energy.pgac.potential_training import PotentialTraining
from sb3_energy.policies.heads import HEAD_ARGUMENTS, HeadTraining
from sb3_energy.policies.refined_policy import RefinedPolicy
from sb3_energy.refiners import REFINERS
from tests.fingerprints import Pictures, Target

Arguments = dict[str, Any]


class Case(NamedTuple):
    """
    :param value: of the argument
    :param beside: other arguments of the algorithm, with and without it
    :param env: to learn from
    """

    value: Any
    beside: Mapping[str, Any] = MappingProxyType({})
    env: type = Target


class Linear(BaseFeaturesExtractor):
    """Learns, so that to share it makes a difference."""

    def __init__(self, observation_space, features_dim=4):
        super().__init__(observation_space, features_dim)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(observation_space.shape)), features_dim), nn.Tanh())

    def forward(self, observations):
        return self.layers(observations)


class Doubled(ReplayBuffer):
    """Other rewards than SB3's buffer gives."""

    def _get_samples(self, batch_inds, env=None):
        found = super()._get_samples(batch_inds, env)
        return found._replace(rewards=2.0 * found.rewards)


def policy(**kwargs) -> Arguments:
    return dict(policy_kwargs=kwargs)


SMALL = policy(n_particles=4, refiner_steps=2)
NONE = policy(refiner="none")
GSDE = dict(use_sde=True) | NONE
LEARNS = policy(features_extractor_class=Linear)
TARGETS = dict(refine_target=True) | SMALL
TRAINING = dict(n_observations=4, n_candidates=26, n_refined=2, top_k=3, n_negatives=4, negative_steps=2)
POTENTIAL = dict(potential_training_kwargs=TRAINING) | SMALL
UNGUIDED = dict(potential_training_kwargs=TRAINING, policy_kwargs=dict(n_particles=4, energy_kwargs=dict(guidance=0.0)))
FLOW = policy(refiner="flow", refiner_steps=1)
MEAN_FLOW = policy(refiner="mean_flow")

OF_SAC = dict(
    learning_rate=Case(1e-2, NONE),
    buffer_size=Case(30, NONE),
    learning_starts=Case(40, NONE),
    batch_size=Case(8, NONE),
    tau=Case(0.5, NONE),
    gamma=Case(0.5, NONE),
    train_freq=Case(3, NONE),
    gradient_steps=Case(2, NONE),
    action_noise=Case(NormalActionNoise(np.zeros(2), 0.3 * np.ones(2)), NONE),
    replay_buffer_class=Case(Doubled, NONE),
    replay_buffer_kwargs=Case(dict(handle_timeout_termination=False), NONE),
    n_steps=Case(3, NONE),
    ent_coef=Case(0.3, NONE),
    target_update_interval=Case(2, NONE | dict(gradient_steps=4)),
    target_entropy=Case(-5.0, NONE),
    use_sde=Case(True, NONE),
    sde_sample_freq=Case(4, GSDE),
    use_sde_at_warmup=Case(True, GSDE),
    stats_window_size=Case(1, NONE),
    policy_kwargs=Case(dict(net_arch=[4])),
    seed=Case(7, NONE),
)
WITHOUT_EFFECT_OF_SAC = dict(
    optimize_memory_usage="where transitions are kept",
    tensorboard_log="where the log goes",
    verbose="what is printed",
    device="where it runs",
    _init_setup_model="SB3's own, when a model is loaded",
)
OF_ENERGY_SAC = dict(
    refine_exploration=Case(False, SMALL),
    exploration=Case("none", NONE),
    exploration_kwargs=Case(dict(fraction=0.5), NONE | dict(exploration="held_actions")),
    refine_target=Case(True, SMALL),
    entropy_estimator=Case("soft_value", SMALL),
    entropy_estimator_kwargs=Case(dict(n_proposals=3), SMALL | dict(entropy_estimator="soft_value")),
    update_particles=Case(2, TARGETS),
    distillation_coef=Case(0.3, SMALL),
    actor_delay=Case(2, NONE),
    joint_batch=Case(True, policy(refiner="none", backbone="flash")),
    head_training_kwargs=Case(dict(n_points=2), FLOW),
    update=Case("reference", NONE),
    fast_matmul=Case(True, NONE | dict(fast_matmul=False)),  # ``None`` is what is faster here
)
WITHOUT_EFFECT_OF_ENERGY_SAC = dict(capture="speed only; refused on a CPU, or takes a minute to compile")
OF_PGAC = dict(
    transport_coef=Case(0.3, POTENTIAL),
    divergence_coef=Case(0.7, POTENTIAL),
    value_weight=Case("relu", POTENTIAL),
    matching_coef=Case(0.5, UNGUIDED),
    end_to_end_coef=Case(0.5, POTENTIAL),
    policy_delay=Case(2, POTENTIAL),
    persistent_chains=Case(True, POTENTIAL | dict(policy_delay=1)),  # so often that a transition is seen twice
    potential_training_kwargs=Case(dict(top_k=10), SMALL),
)
OF_POLICIES = dict(
    net_arch=Case([4], NONE),
    activation_fn=Case(nn.Tanh, NONE),
    log_std_init=Case(0.0, GSDE),
    use_expln=Case(True, dict(use_sde=True) | policy(refiner="none", log_std_init=1.0)),
    clip_mean=Case(0.01, GSDE),
    features_extractor_class=Case(Linear, NONE),
    features_extractor_kwargs=Case(dict(features_dim=2), LEARNS),
    normalize_images=Case(False, LEARNS, Pictures),
    optimizer_class=Case(th.optim.SGD, NONE),
    optimizer_kwargs=Case(dict(eps=0.1), NONE),
    n_critics=Case(1, NONE),
    share_features_extractor=Case(True, LEARNS),
    refiner=Case("langevin"),
    refiner_kwargs=Case(dict(step_size=0.5), SMALL),
    refiner_steps=Case(1),
    n_particles=Case(2),
    initial_particles=Case("uniform", SMALL),
    precondition=Case(False, SMALL),
    head_kwargs=Case(dict(net_arch=[4]), FLOW),
    energy=Case("own", SMALL),
    energy_kwargs=Case(dict(aggregate="min"), SMALL),
    trust_region=Case(0.1, SMALL),
    box=Case("reflect", SMALL),
    tolerance=Case(10.0, SMALL),
    deterministic_particles=Case(1, policy(n_particles=4, refiner_steps=2, log_std_init=-3)),
    backbone=Case("bro", NONE),
    log_std_range=Case((-2.0, 1.0), NONE),
    critic=Case("quantile", NONE),
    target_aggregate=Case("min", NONE),
    value_scale=Case("none", NONE),
    n_quantiles=Case(7, policy(refiner="none", critic="quantile")),
    top_quantiles_to_drop_per_net=Case(0, policy(refiner="none", critic="quantile")),
    n_bins=Case(7, policy(refiner="none", critic="categorical", support=(-5.0, 5.0))),
    support=Case((-9.0, 9.0), policy(refiner="none", critic="categorical", support=(-5.0, 5.0))),
)
WITHOUT_EFFECT_OF_POLICIES = dict(use_sde="the algorithm's, which hands its own on")
OF_POTENTIAL_POLICIES = dict(
    energy=Case("potential", POTENTIAL),
    energy_kwargs=Case(dict(guidance=3.0), POTENTIAL),
    precondition=Case(True, POTENTIAL),
    box=Case("tanh", POTENTIAL),
    initial_particles=Case("normal", POTENTIAL),
    refiner_kwargs=Case(dict(max_displacement=0.01), POTENTIAL),
    trust_region=Case(0.1, POTENTIAL),
    sampling_time=Case(2.0, POTENTIAL),
    transport_time=Case(0.5, POTENTIAL | policy(n_particles=4, refiner_steps=4)),
    potential_kwargs=Case(dict(net_arch=[4]), POTENTIAL),
)
OF_REFINERS: dict[str, dict[str, Case]] = {
    "none": {},
    "langevin": dict(
        step_size=Case(0.3), noise_scale=Case(0.1), max_grad_norm=Case(0.01), max_displacement=Case(1e-3),
    ),
    "mala": dict(
        step_size=Case(0.9), max_grad_norm=Case(0.01), max_displacement=Case(1e-3), target_acceptance=Case(0.4),
    ),
    "hmc": dict(
        step_size=Case(0.9), n_leapfrogs=Case(2), max_grad_norm=Case(0.01), max_displacement=Case(1e-3),
        target_acceptance=Case(0.4),
    ),
    "svgd": dict(
        step_size=Case(0.1), bandwidth=Case(0.3), max_grad_norm=Case(0.01), max_displacement=Case(1e-3), shuffle=Case(False),
        max_curvature=Case(0.01),
        max_step_norm=Case(0.01),
    ),
    "mppi": dict(
        n_elites=Case(1), temperature=Case(0.1), min_std=Case(0.5), max_std=Case(0.06), quasi_random=Case(True),
        warm_start=Case(True),
    ),
    "annealed_gradient": dict(step_size=Case(0.3), noise_scale=Case(0.1), max_displacement=Case(1e-3)),
    "derivative_free": dict(noise_std=Case(1.0), noise_decay=Case(0.1), quasi_random=Case(True)),
    "autoregressive_derivative_free": dict(noise_std=Case(1.0), noise_decay=Case(0.1), quasi_random=Case(True)),
    "flow": dict(solver=Case("euler", policy(refiner="flow", refiner_steps=2) | dict(learning_rate=1e-2))),
    "mean_flow": {},
    "snis": {},
    "smc": dict(
        ladder=Case("fixed"), ess_fraction=Case(0.9), moves=Case(1), groups=Case(1), step_size=Case(0.1),
        target_acceptance=Case(0.3),
    ),
}  # fmt: skip
WITHOUT_EFFECT_OF_REFINERS = dict(differentiable="for a loss of your own that calls refine; a policy acts without a graph")
STEPS_OF_REFINERS = dict(mppi=3, derivative_free=3, autoregressive_derivative_free=3, hmc=2)
OF_ENERGIES: dict[str, dict[str, Case]] = {
    "q": dict(aggregate=Case("min"), coefficient=Case(3.0)),
    "potential": dict(temperature=Case(0.3)),
    "guided_potential": dict(
        guidance=Case(3.0), temperature=Case(0.3), normalize_q=Case(False), aggregate=Case("min"), coefficient=Case(3.0)
    ),
    "composite": dict(terms=Case([("q", dict(aggregate="min"))]), weights=Case((3.0,))),
}
OF_ESTIMATORS: dict[str, dict[str, Case]] = {
    "base": {},
    "soft_value": dict(n_proposals=Case(3, SMALL), uniform_fraction=Case(0.1, SMALL)),
    "trace": dict(
        self_term=Case(True, policy(refiner="svgd", refiner_steps=2)),
        determinant=Case(True, policy(refiner="svgd", refiner_steps=2)),
    ),
    "mixture": dict(n_chains=Case(3, policy(refiner="langevin", n_particles=4, refiner_steps=2))),
    "path": dict(n_chains=Case(3, policy(refiner="langevin", n_particles=1, refiner_steps=2))),
    "divergence": dict(
        method=Case("hutchinson", policy(refiner="mean_flow") | dict(learning_rate=1e-2)),
        n_probes=Case(3, FLOW | dict(entropy_estimator_kwargs=dict(method="hutchinson"), learning_rate=1e-2)),
        n_chains=Case(3, FLOW),
    ),
    "smc": dict(n_particles=Case(3, SMALL), n_steps=Case(1, TARGETS | dict(ent_coef=1e-3)), moves=Case(1, SMALL)),
}
OF_HEADS: dict[str, dict[str, Case]] = {
    "velocity": dict(
        net_arch=Case([4]), activation_fn=Case(nn.Tanh), backbone=Case("plain"), gated=Case(True), n_frequencies=Case(1)
    ),
    "average_velocity": dict(
        net_arch=Case([4]), activation_fn=Case(nn.Tanh), backbone=Case("plain"), gated=Case(True), n_frequencies=Case(1),
        same_fraction=Case(0.7),
    ),
    "prefix_energy": dict(net_arch=Case([4]), activation_fn=Case(nn.Tanh), backbone=Case("plain")),
}  # fmt: skip
OF_HEAD_TRAINING = dict(
    n_candidates=Case(16, FLOW),
    refined_fraction=Case(0.0, FLOW),
    replay_std=Case(0.5, FLOW),
    step_size=Case(0.5, FLOW),
    n_observations=Case(4, FLOW),
    n_points=Case(2, FLOW),
)
OF_POTENTIAL_TRAINING = dict(
    n_observations=Case(6),
    n_candidates=Case(30),
    top_k=Case(4),
    positives=Case("best"),
    n_refined=Case(3),
    n_negatives=Case(6),
    negative_steps=Case(3),
    negative_step=Case(0.2),
    max_energy=Case(1e-3),
    expectile=Case(0.6),
    largest_weight=Case(0.5),
)
OF_POTENTIALS = dict(
    net_arch=Case([4]),
    activation_fn=Case(nn.GELU),
    layer_norm=Case(True),
    spectral_norm=Case(True),
    input_gain=Case(3.0),
)


def own_arguments(cls: type, above: type | None = None) -> list[str]:
    """
    :param cls: a class
    :param above: where to stop among its parents (``None``: at the first whose constructor takes no further keywords)
    :return: names of what its constructor takes, and those that it hands on
    """
    names: list[str] = []
    for parent in cls.__mro__:
        if parent is above:
            break
        if "__init__" not in vars(parent):
            continue
        parameters = inspect.signature(parent.__init__).parameters  # type: ignore[misc]
        names += [name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            break
    return [name for name in dict.fromkeys(names) if name not in GIVEN]


GIVEN = ("self", "policy", "env", "observation_space", "action_space", "lr_schedule")
"""What an argument is an argument beside, and what the algorithm hands to its policy."""


def field_names(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls) if field.init]


def found_arguments() -> set[tuple[str, str]]:
    """
    :return: every argument there is, as (of what, name)
    """
    places = {
        "EnergySAC": own_arguments(EnergySAC),
        "PGAC": own_arguments(PGAC),
        "RefinedPolicy": own_arguments(RefinedPolicy),
        "PotentialPolicy": own_arguments(PotentialPolicy),
        "EnergyMatching": own_arguments(EnergyMatching),
        "head_training": field_names(HeadTraining),
        "potential_training": field_names(PotentialTraining),
        "potential_kwargs": list(POTENTIAL_ARGUMENTS),
    }
    places |= {f"refiner {name}": field_names(cls) for name, cls in REFINERS.items()}
    places |= {f"energy {name}": field_names(cls) for name, cls in ENERGIES.items()}
    places |= {f"estimator {name}": field_names(cls) for name, cls in ENTROPY_ESTIMATORS.items()}
    places |= {f"head {name}": list(names) for name, names in HEAD_ARGUMENTS.items()}
    return {(place, name) for place, names in places.items() for name in names}
