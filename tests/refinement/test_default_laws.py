"""What is drawn at the documented defaults, wherever the base is and however steep the energy: the law, or near to it."""

import pytest
import torch as th

from sb3_energy.refinement.arguments import RefinementArguments
from sb3_energy.refinement.bases import Gaussian
from tests.laws import modes_energy, total_variation

N = 40_000
DOUBLE_WELL = modes_energy([[-0.5], [0.5]], 0.15, [1.0, 1.5])
BASES = {
    "on one mode": (0.55, 0.3),
    "on the other, narrow": (-0.55, 0.1),
    "between, narrow": (0.2, 0.05),
    "wide": (0.0, 1.0),
    "very wide": (0.3, 3.0),
    "at a wall": (2.0, 0.5),
}


def draws(energy, base, **arguments):
    mean, std = BASES[base]
    refinement, rows = RefinementArguments(**arguments).make_refinement(), N // 4
    gaussian = Gaussian(th.full((rows, 1), mean), th.full((rows, 1), std))
    th.manual_seed(0)
    return th.cat([th.tanh(refinement.sample(gaussian, energy)) for _ in range(4)])


@pytest.mark.parametrize("base", sorted(BASES))
@pytest.mark.parametrize("steepness", [0.1, 1.0, 10.0])
def test_the_default_refiner_never_leaves_the_law(base, steepness):
    def energy(a):
        return steepness * DOUBLE_WELL(a)

    resampled = total_variation(draws(energy, base, refiner="snis"), energy, 40)
    found = total_variation(draws(energy, base), energy, 40)
    assert found < max(0.05, resampled + 0.01) and found < resampled + 0.02, (found, resampled)


@pytest.mark.parametrize("base", ["on one mode", "wide"])
def test_svgd_does_not_diverge_at_its_defaults(base):
    """With the same steps whatever the curvature it ends at the walls: 0.62 from a wide base."""
    at_walls = draws(DOUBLE_WELL, base, refiner="svgd", refiner_kwargs=dict(max_curvature=None))
    found, fixed = (total_variation(a, DOUBLE_WELL, 40) for a in (draws(DOUBLE_WELL, base, refiner="svgd"), at_walls))
    assert found < 0.2 and (base != "wide" or fixed > 0.5), (found, fixed)
