"""Predicting: repeatable, seeded, in every shape; and export."""

import io

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import SimpleMultiObsEnv

from sb3_energy import EnergySAC

OBS = np.random.default_rng(0).uniform(-1, 1, size=(6, 3)).astype(np.float32)


@pytest.fixture
def model(make_model):
    return make_model(learning_rate=1e-2).learn(50)


def test_deterministic_is_repeatable_and_draws_nothing(model):
    state = th.get_rng_state()
    first, _ = model.predict(OBS, deterministic=True)
    assert th.equal(state, th.get_rng_state())
    th.manual_seed(99)
    second, _ = model.predict(OBS, deterministic=True)
    assert np.array_equal(first, second)


def test_deterministic_does_not_depend_on_the_batch(model, kind):
    together, _ = model.predict(OBS, deterministic=True)
    alone = np.stack([model.predict(obs, deterministic=True)[0] for obs in OBS])
    # Q over its spread is steeper than Q, and so is the way of a rounding error
    assert np.allclose(together, alone, atol=1e-3 if kind == "pgac" else 1e-5)


def test_deterministic_is_never_worse_than_the_mean(model):
    """The mean of the Gaussian is one of the starts, and the lowest energy wins."""
    with th.no_grad():
        obs = th.as_tensor(OBS)
        best = th.tanh(model.policy.refine(obs, deterministic=True))
        mean = model.actor(obs, deterministic=True)
        energy = model.policy.energy_fn(obs)
        assert (energy(best.unsqueeze(1)) <= energy(mean.unsqueeze(1)) + 1e-6).all()
        assert (energy(best.unsqueeze(1)) < energy(mean.unsqueeze(1)) - 1e-6).any(), "refining must do something"


def test_stochastic_is_reproducible_by_seed(model):
    def draw(seed):
        model.set_random_seed(seed)
        return np.stack([model.predict(OBS)[0] for _ in range(3)])

    assert np.array_equal(draw(5), draw(5))
    assert not np.array_equal(draw(5), draw(6))
    once = draw(5)
    assert not np.array_equal(once[0], once[1])


def test_shapes_and_types(model):
    space = model.action_space
    one, state = model.predict(OBS[0])
    many, _ = model.predict(OBS)
    assert one.shape == (1,) and many.shape == (6, 1) and state is None
    assert one.dtype == many.dtype == np.float32
    assert all(space.contains(action) for action in many)
    env = make_vec_env("Pendulum-v1", n_envs=2)
    assert model.predict(env.reset())[0].shape == (2, 1)
    with pytest.raises(ValueError, match="Unexpected observation shape"):
        model.predict(np.zeros((2, 7), np.float32))


def test_predict_leaves_no_trace(model):
    """Refining needs gradients of the critic: none of them may stay, nor the parameters change."""
    parameters = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.policy.zero_grad()
    with th.inference_mode():
        model.predict(OBS)
    with th.no_grad():
        model.predict(OBS, deterministic=True)
    assert all(parameter.grad is None for parameter in model.policy.parameters())
    assert all(parameter.requires_grad for parameter in model.critic.parameters())
    assert all(th.equal(value, parameters[name]) for name, value in model.policy.state_dict().items())


def test_dictionary_observations(make_model):
    env = SimpleMultiObsEnv(num_col=2, num_row=2, discrete_actions=False)
    policy_kwargs = dict(features_extractor_kwargs=dict(cnn_output_dim=8))
    model = make_model("MultiInputPolicy", env, policy_kwargs, buffer_size=10)
    obs = model.env.reset()
    first, _ = model.predict(obs, deterministic=True)
    assert np.array_equal(first, model.predict(obs, deterministic=True)[0])


class Deterministic(th.nn.Module):
    """As in SB3's guide on exporting models."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, observation):
        return self.module(observation, deterministic=True)


@pytest.mark.filterwarnings("ignore")
def test_torchscript_of_the_actor(model):
    traced = th.jit.trace(Deterministic(model.policy.actor).eval(), th.as_tensor(OBS[:1]))
    buffer = io.BytesIO()
    th.jit.save(traced, buffer)
    buffer.seek(0)
    actions = th.jit.load(buffer)(th.as_tensor(OBS)).detach().numpy()
    with model.policy.unrefined():
        expected, _ = model.predict(OBS, deterministic=True)
    assert np.allclose(model.policy.unscale_action(actions), expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_onnx_of_the_actor(model, tmp_path):
    """By torch's tracing exporter: the other one cannot follow torch's check of a normal distribution, nor for SB3's SAC."""
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "actor.onnx"
    wrapped = Deterministic(model.policy.actor).eval()
    th.onnx.export(
        wrapped,
        (th.as_tensor(OBS[:1]),),
        str(path),
        input_names=["observation"],
        dynamic_axes={"observation": {0: "batch"}},
        dynamo=False,
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with model.policy.unrefined():
        expected, _ = model.predict(OBS, deterministic=True)
    actions = session.run(None, {"observation": OBS})[0]
    assert np.allclose(model.policy.unscale_action(actions), expected, atol=1e-5)


REFUSAL = "^a refined policy needs gradients and cannot be exported; export policy.actor or use refiner='none'$"


@pytest.mark.filterwarnings("ignore")
def test_tracing_the_refined_policy_is_refused(model, tmp_path):
    policy, obs = model.policy.eval(), (th.as_tensor(OBS[:1]),)
    with pytest.raises(RuntimeError, match=REFUSAL):
        th.jit.trace(policy, obs)
    with pytest.raises(RuntimeError, match=REFUSAL):
        th.onnx.export(policy, obs, str(tmp_path / "policy.onnx"), dynamo=False)
    assert not (tmp_path / "policy.onnx").exists()


@pytest.mark.filterwarnings("ignore")
def test_exporting_the_refined_policy_is_refused(model):
    with pytest.raises(RuntimeError, match=REFUSAL):
        th.export.export(model.policy.eval(), (th.as_tensor(OBS[:1]),), strict=False)


@pytest.mark.filterwarnings("ignore")
def test_a_policy_without_refiner_can_be_exported():
    policy_kwargs = dict(refiner="none", net_arch=[8])
    model = EnergySAC("MlpPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs, buffer_size=10)
    wrapped = Deterministic(model.policy).eval()
    traced = th.jit.trace(wrapped, th.as_tensor(OBS[:1]))
    assert th.allclose(traced(th.as_tensor(OBS)), wrapped(th.as_tensor(OBS)), atol=1e-6)
