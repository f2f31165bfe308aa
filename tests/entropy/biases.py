"""
How far estimates of the entropy are from that of the actions; ``python -m tests.entropy.biases`` prints the table.

Each refiner has its documented defaults unless the row says something else. The entropy of 20 000 refined actions is measured
by their distances to each other; the estimate is the mean over as many observations as give it an error of about .01.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch as th

from sb3_energy.entropy import ENTROPY_ESTIMATORS, PathEntropy
from sb3_energy.refiners import REFINERS
from tests.entropy.policies import Setting, refinement_of, taught_head, taught_reverse
from tests.laws import knn_entropy_on_box

N_DRAWS = 20_000


class Case(NamedTuple):
    """
    A row.

    :param refiner: its name
    :param estimator: its name
    :param settings: of the refinement
    :param arguments: of the estimator
    """

    refiner: str
    estimator: str
    settings: Mapping[str, Any] = MappingProxyType({})
    arguments: Mapping[str, Any] = MappingProxyType({})

    @property
    def label(self):
        """The row's first two cells."""
        return f"{_said(self.refiner, self.settings)} | {_said(self.estimator, self.arguments)}"

    def bias(self, dimension):
        """
        :return: estimate minus entropy in nats, and the entropy
        """
        refinement = refinement_of(self.refiner, **self.settings)
        estimator = ENTROPY_ESTIMATORS[self.estimator](**self.arguments)
        if isinstance(estimator, PathEntropy):
            policy, _ = taught_reverse(refinement, dimension, estimator)
        else:
            policy = Setting(refinement, dimension, taught_head(self.refiner, dimension))
        th.manual_seed(1)
        entropy = knn_entropy_on_box(policy.latent(N_DRAWS))
        sets = self.estimator in ("mixture", "trace")  # of many particles for one observation
        found, _ = policy.estimate(
            estimator, 300 if self.estimator == "mixture" else 1000 if sets else N_DRAWS, 100 if sets else 5000
        )
        return found - entropy, entropy


def _said(name, arguments):
    return f"`{name}`" + "".join(f", `{key}={value!r}`" for key, value in arguments.items())


SHORT, LONG = dict(refiner_kwargs=dict(step_size=0.1)), dict(refiner_kwargs=dict(step_size=0.3))
CASES = [Case(name, estimator) for name, cls in REFINERS.items() for estimator in cls.estimators if estimator != "path"]
CASES += [
    Case("langevin", "mixture", LONG),
    Case("langevin", "mixture", dict(n_particles=16), dict(n_chains=128)),
    Case("langevin", "mixture", dict(n_particles=16, **LONG), dict(n_chains=8)),
    Case("langevin", "mixture", dict(n_particles=1)),
    Case("langevin", "path", dict(n_particles=1)),
    Case("langevin", "path", dict(n_particles=1, **LONG)),
    Case("langevin", "path", dict(n_particles=1, refiner_steps=10)),
    Case("svgd", "trace", {}, dict(self_term=True)),
    Case("svgd", "trace", {}, dict(determinant=True)),
    Case("svgd", "trace", SHORT),
    Case("svgd", "trace", SHORT, dict(self_term=True)),
    Case("svgd", "trace", dict(initial_particles="base")),
    Case("flow", "divergence", {}, dict(method="hutchinson")),
    Case("mean_flow", "divergence", {}, dict(method="hutchinson")),
    Case("mean_flow", "divergence", {}, dict(method="learned")),
]


def main():
    """Print the table."""
    print("| refiner | estimator | entropy, 1-D | bias, 1-D | entropy, 2-D | bias, 2-D |\n|---|---|---|---|---|---|")
    for case in CASES:
        cells = [f"{number:+.2f}" for d in (1, 2) for number in reversed(case.bias(d))]
        print(f"| {case.label} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    th.set_num_threads(1)
    main()
