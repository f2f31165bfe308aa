"""``capture``: what it accepts, what is saved, and refinements that are compiled."""

import re

import numpy as np
import pytest
import torch as th

from sb3_energy import EnergySAC, deferred
from sb3_energy.entropy import SoftValueEntropy
from sb3_energy.networks import set_scale
from sb3_energy.refinement.refinement import Refinement

NO_GPU = pytest.mark.skipif(th.cuda.is_available(), reason="there is a GPU")


def model_of(capture=None, device="cpu", policy_kwargs=None, **kwargs):
    policy_kwargs = dict(net_arch=[16, 16]) | (policy_kwargs or {})
    settings = dict(learning_starts=40, buffer_size=100, seed=0, fast_matmul=False)
    return EnergySAC(
        "MlpPolicy", "Pendulum-v1", capture=capture, device=device, policy_kwargs=policy_kwargs, **settings | kwargs
    )


class Own(th.nn.Module):
    def forward(self, x):
        return x.sigmoid()


@pytest.mark.parametrize(
    ("capture", "kwargs", "message"),
    [
        ("graph", {}, "capture must be one of ['cuda_graph', 'compile'] or None, got 'graph'; did you mean 'cuda_graph'?"),
        (True, {}, "capture must be one of ['cuda_graph', 'compile'] or None, got True"),
        (
            "compile",
            dict(policy_kwargs=dict(refiner="none")),
            "capture='compile' needs refinements to compile, and refiner='none' makes none",
        ),
        (
            "compile",
            dict(policy_kwargs=dict(refiner="flow")),
            "capture='compile' needs a refiner that learns nothing beside the critic, got Flow",
        ),
        (
            "cuda_graph",
            dict(policy_kwargs=dict(refiner="autoregressive_derivative_free")),
            "capture='cuda_graph' needs a refiner that learns nothing beside the critic, got AutoregressiveDerivativeFree",
        ),
        ("cuda_graph", dict(update="reference"), "capture='cuda_graph' needs update='lean', got 'reference'"),
        (
            "cuda_graph",
            dict(use_sde=True, policy_kwargs=dict(refiner="none")),
            "capture='cuda_graph' needs use_sde=False, got True",
        ),
        (
            "cuda_graph",
            dict(entropy_estimator="path", policy_kwargs=dict(refiner="langevin", n_particles=1)),
            "capture='cuda_graph' needs an entropy_estimator that is none of ['soft_value', 'trace', 'path', 'divergence'], "
            "got PathEntropy",
        ),
        (
            "cuda_graph",
            dict(entropy_estimator="soft_value"),
            "capture='cuda_graph' needs an entropy_estimator that is none of ['soft_value', 'trace', 'path', 'divergence'], "
            "got SoftValueEntropy; 'soft_value' is taken with a number of n_proposals",
        ),
        (
            "cuda_graph",
            dict(entropy_estimator="trace", policy_kwargs=dict(refiner="svgd")),
            "capture='cuda_graph' needs an entropy_estimator that is none of ['soft_value', 'trace', 'path', 'divergence'], "
            "got TraceEntropy",
        ),
        (
            "cuda_graph",
            dict(policy_kwargs=dict(activation_fn=Own)),
            "capture='cuda_graph' needs an actor of known layers, got activation_fn=Own",
        ),
        (
            "cuda_graph",
            dict(policy_kwargs=dict(optimizer_class=th.optim.SGD)),
            "capture='cuda_graph' needs optimizer_class Adam or AdamW, got SGD",
        ),
        (
            "cuda_graph",
            dict(policy_kwargs=dict(optimizer_kwargs=dict(fused=False, eps=1e-7))),
            "capture='cuda_graph' needs optimizer_kwargs without ['foreach', 'fused', 'capturable', 'differentiable'], "
            "got ['fused']",
        ),
        (
            "cuda_graph",
            {},
            "capture='cuda_graph' needs a CUDA device, got device='cpu'; use capture=None, "
            "which EnergySAC.load(path, capture=None) also takes",
        ),
    ],
)
def test_what_cannot_be_captured_is_refused_in_one_sentence(capture, kwargs, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        model_of(capture, **kwargs)


def test_known_settings_come_as_far_as_the_device():
    """So that nothing but the device keeps them from being captured."""
    for kwargs in (
        dict(policy_kwargs=dict(refiner="none")),
        dict(
            refine_target=True,
            entropy_estimator=SoftValueEntropy,
            entropy_estimator_kwargs=dict(n_proposals=16),
            ent_coef=0.1,
        ),
        dict(policy_kwargs=dict(optimizer_class=th.optim.AdamW, optimizer_kwargs=dict(weight_decay=0.1))),
    ):
        with pytest.raises(ValueError, match="needs a CUDA device"):
            model_of("cuda_graph", **kwargs)


@NO_GPU
def test_a_model_captured_elsewhere_can_be_loaded_here(tmp_path):
    model = model_of().learn(45)
    model.capture = "cuda_graph"  # as if it had been saved beside a GPU
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"needs a CUDA device, got device='cpu'.*EnergySAC\.load\(path, capture=None\)"):
        EnergySAC.load(tmp_path / "model")
    loaded = EnergySAC.load(tmp_path / "model", capture=None, env=model.get_env())
    assert loaded.capture is None and loaded._captured is None
    loaded.learn(45, reset_num_timesteps=False)


@pytest.fixture
def compile_with(monkeypatch):
    """``torch.compile`` with another backend, since building code takes minutes, and no way out of a graph."""

    def use(backend):
        th._dynamo.reset()
        original = th.compile
        monkeypatch.setattr(th, "compile", lambda fn, **kwargs: original(fn, **kwargs | dict(backend=backend, fullgraph=True)))

    yield use
    th._dynamo.reset()


def test_compile_is_saved_and_loaded(tmp_path, compile_with):
    compile_with("eager")
    model = model_of("compile", refine_target=True).learn(45)
    assert model.policy.compiled_sample is not None
    model.save(tmp_path / "model")
    loaded = EnergySAC.load(tmp_path / "model", env=model.get_env())
    assert loaded.capture == "compile" and loaded.policy.compiled_sample is not None
    other = EnergySAC.load(tmp_path / "model", env=model.get_env(), capture=None)
    assert other.capture is None and other.policy.compiled_sample is None
    obs = np.stack([model.observation_space.sample() for _ in range(4)])
    actions = []
    for agent in (model, loaded, other):
        th.manual_seed(0)
        actions.append(agent.predict(obs)[0])
    assert np.abs(actions[0] - actions[1]).max() < 1e-5 > np.abs(actions[0] - actions[2]).max()


@pytest.mark.parametrize(
    ("policy_kwargs", "backend"),
    [
        (dict(n_particles=1), "eager"),
        (dict(n_particles=1), "aot_eager"),
        (dict(refiner_steps=5, backbone="simba"), "eager"),
        (dict(refiner="mppi"), "eager"),
        (dict(refiner="mppi"), "aot_eager"),
        (dict(refiner="mppi", refiner_kwargs=dict(quasi_random=True)), "eager"),
        (dict(refiner="snis"), "aot_eager"),
        (dict(refiner="snis", critic="quantile"), "eager"),
        (dict(refiner="smc", n_particles=8, refiner_steps=2, refiner_kwargs=dict(moves=2)), "eager"),
        (dict(refiner="mala", energy_kwargs=dict(aggregate="min")), "eager"),
        (dict(box="reflect", trust_region=0.5, tolerance=0.1, backbone="plain"), "eager"),
        (dict(value_scale="none"), "aot_eager"),
    ],
    ids=str,
)
def test_a_refinement_is_one_graph_with_the_same_numbers(compile_with, policy_kwargs, backend):
    compile_with(backend)
    policy = model_of("compile", policy_kwargs=policy_kwargs).policy
    refined = []
    for seed in (0, 1):
        obs = th.randn(70, 3, generator=th.Generator().manual_seed(seed))
        for compiled in (policy.compiled_sample, None):
            policy.compiled_sample, kept = compiled, policy.compiled_sample
            th.manual_seed(seed)
            infos = []
            refined.append(policy.refine(obs, infos=infos, n_particles=16))
            assert len(infos) == policy.refinement.n_steps and infos[0].displacement.shape[0] == 70
            policy.compiled_sample = kept
    assert (refined[0] - refined[1]).abs().max() < 1e-5 > (refined[2] - refined[3]).abs().max()
    assert (refined[0] - refined[2]).abs().max() > 0.1
    assert th._dynamo.utils.counters["stats"]["unique_graphs"] >= 1 and not th._dynamo.utils.counters["graph_break"]


def test_a_compiled_refinement_sees_a_new_scale_of_values(compile_with):
    compile_with("aot_eager")
    policy, obs = model_of("compile", policy_kwargs=dict(value_scale="auto")).policy, th.zeros(70, 3)
    found, graphs = [], []
    for sigma in (1.0, 300.0):
        set_scale([policy.critic], sigma)
        for compiled in (policy.compiled_sample, None):
            policy.compiled_sample, kept = compiled, policy.compiled_sample
            th.manual_seed(0)
            found.append(policy.refine(obs))
            policy.compiled_sample = kept
        graphs.append(th._dynamo.utils.counters["stats"]["unique_graphs"])
    assert (found[0] - found[1]).abs().max() < 1e-5 and (found[2] - found[3]).abs().max() < 1e-4
    assert (found[0] - found[2]).abs().max() > 0.1
    assert graphs[0] == graphs[1], "nothing was compiled anew"


def test_a_compiled_refinement_says_what_an_eager_one_says(compile_with):
    compile_with("eager")
    policy = model_of("compile").policy
    with th.no_grad():
        for parameter in policy.critic.parameters():
            parameter.fill_(th.nan)
    messages = []
    for compiled in (policy.compiled_sample, None):
        policy.compiled_sample = compiled
        with pytest.raises(FloatingPointError) as error:
            policy.refine(th.zeros(4, 3))
        messages.append(str(error.value))
    assert messages[0] == messages[1] and deferred.active_checks() is None


def test_compiled_updates_are_updates(compile_with):
    compile_with("eager")
    models = [model_of(capture, refine_target=True, policy_kwargs=dict(n_particles=4)) for capture in ("compile", None)]
    for model in models:
        np.random.seed(0)  # of held actions, which both have
        model.learn(40)
        th.manual_seed(1), np.random.seed(1)
        model.train(5, 32)
    for mine, other in zip(*(model.policy.parameters() for model in models), strict=True):
        assert th.allclose(mine, other, atol=1e-5)


def test_what_is_not_compiled_is_left_to_the_refinement(compile_with, monkeypatch):
    compile_with("eager")
    policy, seen = model_of("compile", policy_kwargs=dict(refiner="mppi")).policy, []
    original = Refinement.sample
    monkeypatch.setattr(Refinement, "sample", lambda *args, **kwargs: (seen.append(args), original(*args, **kwargs))[1])
    policy.refine(th.zeros(4, 3))
    assert not seen, "compiled before it was watched"
    policy.refine(th.zeros(4, 3), generator=th.Generator().manual_seed(0))
    assert len(seen) == 1


def test_the_prediction_of_one_observation_is_compiled(compile_with, monkeypatch):
    compile_with("eager")
    policy, seen = model_of("compile").policy, []
    compiled = policy.compiled_sample
    monkeypatch.setattr(policy, "compiled_sample", lambda *args: seen.append(1) or compiled(*args))
    observation = policy.observation_space.sample()
    policy.predict(observation)
    assert seen == [1]
    policy.predict(observation, deterministic=True)  # which is no draw
    assert seen == [1]
