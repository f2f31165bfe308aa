"""Random configurations of the algorithms, drawn from registries and signatures, so that what is added there is drawn too."""

import dataclasses
import inspect
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from hypothesis import strategies as st
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from stable_baselines3.her import HerReplayBuffer
from torch import nn

from sb3_energy import PGAC, EnergySAC
from sb3_energy.energies import ENERGIES
from sb3_energy.entropy import ENTROPY_ESTIMATORS
from sb3_energy.networks import BACKBONES
from sb3_energy.pgac.arguments import POTENTIAL_ARGUMENTS
from sb3_energy.pgac.potential_training import PotentialTraining
from sb3_energy.policies.heads import HEAD_ARGUMENTS, HeadTraining
from sb3_energy.refiners import REFINERS
from sb3_energy.schedules import Cosine, LinearRamp
from tests.batches import ALONE
from tests.contracts.argument_cases import own_arguments

Arguments = dict[str, Any]


class Cheap(gym.Env):
    """Nothing to learn, in a space of choice."""

    def __init__(self, kind: str, n_actions: int):
        box = spaces.Box(-1.0, 1.0, (3,), np.float32)
        self.kind = kind
        self.action_space = spaces.Box(-2.0, 1.0, (n_actions,), np.float32)
        self.observation_space = {
            "box": box,
            "dict": spaces.Dict(first=box, second=spaces.Discrete(3)),
            "image": spaces.Box(0, 255, (36, 36, 1), np.uint8),
            "goal": spaces.Dict(observation=box, achieved_goal=box, desired_goal=box),
        }[kind]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), self.compute_reward(action, 0.0, None), False, False, {}

    def compute_reward(self, achieved, desired, info):
        return -np.square(np.asarray(achieved) - desired).sum(axis=-1)


class Small(BaseFeaturesExtractor):
    """Of anything, in few parameters."""

    def __init__(self, observation_space, features_dim=5):
        super().__init__(observation_space, features_dim)
        parts = observation_space.spaces.values() if isinstance(observation_space, spaces.Dict) else [observation_space]
        n_inputs = sum(spaces.utils.flatdim(part) for part in parts)
        self.layer = nn.Linear(n_inputs, features_dim)

    def forward(self, observations):
        parts = observations.values() if isinstance(observations, dict) else [observations]
        return th.tanh(self.layer(th.cat([part.flatten(1) for part in parts], dim=1)))


def make_env(kind: str, n_actions: int, n_envs: int) -> VecEnv:
    """
    :param kind: of the observation space
    :param n_actions: coordinates of an action
    :param n_envs: how many
    :return: environments whose episodes are cut off after ten steps
    """
    env = DummyVecEnv([lambda: TimeLimit(Cheap(kind, n_actions), 10) for _ in range(n_envs)])
    env.seed(0)
    return env


def falling(remaining: float) -> float:
    """
    :param remaining: part of the training
    :return: a learning rate
    """
    return 3e-3 * remaining


@dataclasses.dataclass(frozen=True)
class OwnEnergy:
    """An energy of one's own."""

    weight: float = 1.0

    def bind(self, networks, obs):
        features = networks.critic.encode(obs)
        return lambda actions: self.weight * networks.critic.evaluate(features, actions).min(0).values.neg()


VALUES: dict[str, st.SearchStrategy] = dict(
    learning_rate=st.sampled_from([1e-4, 1e-2, falling]),
    buffer_size=st.sampled_from([40, 100]),
    learning_starts=st.sampled_from([0, 5, 30, 60]),
    batch_size=st.sampled_from([1, 4, 16]),
    tau=st.sampled_from([0.0, 0.01, 1.0]),
    gamma=st.sampled_from([0.0, 0.9, 1.0]),
    train_freq=st.sampled_from([1, 3, (2, "step"), (1, "episode")]),
    gradient_steps=st.sampled_from([1, 2, -1, 0]),
    action_noise=st.sampled_from([None, "normal", "ou"]),
    optimize_memory_usage=st.booleans(),
    n_steps=st.integers(1, 3),
    ent_coef=st.sampled_from(["auto", "auto_0.1", 0.2, 0.0, 1]),
    target_update_interval=st.integers(1, 3),
    target_entropy=st.sampled_from(["auto", -1.0, 3]),
    use_sde=st.booleans(),
    sde_sample_freq=st.sampled_from([-1, 4]),
    use_sde_at_warmup=st.booleans(),
    stats_window_size=st.sampled_from([1, 10]),
    entropy_estimator=st.sampled_from([None, *sorted(ENTROPY_ESTIMATORS)]),
    update_particles=st.sampled_from([1, 4, 16]),
    distillation_coef=st.sampled_from([0.0, 0.3]),
    update=st.sampled_from(["lean", "reference"]),
    fast_matmul=st.sampled_from([None, False]),
    transport_coef=st.sampled_from([0.0, 1.0]),
    divergence_coef=st.sampled_from([0.0, 0.3]),
    value_weight=st.sampled_from([None, "relu", "exp"]),
    matching_coef=st.sampled_from([0.0, 0.3]),
    end_to_end_coef=st.sampled_from([0.0, 0.3]),
    policy_delay=st.integers(1, 3),
    activation_fn=st.sampled_from([None, nn.Tanh, nn.ReLU, nn.GELU]),
    log_std_init=st.sampled_from([-3, -1.0]),
    clip_mean=st.sampled_from([2.0, 0.5]),
    features_extractor_class=st.sampled_from([None, Small]),
    optimizer_class=st.sampled_from([th.optim.Adam, th.optim.AdamW, th.optim.RMSprop]),
    optimizer_kwargs=st.sampled_from([None, dict(weight_decay=1e-3), dict(eps=1e-4)]),
    n_critics=st.integers(1, 3),
    refiner_steps=st.sampled_from([None, 0, 1, 2, 3]),
    n_particles=st.sampled_from([None, 1, 2, 5]),
    initial_particles=st.sampled_from([None, "base", "uniform", "mixture", "normal"]),
    precondition=st.sampled_from([None, True, False]),
    energy=st.sampled_from([*sorted(ENERGIES), OwnEnergy]),
    trust_region=st.sampled_from([None, 0.1]),
    box=st.sampled_from(["tanh", "reflect"]),
    tolerance=st.sampled_from([None, 0.0, 0.1]),
    deterministic_particles=st.sampled_from([None, 1, 3]),
    backbone=st.sampled_from(sorted(BACKBONES)),
    critic=st.sampled_from(["scalar", "quantile", "categorical"]),
    n_bins=st.sampled_from([None, 5]),
    log_std_range=st.sampled_from([None, (-10.0, 2.0)]),
    target_aggregate=st.sampled_from([None, "min", "mean"]),
    value_scale=st.sampled_from([None, "auto", "none"]),
    exploration=st.sampled_from([None, "none", "held_actions", "held_noise"]),
    exploration_kwargs=st.none(),
    support=st.sampled_from([None, (-5.0, 5.0)]),
    n_quantiles=st.sampled_from([None, 5]),
    top_quantiles_to_drop_per_net=st.sampled_from([None, 0, 1]),
    sampling_time=st.sampled_from([None, 0.5, 2.0]),
    transport_time=st.sampled_from([None, 0.0, 1.0]),
    step_size=st.sampled_from([0.01, 0.2, LinearRamp(0.3, 0.01), Cosine(0.1, 0.01)]),
    noise_scale=st.sampled_from([0.0, 0.5, 1.0, LinearRamp(0.0, 1.0)]),
    max_grad_norm=st.sampled_from([None, 0.5]),
    max_displacement=st.sampled_from([None, 0.1]),
    target_acceptance=st.sampled_from([None, 0.5]),
    bandwidth=st.sampled_from([None, 0.5]),
    max_step_norm=st.sampled_from([None, 0.5]),
    n_elites=st.sampled_from([None, 1, 3]),
    solver=st.sampled_from(["euler", "heun", "rk4"]),
    aggregate=st.sampled_from(["mean", "min", "lcb"]),
    terms=st.sampled_from([["q"], ["q", ("q", dict(aggregate="min"))], ["guided_potential"]]),
    weights=st.sampled_from([None, [2.0], [1.0, -0.5]]),
    coefficient=st.sampled_from([None, 0.5]),
    method=st.sampled_from(["exact", "hutchinson", "learned"]),
    n_probes=st.sampled_from([None, 2]),
    n_chains=st.integers(1, 4),
    n_candidates=st.sampled_from([24, 64]),
    n_negatives=st.sampled_from([2, 6]),
    top_k=st.sampled_from([3, 12]),
    positives=st.sampled_from(["gibbs", "best"]),
    replay_std=st.sampled_from([None, 0.5]),
    expectile=st.sampled_from([0.5, 0.9]),
    net_arch=st.sampled_from([[6], [6, 6], [6, 4]]),
    backbone_of_head=st.sampled_from([None, *ALONE]),
    same_fraction=st.sampled_from([0.25, 0.9]),
    input_gain=st.sampled_from([1.0, 4.0]),
)
"""By name; what is not here is drawn from the type of its default, see :func:`value_of`."""

NOT_DRAWN = (
    *("_init_setup_model", "device", "verbose", "tensorboard_log", "capture", "seed", "policy_kwargs", "persistent_chains"),
    *(
        "replay_buffer_class",
        "replay_buffer_kwargs",
        "entropy_estimator_kwargs",
        "head_training_kwargs",
        "refiner",
        "net_arch",
    ),
    *("potential_training_kwargs", "refiner_kwargs", "energy_kwargs", "head_kwargs", "potential_kwargs", "normalize_images"),
    "features_extractor_kwargs",
)
"""What does not train, or is drawn together with something else."""


def defaults_of(cls: type) -> Arguments:
    """
    :param cls: a class
    :return: the default of each argument that its constructor takes or hands on
    """
    found: Arguments = {}
    for parent in reversed(cls.__mro__):
        if "__init__" in vars(parent):
            parameters = inspect.signature(parent.__init__).parameters  # type: ignore[misc]
            found |= {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    return {name: found[name] for name in own_arguments(cls) if name in found}


def value_of(name: str, default: Any) -> st.SearchStrategy:
    """
    :param name: of an argument
    :param default: its own
    :return: values of it
    """
    if name in VALUES:
        return VALUES[name]
    if isinstance(default, bool):
        return st.booleans()
    if isinstance(default, int):
        return st.integers(1, 4)
    if isinstance(default, float):
        return st.sampled_from([default, 0.5 * default, 2.0 * default])
    return st.just(default)


@st.composite
def some(draw: Any, defaults: Arguments, most: int) -> Arguments:
    """
    :param draw: of hypothesis
    :param defaults: by name
    :param most: so many of them
    :return: values for some of them
    """
    names = sorted(set(defaults) - set(NOT_DRAWN))
    chosen = draw(st.lists(st.sampled_from(names), max_size=most, unique=True)) if names else []
    return {name: draw(value_of(name, defaults[name])) for name in chosen}


def fields_of(cls: type) -> Arguments:
    """
    :param cls: a dataclass
    :return: its fields and their defaults
    """
    return {field.name: field.default for field in dataclasses.fields(cls) if field.init}


@st.composite
def parts(draw: Any, algorithm: type, policy: Arguments) -> tuple[Arguments, Arguments]:
    """Arguments of what policy and algorithm are made of, where these are chosen already."""
    of_policy: Arguments = {}
    of_algorithm: Arguments = {}
    chosen = policy.get("refiner", "langevin")
    classes = [REFINERS[name] for name in (chosen if isinstance(chosen, list) else [chosen])]
    each = [draw(some(fields_of(cls), 2)) for cls in classes]
    of_policy["refiner_kwargs"] = each if isinstance(chosen, list) else each[0]
    head = next((cls.head for cls in classes if getattr(cls, "head", None) is not None), None)
    if head is not None and draw(st.booleans()):
        names = dict.fromkeys(HEAD_ARGUMENTS[head])
        drawn = draw(some(names | dict(gated=False, n_frequencies=4), 2))
        of_policy["head_kwargs"] = {name: value for name, value in drawn.items() if name in names} | dict(net_arch=[6])
    if head is not None and draw(st.booleans()):
        of_algorithm["head_training_kwargs"] = draw(some(fields_of(HeadTraining), 2))
    if algorithm is PGAC:
        training = dict(n_observations=4, n_candidates=26, top_k=3, n_refined=2) | draw(some(fields_of(PotentialTraining), 2))
        of_algorithm["potential_training_kwargs"] = training
        if draw(st.booleans()):
            of_policy["potential_kwargs"] = draw(some(dict.fromkeys(POTENTIAL_ARGUMENTS) | dict(layer_norm=False), 2))
    return of_policy, of_algorithm


@st.composite
def configurations(draw: Any, algorithm: type) -> tuple[str, int, int, Arguments]:
    """
    :param draw: of hypothesis
    :param algorithm: EnergySAC or PGAC
    :return: kind of observations, coordinates of an action, environments, and the algorithm's arguments
    """
    kind = draw(st.sampled_from(["box", "box", "box", "dict", "image", "goal"]))
    n_actions, n_envs = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    policy = draw(some(defaults_of(algorithm.policy_aliases["MlpPolicy"]), 4))
    refiners = sorted(REFINERS) if algorithm is EnergySAC else sorted(set(REFINERS) - {"none"})
    if algorithm is EnergySAC or draw(st.booleans()):
        in_sequence = st.lists(st.sampled_from(refiners), min_size=1, max_size=3)
        policy["refiner"] = draw(st.one_of(*[st.sampled_from(refiners)] * 3, in_sequence))
        if isinstance(policy["refiner"], list):
            policy.pop("refiner_steps", None)
    policy["net_arch"] = draw(st.sampled_from([[6], [6, 6], [6, 6], dict(pi=[6], qf=[8]), [], [6, 4]]))
    kwargs = draw(some(defaults_of(algorithm), 4))
    of_policy, of_algorithm = draw(parts(algorithm, policy))
    policy |= {name: value for name, value in of_policy.items() if value or draw(st.booleans())}
    kwargs |= of_algorithm
    energy = policy.get("energy")
    if isinstance(energy, str) and draw(st.booleans()):
        policy["energy_kwargs"] = draw(some(fields_of(ENERGIES[energy]), 2))
    if kwargs.get("entropy_estimator") is not None and draw(st.booleans()):
        kwargs["entropy_estimator_kwargs"] = draw(some(fields_of(ENTROPY_ESTIMATORS[kwargs["entropy_estimator"]]), 2))
    if kind == "image" and policy.get("features_extractor_class") is None:
        policy["features_extractor_class"] = Small  # SB3's own is for larger images, and for more time
    if kind == "goal" and draw(st.booleans()):
        kwargs["replay_buffer_class"] = HerReplayBuffer
        kwargs["replay_buffer_kwargs"] = dict(n_sampled_goal=2)
        kwargs["learning_starts"] = 25  # an episode has to end first
    elif kwargs.get("optimize_memory_usage") and draw(st.booleans()):
        kwargs["replay_buffer_kwargs"] = dict(handle_timeout_termination=False)
    noise = kwargs.pop("action_noise", None)
    if noise is not None:
        made = NormalActionNoise if noise == "normal" else OrnsteinUhlenbeckActionNoise
        kwargs["action_noise"] = made(np.zeros(n_actions), 0.1 * np.ones(n_actions))
    if algorithm is PGAC and draw(st.booleans()):
        kwargs["persistent_chains"] = draw(st.booleans())
    return kind, n_actions, n_envs, kwargs | dict(policy_kwargs=policy)
