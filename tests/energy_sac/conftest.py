"""Small models for the tests of EnergySAC, with Langevin and with MPPI."""

import pytest

from sb3_energy import EnergySAC

REFINED = {
    "langevin": dict(refiner="langevin", refiner_steps=2, n_particles=4),
    "mppi": dict(refiner="mppi", refiner_steps=2, n_particles=4),
}


@pytest.fixture(params=sorted(REFINED))
def refined(request):
    """Policy arguments of a small refined policy."""
    return REFINED[request.param] | dict(net_arch=[16])


@pytest.fixture
def make_model(refined):
    """A function that makes a small model; its keyword arguments are EnergySAC's."""

    def make(policy="MlpPolicy", env="Pendulum-v1", policy_kwargs=None, **kwargs):
        settings = dict(learning_starts=20, batch_size=16, buffer_size=500, seed=0, device="cpu") | kwargs
        return EnergySAC(policy, env, policy_kwargs=refined | (policy_kwargs or {}), **settings)

    return make
