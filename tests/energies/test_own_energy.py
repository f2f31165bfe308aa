"""Energies of one's own: what is right works everywhere, and what is wrong is said before anything is stored."""

import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.envs import SimpleMultiObsEnv

from sb3_energy import PGAC, EnergySAC
from sb3_energy.energies import FunctionEnergy
from sb3_energy.refiners import REFINERS
from tests.energies.own_energies import (
    BindsNothing,
    BindsObservationsAlone,
    BlindToActions,
    FailsToBind,
    NeedsAnArgument,
    Weighted,
    WithoutBind,
    as_array,
    as_booleans,
    as_complex,
    as_float,
    as_integers,
    as_nothing,
    broadcast_wrong,
    centred,
    constant,
    detached,
    flat,
    flattened,
    keeps_last,
    mean_over_particles,
    minus_infinity,
    nan,
    quadratic,
    raises,
    scalar,
    squeezed,
    summed_over_particles,
    through_numpy,
    transposed,
    without_grad,
)

PAGE = r"docs/energy_of_your_own\.md"
SMALL = dict(learning_starts=20, batch_size=16, buffer_size=200, seed=0, device="cpu")
FEW = {name: dict(refiner_steps=2, n_particles=4) for name in REFINERS} | {
    "flow": dict(refiner_steps=1, n_particles=2),
    "mean_flow": dict(refiner_steps=1, n_particles=2),
    "snis": dict(refiner_steps=1, n_particles=4),
}
WITHOUT_GRADIENT = ["mppi", "derivative_free", "autoregressive_derivative_free", "snis"]
FOLLOW = [name for name in REFINERS if name != "none"]  # which refuses energies that it would not ask
WITH_GRADIENT = ["langevin", "mala", "hmc", "svgd", "flow", "mean_flow"]


def make(energy, refiner="langevin", energy_kwargs=None, env="Pendulum-v1", policy="MlpPolicy", **kwargs):
    policy_kwargs = dict(net_arch=[16], refiner=refiner, energy=energy, energy_kwargs=energy_kwargs, **FEW[refiner])
    return EnergySAC(policy, env, policy_kwargs=policy_kwargs | kwargs.pop("policy_kwargs", {}), **(SMALL | kwargs))


def one_sentence(error):
    message = str(error.value)
    assert message and "\n" not in message and len(message) < 400, message
    return message


WRONG = [
    (scalar, ValueError, r"energy=scalar must return one number for each action, of shape \(B, N\) = \(2, 3\) .*, got \(\)"),
    (summed_over_particles, ValueError, r"energy=summed_over_particles .* got \(2, 1\)"),
    (mean_over_particles, ValueError, r"energy=mean_over_particles .* got \(2,\)"),
    (keeps_last, ValueError, r"energy=keeps_last .* got \(2, 3, 1\)"),
    (transposed, ValueError, r"energy=transposed .* got \(3, 2\)"),
    (flattened, ValueError, r"energy=flattened .* got \(6,\)"),
    (squeezed, ValueError, r"energy=squeezed .* got \((2|3),\)"),
    (as_array, TypeError, "energy=as_array must return a torch tensor, got ndarray"),
    (as_float, TypeError, "energy=as_float must return a torch tensor, got float"),
    (as_nothing, TypeError, "energy=as_nothing must return a torch tensor, got NoneType"),
    (as_integers, TypeError, "energy=as_integers must return floating-point numbers, got torch.int64"),
    (as_booleans, TypeError, "energy=as_booleans must return floating-point numbers, got torch.bool"),
    (as_complex, TypeError, "energy=as_complex must return floating-point numbers, got torch.complex64"),
    (
        broadcast_wrong,
        ValueError,
        r"energy=broadcast_wrong failed for actions of shape .* = \(2, 3, 1\): RuntimeError",
    ),
    (raises, ValueError, "energy=raises failed for actions of shape .*: KeyError: 'speed'"),
    (centred, ValueError, "energy=centred must give each action its own energy"),
    (detached, ValueError, "energy=detached has no gradient with respect to the actions"),
    (without_grad, ValueError, "energy=without_grad has no gradient with respect to the actions"),
    (through_numpy, ValueError, "energy=through_numpy has no gradient with respect to the actions"),
    (constant, ValueError, "energy=constant has no gradient .* for a constant add"),
    (BlindToActions, ValueError, "energy=BlindToActions has no gradient with respect to the actions"),
    (nan, ValueError, "energy=nan must be finite, got nan"),
    (minus_infinity, ValueError, "energy=minus_infinity must be finite, got -inf"),
    (WithoutBind, TypeError, r"energy must have a method bind\(networks, obs\), WithoutBind has none"),
    (BindsObservationsAlone, TypeError, r"energy must have a method bind\(networks, obs\), which BindsObservationsAlone.bind"),
    (BindsNothing, TypeError, "energy=BindsNothing must return a function of the actions from bind, got None"),
    (NeedsAnArgument, TypeError, "energy=NeedsAnArgument cannot be made with energy_kwargs={}: .*'target'"),
    (FailsToBind, ValueError, "energy=FailsToBind could not be bound to . observations: TypeError"),
    (Weighted(), TypeError, "energy must be the class Weighted and not an instance of it"),
    (lambda observations, actions: actions.square().sum(-1), TypeError, "a lambda or an inner function cannot be pickled"),
    (th.nn.Linear(3, 1), TypeError, "energy must not be a network"),
    (3, TypeError, "energy must be one of .*, a class or a function, got 3"),
    (len, TypeError, r"energy must take \(observations, actions\) and energy_kwargs, but len does not"),
]


@pytest.mark.parametrize("energy, error, match", WRONG, ids=lambda value: getattr(value, "__name__", str(value)[:20]))
def test_a_wrong_energy_is_refused_at_construction(energy, error, match):
    with pytest.raises(error, match=f"{match}.*{PAGE}") as caught:
        make(energy)
    one_sentence(caught)


def test_an_inner_function_is_refused():
    def inner(observations, actions):
        return actions.square().sum(-1)

    with pytest.raises(TypeError, match=r"top level of a module, .* got .*inner"):
        make(inner)


@pytest.mark.parametrize("refiner", FOLLOW)
def test_a_wrong_shape_is_refused_with_every_refiner(refiner):
    with pytest.raises(ValueError, match=r"of shape \(B, N\)"):
        make(scalar, refiner)


@pytest.mark.parametrize("refiner", WITH_GRADIENT)
def test_an_energy_without_gradient_is_refused_where_it_is_followed(refiner):
    with pytest.raises(ValueError, match=f"energy=detached has no gradient .*{PAGE}") as caught:
        make(detached, refiner)
    one_sentence(caught)


@pytest.mark.parametrize("refiner", WITHOUT_GRADIENT)
def test_an_energy_without_gradient_serves_refiners_that_ask_for_none(refiner):
    model = make(through_numpy, refiner).learn(25)
    action, _ = model.predict(np.zeros(3, np.float32), deterministic=True)
    assert np.abs(action).max() < 1.0  # of 2: the energy is lowest at 0


def test_a_flow_that_follows_no_gradient_needs_none():
    make(detached, "flow", head_training_kwargs=dict(refined_fraction=0.0)).learn(25)


@pytest.mark.parametrize("energy_kwargs", [dict(wait=1), dict(actions=1)], ids=str)
def test_unknown_arguments_of_a_function(energy_kwargs):
    with pytest.raises(TypeError, match=r"energy must take \(observations, actions\) and energy_kwargs, but quadratic"):
        make(quadratic, energy_kwargs=energy_kwargs)


def test_pgac_follows_energies_of_the_potential_alone():
    with pytest.raises(ValueError, match=r"energy must be made of the potential .* EnergySAC follows other energies"):
        PGAC("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(energy=quadratic))


@pytest.mark.parametrize("refiner", FOLLOW)
@pytest.mark.parametrize("energy", [quadratic, Weighted], ids=["function", "class"])
def test_a_right_energy_trains_is_saved_and_acts_the_same(tmp_path, refiner, energy):
    model = make(energy, refiner, dict(weight=2.0), refine_target=True).learn(25)
    model.save(tmp_path / "model")
    loaded = EnergySAC.load(tmp_path / "model", device="cpu")
    obs = np.array([[0.1, 0.9, -0.3], [1.0, 0.0, 0.5]], np.float32)
    for deterministic in (True, False):
        found = []
        for one in (model, loaded):
            th.manual_seed(1)
            found.append(one.predict(obs, deterministic=deterministic)[0])
        np.testing.assert_array_equal(*found)
    assert loaded.policy.energy.bind(loaded.policy.networks(), th.as_tensor(obs))(th.zeros(2, 3, 1)).shape == (2, 3)


def test_the_policy_alone_is_saved_and_loaded(tmp_path):
    model = make(quadratic, energy_kwargs=dict(weight=3.0))
    model.policy.save(tmp_path / "policy.pth")
    policy = type(model.policy).load(tmp_path / "policy.pth", device="cpu")
    assert policy.energy == FunctionEnergy(quadratic, dict(weight=3.0))
    assert pickle.loads(pickle.dumps(policy.energy)) == policy.energy


def test_actions_go_where_the_function_is_low():
    model = make(quadratic, policy_kwargs=dict(refiner_steps=30, n_particles=32), ent_coef=0.01)
    obs = np.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]], np.float32)
    actions, _ = model.predict(obs, deterministic=True)
    np.testing.assert_allclose(actions[:, 0] / 2.0, 0.5 * np.tanh([1.0, -1.0]), atol=0.1)


def test_a_flat_energy_keeps_its_graph():
    make(flat).learn(25)


def test_dictionaries_of_observations():
    model = make(quadratic, env=SimpleMultiObsEnv(discrete_actions=False), policy="MultiInputPolicy").learn(25)
    assert all(th.isfinite(value).all() for value in model.policy.state_dict().values())


def test_a_tolerance_binds_again():
    model = make(quadratic, policy_kwargs=dict(tolerance=1e-3, refiner_steps=5, n_particles=4)).learn(25)
    model.predict(np.zeros((5, 3), np.float32), deterministic=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_functions_see_single_precision(dtype):
    seen = FunctionEnergy(quadratic).bind(None, th.as_tensor(np.zeros((2, 3), dtype)))
    assert seen.args[0].dtype == th.float32


def test_the_look_uses_up_no_random_number():
    found = []
    for energy in ("q", quadratic):
        model = make(energy)
        states = th.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()
        found.append((*states, model.action_space.sample().tolist()))
    assert found[0] == found[1]


def test_the_look_is_once(monkeypatch):
    calls = []
    monkeypatch.setattr("sb3_energy.policies.own_energy.check_energy", lambda *args: calls.append(args))
    model = make(quadratic).learn(30)
    model.predict(np.zeros(3, np.float32))
    assert len(calls) == 1


def test_a_policy_without_its_algorithm_looks_when_it_first_binds():
    policy = make("q").policy
    policy.energy = FunctionEnergy(scalar)
    policy._energy_is_checked = False
    with pytest.raises(ValueError, match=r"energy=scalar must return .* \(B, N\)"):
        policy.predict(np.zeros(3, np.float32))


def test_a_scripts_own_function_comes_back_in_the_script_and_elsewhere(tmp_path):
    """Models have copies of what ``__main__`` defines, and a copy cannot be pickled by name."""
    script = Path(__file__).with_name("scripts_energy.py")
    path, root = tmp_path / "model.zip", str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, str(script), str(path)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | dict(PYTHONPATH=root),
    )
    loaded = EnergySAC.load(path, device="cpu")  # its __main__ is not this one
    action, _ = loaded.predict(np.zeros(3, np.float32), deterministic=True)
    np.testing.assert_allclose(action, float(done.stdout), rtol=1e-5)
    assert loaded.policy.energy.function.__name__ == "downhill"
    loaded.save(tmp_path / "again")
    EnergySAC.load(tmp_path / "again", device="cpu")


def in_place(observations, actions):
    return actions.sub_(0.5).square().sum(-1)


def test_actions_that_are_changed_in_place():
    with pytest.raises(ValueError, match=r"energy=in_place could not be differentiated: RuntimeError: .*in-place"):
        make(in_place)
