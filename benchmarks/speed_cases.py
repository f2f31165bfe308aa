"""What the speed benchmark measures: named cases, and the bars that some of them have to reach."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.speed_floor import Evaluations
from benchmarks.speed_models import PRECISIONS
from sb3_energy.energy_sac.presets import flash_sac_kwargs
from sb3_energy.refiners import REFINERS

STEPS = (0, 1, 5, 10, 20)
PARTICLES = (16, 32, 64, 128)
CRITICS = (1, 2, 4, 8)
PREDICT_BATCHES = (1, 16)
MODES = {"sampled": False, "deterministic": True}
END_TO_END = ("HalfCheetah-v5", "Pendulum-v1")
BASELINE = "SB3 SAC"
DEFAULTS = "defaults"
MEMORY_UPDATES = (2_000, 20_000)


@dataclass(frozen=True)
class Case:
    """
    Something that is measured.

    :param name: unique in its section
    :param algorithm: a name in :func:`benchmarks.speed_models.algorithms`
    :param kwargs: its keyword arguments
    :param precisions: of matrix products, that it is measured at
    :param series: the line of the plot it belongs to
    :param x: where on that line
    :param asked: what its refinement asks of the critics (``None``: its floor is not known)
    :param n_critics: how many critics it has, for the floor
    """

    name: str
    algorithm: str = "EnergySAC"
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    precisions: tuple[str, ...] = ("medium",)
    series: str = ""
    x: float | None = None
    asked: Evaluations | None = None
    n_critics: int = 2


@dataclass(frozen=True)
class Bar:
    """
    :param section: of the case
    :param case: its name
    :param setting: in which it was measured
    :param asked: least ratio of SB3 SAC's time to the case's, or with ``of_time`` the largest one of its time to SB3 SAC's
    :param of_time: which of the two
    """

    section: str
    case: str
    setting: str
    asked: float
    of_time: bool = False


def chain(steps: int, **others: Any) -> dict[str, Any]:
    """
    :param steps: ``K`` of one Langevin chain, from one proposal; with 0 nothing is refined
    :param others: further keyword arguments of the policy
    :return: keyword arguments of EnergySAC, on SB3's own network
    """
    refiner = dict(refiner="langevin", refiner_steps=steps) if steps > 0 else dict(refiner="none")
    policy = dict(backbone="plain", n_particles=1) | refiner | others
    return dict(refine_target=policy["refiner"] != "none", entropy_estimator="base", policy_kwargs=policy)


def baseline(section: str) -> Case:
    """
    :param section: whose baseline it is
    :return: SB3's SAC
    """
    return Case(BASELINE, "SAC", precisions=PRECISIONS if section != "predict" else PRECISIONS[:1], asked=Evaluations())


def update_cases() -> list[Case]:
    """
    :return: other algorithms, ``K`` steps by the lean and by the naive update, other networks
    """
    small = dict(policy_kwargs=dict(net_arch=[256, 256]))
    others = [
        Case("TQC", "TQC", precisions=PRECISIONS),
        Case("CrossQ", "CrossQ", precisions=PRECISIONS),
        Case("CrossQ, 2 × 256", "CrossQ", small, precisions=PRECISIONS),
        Case("SBX SAC", "SBX SAC", precisions=PRECISIONS[:1]),
        Case("SBX CrossQ", "SBX CrossQ", precisions=PRECISIONS[:1]),
        Case("SBX CrossQ, 2 × 256", "SBX CrossQ", small, precisions=PRECISIONS[:1]),
    ]
    steps = [
        Case(f"K = {k}{suffix}", kwargs=chain(k) | extra, precisions=PRECISIONS, series=series, x=k, asked=Evaluations(0, k))
        for suffix, series, extra in (("", "lean", {}), (", reference", "reference", dict(update="reference")))
        for k in STEPS
    ]
    networks = [
        Case(f"K = 0, {backbone}", kwargs=dict(policy_kwargs=dict(refiner="none", backbone=backbone)))
        for backbone in ("layer_norm", "simba", "bro")
    ]
    quantile = Case(
        "K = 0, quantile critic", kwargs=dict(policy_kwargs=dict(refiner="none", backbone="plain", critic="quantile"))
    )
    small_flash = dict(pi=[32, 32], qf=[64, 64])
    flashes = [
        Case(f"K = 0, FlashSAC{suffix}", kwargs=flash_sac_kwargs(learning_starts=100, batch_size=256, policy_kwargs=widths))
        for suffix, widths in (("", dict(refiner="none")), (", a quarter as wide", dict(refiner="none", net_arch=small_flash)))
    ]
    scale = Case("K = 0, value_scale", kwargs=chain(0, value_scale="auto"), precisions=PRECISIONS)
    return [*others, *steps, *networks, quantile, scale, *flashes]


def refiner_cases() -> list[Case]:
    """
    :return: every refiner at its defaults with refined targets, and options of EnergySAC that cost something
    """
    refiners = [Case(name, kwargs=dict(refine_target=name != "none", policy_kwargs=dict(refiner=name))) for name in REFINERS]
    options: dict[str, dict[str, Any]] = {
        DEFAULTS: {},
        "refine_target=True, n_particles=1": dict(refine_target=True, policy_kwargs=dict(n_particles=1)),
        'refine_target=True, entropy_estimator="soft_value"': dict(refine_target=True, entropy_estimator="soft_value"),
        'refine_target=True, entropy_estimator="mixture"': dict(refine_target=True, entropy_estimator="mixture"),
        'refiner="flow"': dict(policy_kwargs=dict(refiner="flow")),
        'refiner="flow", entropy_estimator="base"': dict(policy_kwargs=dict(refiner="flow"), entropy_estimator="base"),
        'refiner="mean_flow"': dict(policy_kwargs=dict(refiner="mean_flow")),
        'refiner="mean_flow", entropy_estimator="base"': dict(
            policy_kwargs=dict(refiner="mean_flow"), entropy_estimator="base"
        ),
        'refiner="autoregressive_derivative_free"': dict(policy_kwargs=dict(refiner="autoregressive_derivative_free")),
        "distillation_coef=0.1": dict(distillation_coef=0.1),
        'value_scale="none"': dict(policy_kwargs=dict(value_scale="none")),
    }
    return refiners + [Case(name, kwargs=kwargs) for name, kwargs in options.items()]


def pgac_cases() -> list[Case]:
    """
    :return: PGAC at its defaults, without each of its parts, and with what costs more
    """
    options: dict[str, dict[str, Any]] = {
        "PGAC": {},
        "PGAC, value_weight=None": dict(value_weight=None),
        "PGAC, transport_coef=0": dict(transport_coef=0.0),
        "PGAC, divergence_coef=0": dict(divergence_coef=0.0),
        "PGAC, policy_delay=1": dict(policy_delay=1),
        "PGAC, end_to_end_coef=1": dict(end_to_end_coef=1.0),
        "PGAC, refine_target=True": dict(refine_target=True),
    }
    return [Case(name, "PGAC", kwargs) for name, kwargs in options.items()]


def particle_cases() -> list[Case]:
    """
    :return: refined targets by the number of particles
    """
    cases = []
    for n in PARTICLES:
        # a round draws anew: the first candidates' energies and the drawn ones'
        mppi = chain(1, refiner="mppi", n_particles=n)
        cases.append(Case(f"mppi, N = {n}", kwargs=mppi, series="mppi, 1 round", x=n, asked=Evaluations(2 * n)))
        snis = chain(1, refiner="snis", n_particles=n) | dict(update_particles=n)
        cases.append(Case(f"snis, N = {n}", kwargs=snis, series="snis", x=n, asked=Evaluations(n)))
        langevin = chain(3, n_particles=n) | dict(update_particles=n)
        cases.append(Case(f"langevin, N = {n}", kwargs=langevin, series="langevin, K = 3", x=n, asked=Evaluations(n, 3)))
    return cases


def critic_cases() -> list[Case]:
    """
    :return: without and with refined targets by the number of critics
    """
    return [
        Case(
            f"K = {k}, {n} critics" if n > 1 else f"K = {k}, 1 critic",
            kwargs=chain(k, n_critics=n),
            series=f"K = {k}",
            x=n,
            asked=Evaluations(0, k),
            n_critics=n,
        )
        for k in (0, 5)
        for n in CRITICS
    ]


def predict_cases() -> list[Case]:
    """
    :return: policies whose ``predict`` is timed
    """
    steps = [Case(f"K = {k}", kwargs=chain(k), precisions=("highest",), asked=Evaluations(0, k)) for k in (0, 1, 5, 10)]
    rounds = [
        Case(
            f"mppi, N = 64, {rounds} round{'s' if rounds > 1 else ''}",
            kwargs=chain(rounds, refiner="mppi", n_particles=64),
            precisions=("highest",),
            asked=Evaluations(64 * (rounds + 1)),
        )
        for rounds in (1, 3)
    ]
    snis = Case("snis", kwargs=chain(1, refiner="snis", n_particles=128), precisions=("highest",), asked=Evaluations(128))
    one = dict(policy_kwargs=dict(deterministic_particles=1))
    ours = [
        Case(name + more, algorithm, kwargs, precisions=("highest",))
        for name, algorithm in ((DEFAULTS, "EnergySAC"), ("PGAC", "PGAC"))
        for more, kwargs in (("", {}), (", deterministic_particles=1", one))
    ]
    return [*steps, *rounds, snis, *ours]


def end_to_end_cases() -> list[Case]:
    """
    :return: what learns in an environment
    """
    return [Case("K = 0", kwargs=chain(0)), Case("K = 5", kwargs=chain(5)), Case(DEFAULTS)]


def memory_cases() -> list[Case]:
    """
    :return: whose peak memory is measured, each in a process of its own
    """
    refined = [
        Case(name, kwargs=dict(refine_target=True, policy_kwargs=dict(refiner=name))) for name in ("langevin", "mppi", "snis")
    ]
    others = [Case("TQC", "TQC"), Case("CrossQ", "CrossQ"), Case("SBX SAC", "SBX SAC")]
    return [*others, *[Case(f"K = {k}", kwargs=chain(k)) for k in STEPS], Case(DEFAULTS), *refined]


SECTIONS = {
    "update": update_cases,
    "refiners": refiner_cases,
    "pgac": pgac_cases,
    "particles": particle_cases,
    "critics": critic_cases,
    "predict": predict_cases,
    "end_to_end": end_to_end_cases,
    "memory": memory_cases,
}

BARS = (
    *[Bar("update", f"K = {k}", "stock", least) for k, least in zip(STEPS, (2.1, 1.8, 1.2, 0.85, 0.58), strict=True)],
    *[Bar("update", case, precision, least) for precision in PRECISIONS for case, least in (("K = 0", 1.4), ("K = 5", 0.75))],
    *[Bar("predict", "K = 0", f"batch 1, {mode}", 0.4, of_time=True) for mode in MODES],
    Bar("predict", DEFAULTS, "batch 1, sampled", 6.5, of_time=True),
    Bar("predict", f"{DEFAULTS}, deterministic_particles=1", "batch 1, deterministic", 2.0, of_time=True),
    *[Bar("end_to_end", case, "HalfCheetah-v5, stock", least) for case, least in (("K = 0", 1.9), ("K = 5", 1.15))],
)
