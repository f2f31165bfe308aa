"""
No argument is accepted and ignored: each has a value under which a short training ends otherwise, or is refused, or is one of
few that a reason is given for. Arguments are found by introspection, so that a new one has to say which of these it is.
"""

from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import pytest

from sb3_energy import PGAC, EnergyMatching, EnergySAC
from sb3_energy.energies import QEnergy
from sb3_energy.refiners import REFINERS
from tests.contracts import argument_cases as cases
from tests.contracts.argument_cases import Case, found_arguments, policy
from tests.fingerprints import Target, fingerprint


class Comparison(NamedTuple):
    """The same training without an argument and with it."""

    algorithm: Any
    without: dict[str, Any]
    beside: dict[str, Any]
    env: type = Target
    is_slow: bool = False


class Own(QEnergy):
    """An energy of one's own: the opposite of the critic's."""

    def bind(self, networks, obs):
        return partial(_opposite, super().bind(networks, obs))


def _opposite(energy, actions):
    return -energy(actions)


def merged(below, above):
    """Dictionaries in dictionaries, key by key."""
    both = dict(below)
    for key, value in above.items():
        inner = isinstance(value, dict) and isinstance(both.get(key), dict)
        both[key] = merged(both[key], value) if inner else value
    return both


def comparison(algorithm, case: Case, given, is_slow=False):
    return Comparison(algorithm, dict(case.beside), given, case.env, is_slow)


def without_none(arguments):
    """The same beside a potential, which has to be followed: its own small settings in place of ``refiner="none"``."""
    kept = {key: value for key, value in arguments.get("policy_kwargs", {}).items() if (key, value) != ("refiner", "none")}
    return merged(cases.POTENTIAL, arguments | dict(policy_kwargs=kept))


def of_the_algorithms():
    for name, case in (cases.OF_SAC | cases.OF_ENERGY_SAC).items():
        yield ("EnergySAC", name), comparison(EnergySAC, case, {name: case.value})
        if name not in PGAC_REFUSES:
            of_pgac = case._replace(beside=without_none(case.beside))
            if "head" in name or case.beside == cases.FLOW:
                of_pgac = of_pgac._replace(beside=merged(of_pgac.beside, policy(box="tanh", n_particles=2)))
            yield ("PGAC", name), comparison(PGAC, of_pgac, {name: case.value}, is_slow=True)
    for name, case in cases.OF_PGAC.items():
        yield ("PGAC", name), comparison(PGAC, case, {name: case.value})


def of_the_policies():
    for name, case in cases.OF_POLICIES.items():
        given = policy(**{name: Own if case.value == "own" else case.value})
        yield ("RefinedPolicy", name), comparison(EnergySAC, case, given)
        if name not in PGAC_REFUSES and name not in cases.OF_POTENTIAL_POLICIES:
            of_pgac = case._replace(beside=without_none(case.beside))
            if name == "head_kwargs":
                of_pgac = of_pgac._replace(beside=merged(of_pgac.beside, policy(box="tanh", n_particles=2)))
            yield ("PotentialPolicy", name), comparison(PGAC, of_pgac, given, is_slow=True)
    for name, case in cases.OF_POTENTIAL_POLICIES.items():
        yield ("PotentialPolicy", name), comparison(PGAC, case, policy(**{name: case.value}))


def of_the_parts():
    for refiner, found in cases.OF_REFINERS.items():
        small = policy(refiner=refiner, n_particles=8, refiner_steps=cases.STEPS_OF_REFINERS.get(refiner, 2))
        for name, case in found.items():
            beside = case._replace(beside=case.beside or small)
            yield (f"refiner {refiner}", name), comparison(EnergySAC, beside, policy(refiner_kwargs={name: case.value}))
    for energy, found in cases.OF_ENERGIES.items():
        algorithm, small = (EnergySAC, cases.SMALL) if energy in ("q", "composite") else (PGAC, cases.POTENTIAL)
        for name, case in found.items():
            kwargs = dict(aggregate="lcb") if name == "coefficient" else {}
            beside = case._replace(beside=merged(small, policy(energy=energy, energy_kwargs=kwargs)))
            yield (f"energy {energy}", name), comparison(algorithm, beside, policy(energy_kwargs={name: case.value}))
    for estimator, found in cases.OF_ESTIMATORS.items():
        for name, case in found.items():
            beside = case._replace(beside=case.beside | dict(entropy_estimator=estimator))
            given = dict(entropy_estimator_kwargs={name: case.value})
            yield (f"estimator {estimator}", name), comparison(EnergySAC, beside, given)
    learners = dict(velocity=cases.FLOW, average_velocity=cases.MEAN_FLOW)
    for head, found in cases.OF_HEADS.items():
        small = learners.get(head, policy(refiner="autoregressive_derivative_free", n_particles=4, refiner_steps=2))
        for name, case in found.items():
            beside = case._replace(beside=small)
            yield (f"head {head}", name), comparison(EnergySAC, beside, policy(head_kwargs={name: case.value}))
    for name, case in cases.OF_HEAD_TRAINING.items():
        yield ("head_training", name), comparison(EnergySAC, case, dict(head_training_kwargs={name: case.value}))
    for name, case in cases.OF_POTENTIAL_TRAINING.items():
        beside = case._replace(beside=cases.POTENTIAL)
        yield ("potential_training", name), comparison(PGAC, beside, dict(potential_training_kwargs={name: case.value}))
    for name, case in cases.OF_POTENTIALS.items():
        beside = case._replace(beside=cases.POTENTIAL)
        yield ("potential_kwargs", name), comparison(PGAC, beside, policy(potential_kwargs={name: case.value}))


PGAC_REFUSES = dict(use_sde=True, sde_sample_freq=4, use_sde_at_warmup=True, log_std_init=0.0, use_expln=True, clip_mean=0.1)
"""What a potential's policy has no use for, with a value that is not the default."""

OF_ENERGY_MATCHING = dict(
    net_arch=[8],
    activation_fn=cases.nn.GELU,
    layer_norm=True,
    spectral_norm=True,
    input_gain=2.0,
    normalize_observations=False,
    learning_rate=1e-2,
    final_learning_rate=1e-3,
    batch_size=4,
    temperature=0.5,
    sampling_time=3.0,
    transport_time=0.9,
    n_steps=4,
    n_particles=2,
    warm_up_steps=1,
    transport_coef=0.5,
    divergence_coef=0.3,
    magnitude_coef=0.1,
    noise_fraction=0.5,
    ema_decay=None,
    base="uniform",
    box="reflect",
    seed=3,
)
WITHOUT_EFFECT_OF_ENERGY_MATCHING = dict(device="where it runs", verbose="what is printed", logger="where the log goes")

COMPARISONS = {**dict(of_the_algorithms()), **dict(of_the_policies()), **dict(of_the_parts())}
WITHOUT_EFFECT = {
    **{("EnergySAC", name): why for name, why in cases.WITHOUT_EFFECT_OF_SAC.items()},
    **{("EnergySAC", name): why for name, why in cases.WITHOUT_EFFECT_OF_ENERGY_SAC.items()},
    **{("PGAC", name): why for name, why in cases.WITHOUT_EFFECT_OF_SAC.items()},
    **{("PGAC", name): why for name, why in cases.WITHOUT_EFFECT_OF_ENERGY_SAC.items()},
    **{("RefinedPolicy", name): why for name, why in cases.WITHOUT_EFFECT_OF_POLICIES.items()},
    **{(f"refiner {r}", name): why for r in ("langevin", "svgd") for name, why in cases.WITHOUT_EFFECT_OF_REFINERS.items()},
    **{("EnergyMatching", name): why for name, why in WITHOUT_EFFECT_OF_ENERGY_MATCHING.items()},
}
REFUSED = {("PGAC" if hasattr(PGAC, name) or "sde" in name else "PotentialPolicy", name) for name in PGAC_REFUSES}
REFUSED |= {("PotentialPolicy", "use_sde")}
MATCHINGS = {("EnergyMatching", name) for name in OF_ENERGY_MATCHING}


def test_every_argument_says_what_it_does():
    said = {*COMPARISONS} | {*WITHOUT_EFFECT} | REFUSED | MATCHINGS
    missing, stale = found_arguments() - said, said - found_arguments()
    assert not missing, f"give each a case in argument_cases.py, or a reason there: {sorted(missing)}"
    assert not stale, f"there is no such argument any more: {sorted(stale)}"
    assert all(len(why) > 10 for why in WITHOUT_EFFECT.values())
    twice = {*COMPARISONS} & ({*WITHOUT_EFFECT} | REFUSED)
    assert not twice, f"either it makes a difference or it does not: {sorted(twice)}"


KNOWN: dict[str, Any] = {}


def known_fingerprint(algorithm, kwargs, env):
    """Of what many are compared with, once."""
    key = f"{algorithm.__name__} {kwargs!r} {env.__name__}"
    if key not in KNOWN:
        KNOWN[key] = fingerprint(algorithm, kwargs, env)
    return KNOWN[key]


def marked():
    for place, found in COMPARISONS.items():
        yield pytest.param(found, id=" ".join(place), marks=[pytest.mark.slow] if found.is_slow else [])


@pytest.mark.parametrize("found", list(marked()))
@pytest.mark.filterwarnings("ignore")
def test_it_makes_a_difference(found):
    without = known_fingerprint(found.algorithm, found.without, found.env)
    assert fingerprint(found.algorithm, merged(found.without, found.beside), found.env) != without


def test_the_same_arguments_make_none():
    first, second = (fingerprint(PGAC, cases.POTENTIAL) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("name", sorted(PGAC_REFUSES))
def test_a_potential_refuses_what_belongs_to_gsde(name):
    value = PGAC_REFUSES[name]
    kwargs = {name: value} if "sde" in name else policy(**{name: value})
    with pytest.raises(ValueError, match=f"^(use_sde=True|{name}={value!r} needs use_sde=True)") as caught:
        PGAC("MlpPolicy", Target(), **merged(dict(buffer_size=10), kwargs))
    assert "\n" not in str(caught.value)


@cache
def expert():
    rng = np.random.default_rng(0)
    observations = rng.uniform(0.0, 1.0, size=(32, 2))
    return observations[:, None].repeat(2, 1).reshape(32, 2, 2) * [[[0.5], [-0.5]]], observations


def matched(**kwargs):
    """Everything a short fit leaves, and what it says afterwards."""
    settings = dict(net_arch=[4], batch_size=8, warm_up_steps=3, n_steps=3, seed=0, device="cpu") | kwargs
    actions, observations = expert()
    model = EnergyMatching(**settings).fit(actions, observations, gradient_steps=8)
    says = [model.sample(3, observations[:4])]
    says += [model.predict(observations[:4], deterministic=d)[0] for d in (True, False)]
    return tuple(value.numpy().tobytes() for value in model.network.state_dict().values()), tuple(x.tobytes() for x in says)


@pytest.mark.parametrize("name", sorted(OF_ENERGY_MATCHING))
def test_it_makes_a_difference_to_energy_matching(name):
    beside = dict(input_gain=1.0) if name == "spectral_norm" else {}
    assert matched(**beside) != matched(**beside, **{name: OF_ENERGY_MATCHING[name]})


def test_registries_are_covered():
    assert set(cases.OF_REFINERS) == set(REFINERS)
