"""Other people's samplers agree with ours: pyro's leapfrog and HMC, TorchEBM's Langevin dynamics."""

import pytest
import torch as th

from sb3_energy.refiners import HamiltonianMonteCarlo, Langevin, refine
from sb3_energy.types import Target

COVARIANCE = th.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=th.float64)


def gaussian(x):
    return 0.5 * ((x @ th.linalg.inv(COVARIANCE).to(x.dtype)) * x).sum(-1)


def double_well(x):
    """Two wells of different depth along the first coordinate, a bent valley along the second."""
    first, second = x[..., 0], x[..., 1]
    return 0.7 * (first.square() - 1.0).square() + 0.4 * first + (second - 0.5 * first.square()).square()


each_target = pytest.mark.parametrize("energy", [gaussian, double_well])


def standard_normal(shape, seed=0):
    return th.randn(shape, dtype=th.float64, generator=th.Generator().manual_seed(seed))


@each_target
@pytest.mark.parametrize("step_size, n_leapfrogs", [(0.1, 1), (0.2, 7)])
def test_the_leapfrog_is_pyro_s(energy, step_size, n_leapfrogs):
    pyro_ops = pytest.importorskip("pyro.ops.integrator")
    refiner = HamiltonianMonteCarlo(step_size, n_leapfrogs, max_displacement=None)
    goal, momenta = Target(energy), standard_normal((1, 5, 2), seed=1)
    start = refiner.init(standard_normal((1, 5, 2)), goal)
    there, final = refiner._leapfrog(start, momenta, goal, step_size)
    positions, theirs, _, energies = pyro_ops.velocity_verlet(
        {"x": start.particles[0]},
        {"x": momenta[0]},
        lambda z: energy(z["x"]).sum(),
        lambda r: r,
        step_size,
        n_leapfrogs,
    )
    th.testing.assert_close(there.particles[0], positions["x"])
    th.testing.assert_close(final[0], theirs["x"])
    th.testing.assert_close(there.energies.sum(), energies)


@each_target
def test_hmc_s_draws_have_the_moments_of_pyro_s(energy):
    mcmc = pytest.importorskip("pyro.infer.mcmc")
    th.manual_seed(0)
    settings = dict(step_size=0.4, num_steps=4, adapt_step_size=False, adapt_mass_matrix=False)
    kernel = mcmc.HMC(potential_fn=lambda z: energy(z["x"]), full_mass=False, **settings)
    chain = mcmc.MCMC(
        kernel, num_samples=3000, warmup_steps=100, initial_params={"x": th.zeros(2).double()}, disable_progbar=True
    )
    chain.run()
    theirs = chain.get_samples()["x"]
    refiner = HamiltonianMonteCarlo(0.4, 4, max_displacement=None)
    state = refine(
        refiner, 0.3 * standard_normal((1, 20_000, 2)), Target(energy), n_steps=60, generator=th.Generator().manual_seed(1)
    )
    ours = state.particles[0]
    for moment in (lambda x: x, lambda x: x.square(), lambda x: x.prod(-1, keepdim=True), lambda x: (x > 0.0).double()):
        values = moment(theirs)
        # a chain's draws depend on each other: its error is that of the means of 30 parts
        error = values.reshape(30, 100, -1).mean(1).std(0) / 30**0.5
        assert ((values.mean(0) - moment(ours).mean(0)).abs() < 4.0 * error + 0.01).all()


@each_target
def test_langevin_walks_torchebm_s_path_with_the_same_noise(energy):
    samplers = pytest.importorskip("torchebm.samplers")
    model = pytest.importorskip("torchebm.core").BaseModel

    class Model(model):
        def forward(self, x):
            return energy(x)

    start, step_size = standard_normal((50, 2)), 0.08
    theirs = samplers.LangevinDynamics(Model(), step_size=0.5 * step_size, dtype=th.float64, device="cpu")
    th.manual_seed(3)
    expected = theirs.sample(x=start, n_steps=40)
    th.manual_seed(3)
    found = refine(Langevin(step_size, max_displacement=None), start.unsqueeze(0), Target(energy), n_steps=40).particles[0]
    th.testing.assert_close(found, expected)
    assert (found - start).abs().mean() > 0.3
