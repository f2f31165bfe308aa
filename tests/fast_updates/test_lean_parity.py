"""The lean update is SB3's, up to rounding."""

import operator

import numpy as np
import pytest
import torch as th
from sb3_contrib import TQC
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_energy import EnergySAC
from sb3_energy.fast_updates.lean_updates import can_gather, gathered, set_fused

PLAIN = dict(refiner="none", backbone="plain")
BATCH = 64


def parameters(model):
    state_dicts, tensors = model._get_torch_save_params()
    values = [operator.attrgetter(name)(model).state_dict() for name in state_dicts if not name.endswith("optimizer")]
    found = {key: value for part in values for key, value in part.items() if key != "temperature"}
    return found | {name: getattr(model, name).detach() for name in tensors if name != "ent_coef_tensor"}


def difference(ours, theirs):
    """Mean absolute difference of all parameters."""
    mine, others = parameters(ours), parameters(theirs)
    assert mine.keys() == others.keys()
    gaps = th.cat([(mine[key] - others[key]).abs().flatten().double() for key in mine])
    assert len(gaps) > 10_000
    return gaps.mean().item()


def trained(cls, updates, policy_kwargs=None, **kwargs):
    settings = dict(learning_starts=100, batch_size=BATCH, buffer_size=1000, seed=0, device="cpu") | kwargs
    return cls("MlpPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs, **settings).learn(100 + updates)


@pytest.mark.parametrize("fast_matmul", [True, False])
@pytest.mark.parametrize(("updates", "bound"), [(10, 1e-8), (40, 1e-6)])
@pytest.mark.parametrize("ent_coef", ["auto", 0.2])
def test_sac(ent_coef, updates, bound, fast_matmul):
    theirs = trained(SAC, updates, ent_coef=ent_coef)
    ours = trained(EnergySAC, updates, PLAIN, ent_coef=ent_coef, fast_matmul=fast_matmul)
    start = trained(SAC, 0, ent_coef=ent_coef)
    assert difference(theirs, start) > 1e-4, "there is something to be compared"
    assert difference(ours, theirs) < bound


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(n_steps=3),
        dict(use_sde=True),
        dict(gradient_steps=2, target_update_interval=3),
        dict(learning_rate=lambda r: 1e-3 * r),
    ],
    ids=["n-step", "gSDE", "intervals", "schedule"],
)
def test_other_settings(kwargs):
    updates = 10 // kwargs.get("gradient_steps", 1)
    assert difference(trained(EnergySAC, updates, PLAIN, **kwargs), trained(SAC, updates, **kwargs)) < 1e-8


@pytest.mark.parametrize("n_critics", [1, 3])
def test_numbers_of_critics(n_critics):
    small = dict(n_critics=n_critics)
    assert difference(trained(EnergySAC, 10, PLAIN | small), trained(SAC, 10, small)) < 1e-8


def test_tqc():
    ours = trained(EnergySAC, 10, PLAIN | dict(critic="quantile"))
    assert difference(ours, trained(TQC, 10)) < 1e-8


MEAN = dict(refiner="none", n_critics=3, target_aggregate="mean")


@pytest.mark.parametrize("policy_kwargs", [{}, dict(backbone="simba"), dict(backbone="bro", refiner="none"), MEAN], ids=str)
def test_lean_is_the_reference(policy_kwargs):
    """With whatever SB3 has no twin of; the batches are those of a policy that has not learned yet."""
    kwargs = dict(refine_target="refiner" not in policy_kwargs, entropy_estimator="base", refine_exploration=False)
    kwargs |= dict(seed=2)  # with others a rounding of SimBa's first weights changes the reference by 1e-6: a ReLU's kink
    models = [trained(EnergySAC, 0, policy_kwargs, update=update, **kwargs) for update in ("lean", "reference")]
    for model in models:
        th.manual_seed(1), np.random.seed(1)
        model.set_logger(model.logger), model.train(5, BATCH)
    assert difference(*models) < 1e-7


def test_saved_and_loaded(tmp_path):
    models = [trained(EnergySAC, 10, PLAIN)]
    models[0].save(tmp_path / "model"), models[0].save_replay_buffer(tmp_path / "buffer")
    models.append(EnergySAC.load(tmp_path / "model", device="cpu"))
    models[1].load_replay_buffer(tmp_path / "buffer")
    models[1].set_logger(models[0].logger)
    for model in models:
        th.manual_seed(1), np.random.seed(1)
        model.train(10, BATCH)
    assert difference(*models) < 1e-8


@pytest.mark.parametrize("first", ["lean", "reference"])
def test_either_goes_on_where_the_other_stopped(tmp_path, first):
    second = {"lean": "reference", "reference": "lean"}[first]
    model = trained(EnergySAC, 10, PLAIN, update=first)
    model.save(tmp_path / "model")
    other = EnergySAC.load(tmp_path / "model", update=second, device="cpu")
    other.replay_buffer = model.replay_buffer
    other.set_logger(model.logger)
    for agent in (model, other):
        th.manual_seed(1), np.random.seed(1)
        agent.train(10, BATCH)
    assert other.update == second and 0.0 < difference(model, other) < 1e-8
    groups = [group["fused"] for agent in (model, other) for group in agent.actor.optimizer.param_groups]
    assert groups == ([True, None] if first == "lean" else [None, True])


def test_adam_is_fused_unless_the_user_says_how():
    def fused(**kwargs):
        agent = trained(EnergySAC, 1, PLAIN | dict(net_arch=[8], **kwargs))
        return [group["fused"] for part in (agent.actor, agent.critic) for group in part.optimizer.param_groups]

    assert fused() == [True, True]
    assert fused(optimizer_class=th.optim.AdamW) == [True, True]
    assert fused(optimizer_kwargs=dict(foreach=True)) == [None, None]
    assert fused(optimizer_kwargs=dict(fused=False)) == [False, False]
    sgd = trained(EnergySAC, 1, PLAIN | dict(net_arch=[8], optimizer_class=th.optim.SGD))
    assert sgd.actor.optimizer.param_groups[0].get("fused") is None


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("timeouts", [True, False])
def test_gathered_transitions(full, n_envs, timeouts):
    model = trained(SAC, 0)
    space, actions = model.observation_space, model.action_space
    buffer = ReplayBuffer(90, space, actions, "cpu", n_envs=n_envs, handle_timeout_termination=timeouts)
    rng = np.random.default_rng(0)
    for _ in range(120 if full else 20):
        obs, after = rng.normal(size=(2, n_envs, 3)).astype(np.float32)
        done = rng.random(n_envs) < 0.5
        infos = [{"TimeLimit.truncated": bool(rng.random() < 0.5)} for _ in range(n_envs)]
        buffer.add(obs, after, rng.normal(size=(n_envs, 1)), rng.normal(size=n_envs), done, infos)
    assert can_gather(buffer) and buffer.full == full
    np.random.seed(0)
    expected, after = buffer.sample(50), np.random.random()
    np.random.seed(0)
    found = gathered(buffer, 50, th.device("cpu"))
    assert np.random.random() == after
    for name in ("observations", "actions", "next_observations", "dones", "rewards"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert ours.dtype == theirs.dtype and th.equal(ours, theirs), name
    buffer.rewards[:] = 7.0
    assert not th.equal(found.rewards, th.full_like(found.rewards, 7.0)), "a copy, not a view"


class Own(ReplayBuffer):
    pass


def test_buffers_that_are_left_to_sb3():
    model = trained(SAC, 0)
    spaces = (model.observation_space, model.action_space)
    assert not can_gather(Own(10, *spaces))
    assert not can_gather(ReplayBuffer(10, *spaces, optimize_memory_usage=True, handle_timeout_termination=False))


def test_steps_are_counted_where_fused_adam_looks_for_them():
    """Adam that is not fused counts them on the CPU, and a model on a GPU may have been saved by such a one."""
    parameter = th.nn.Parameter(th.ones(3, device="meta"))
    optimizer = th.optim.Adam([parameter])
    optimizer.state[parameter]["step"] = th.tensor(7.0)
    model = trained(EnergySAC, 0, PLAIN | dict(net_arch=[8]))
    set_fused([optimizer], {}, lean=True)
    assert optimizer.state[parameter]["step"].device == parameter.device and optimizer.param_groups[0]["fused"]
    model.train(1, BATCH)
    steps = [state["step"] for state in model.actor.optimizer.state.values()]
    set_fused([model.actor.optimizer], {}, lean=True)
    assert all(state["step"] is step for state, step in zip(model.actor.optimizer.state.values(), steps, strict=True))
