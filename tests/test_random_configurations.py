"""
Random configurations train finite, save, load and predict the same, or are refused in one sentence of ours; so are random
hostile values. Both are drawn from a seed, which is printed with what it led to; ``SB3_ENERGY_SEED`` is another one.
"""

import io
import os
import traceback
import warnings
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch as th
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from stable_baselines3.her import HerReplayBuffer

from sb3_energy import PGAC, EnergyMatching, EnergySAC
from tests import hostile_values
from tests.contracts.argument_cases import found_arguments
from tests.random_configurations import configurations, make_env

SEED = int(os.environ.get("SB3_ENERGY_SEED", "0"))
MORE = int(os.environ.get("SB3_ENERGY_MORE", "1"))
NAMES = {name for _, name in found_arguments()} | {"observation", "action_space", "env"}


def examples(n):
    """Draw ``n``, and look at all of them: a failure is noted, and what others do is of interest too."""
    health = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much, HealthCheck.large_base_example]
    return settings(max_examples=n * MORE, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=health)


def is_refusal(error: Exception) -> bool:
    """Whether it is one sentence that names an argument, and none that an assertion or a tensor says."""
    message = str(error)
    is_one = type(error) in (ValueError, TypeError) or isinstance(error, FloatingPointError)
    return is_one and "\n" not in message and 10 < len(message) < 500 and any(name in message for name in NAMES)


def acts_the_same(model: Any, loaded: Any, obs: Any) -> None:
    for deterministic in (True, False):
        found = []
        for one in (model, loaded):
            th.manual_seed(3)
            np.random.seed(3)
            if one.use_sde:
                one.policy.reset_noise(2)
            found.append(one.predict(obs, deterministic=deterministic)[0])
        assert np.isfinite(found[0]).all() and np.array_equal(*found)


def outcome(algorithm: Any, kind: str, n_actions: int, n_envs: int, kwargs: dict[str, Any], is_hostile: bool = False) -> str:
    """``"trained"``, ``"refused"``, or what went wrong. What is hostile may be found once it has made something infinite."""
    env = make_env(kind, n_actions, n_envs)
    small = dict(learning_starts=20, batch_size=8, buffer_size=200, seed=0, device="cpu")
    policy = "MultiInputPolicy" if kind in ("dict", "goal") else "MlpPolicy"
    try:
        model = algorithm(policy, env, **(small | kwargs))
    except Exception as error:
        return "refused" if is_refusal(error) else fault("construction", error)
    try:
        model.learn(50)
        assert all(th.isfinite(value).all() for value in model.policy.state_dict().values()), "parameters are not finite"
        obs = env.reset()
        file = io.BytesIO()
        model.save(file)
        file.seek(0)
        beside = dict(env=env) if kwargs.get("replay_buffer_class") is HerReplayBuffer else {}  # which SB3 asks for
        acts_the_same(model, algorithm.load(file, device="cpu", **beside), obs)
    except Exception as error:
        return "refused" if is_hostile and is_refusal(error) else fault("training", error)
    return "trained"


def fault(when: str, error: Exception) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{when}: {type(error).__name__}: {str(error)[:300]} ({place.filename}:{place.lineno})"


def said(what: str, outcomes: list[tuple[str, Any]]) -> None:
    counts = Counter(found if found in ("trained", "refused") else "faults" for found, _ in outcomes)
    print(f"\n{what}, seed {SEED}: {dict(counts)}")
    faults = [f"{found}\n    with {given!r}" for found, given in outcomes if found not in ("trained", "refused")]
    for line in faults:
        print(line)
    assert not faults, f"seed {SEED}, {len(faults)} of {len(outcomes)}:\n" + "\n".join(faults[:5])


@pytest.mark.slow
@pytest.mark.parametrize("algorithm, n", [(EnergySAC, 300), (PGAC, 150)], ids=["EnergySAC", "PGAC"])
def test_random_configurations(algorithm, n):
    outcomes = []

    @seed(SEED)
    @examples(n)
    @given(configurations(algorithm))
    def draw(configuration):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcomes.append((outcome(algorithm, *configuration), configuration))

    draw()
    said(f"{algorithm.__name__}, random configurations", outcomes)
    assert sum(found == "trained" for found, _ in outcomes) > n // 5, "few of them say anything of training"


def hostile_outcome(place: str, name: str, value: Any) -> str:
    kwargs = hostile_values.arguments(place, name, value)
    if place == "EnergyMatching":
        try:
            model = EnergyMatching(**kwargs)
        except Exception as error:
            return "refused" if is_refusal(error) else fault("construction", error)
        try:
            model.fit(hostile_values.SAMPLES, gradient_steps=2)
            assert np.isfinite(model.sample(2)).all()
        except Exception as error:
            return "refused" if is_refusal(error) else fault("training", error)
        return "trained"
    algorithm = PGAC if hostile_values.is_of_pgac(place) else EnergySAC
    return outcome(algorithm, "box", 2, 1, kwargs, is_hostile=True)


@pytest.mark.slow
def test_hostile_values():
    outcomes = []
    places = sorted(found_arguments() - hostile_values.NOT_THROWN)

    @seed(SEED)
    @examples(200)
    @given(st.sampled_from(places), st.sampled_from(range(len(hostile_values.VALUES))))
    def throw(place, which):
        value = hostile_values.VALUES[which]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcomes.append((hostile_outcome(*place, value), (*place, value)))

    throw()
    said("hostile values", outcomes)
