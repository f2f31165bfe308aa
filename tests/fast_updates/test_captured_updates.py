"""What surrounds a CUDA graph, shown on the CPU with a recorder that does again what a graph would replay."""

import copy
import math
from collections import defaultdict
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch as th

from sb3_energy import EnergySAC
from sb3_energy.fast_updates.capture import dependencies, settings
from sb3_energy.fast_updates.captured_updates import WARM_UP, CapturedUpdates, capturable

RATE = 2.0**-10  # the same number in 32 and in 64 bits


class Rerun:
    """
    Keeps CUDA's promises without one: recording changes nothing, and a replay does the work on whatever is at the same
    addresses by then, and writes what comes out over what came out before.

    :param model: whose tensors these are
    """

    def __init__(self, model):
        self.model, self.n_warm, self.n_recorded, self.n_replayed = model, 0, 0, 0

    def warm_up(self, work):
        self.n_warm += 1
        work()

    def record(self, work):
        self.n_recorded += 1
        tensors = [*self.model.policy.parameters(), *self.model.policy.buffers()]
        tensors += [] if self.model.log_ent_coef is None else [self.model.log_ent_coef]
        for optimizer in self.model._optimizers():
            assert all(parameter.grad is None for group in optimizer.param_groups for parameter in group["params"])
            tensors += [value for state in optimizer.state.values() for value in state.values()]
        kept, state = [tensor.detach().clone() for tensor in tensors], th.get_rng_state()
        outcome = work()
        th.set_rng_state(state)
        with th.no_grad():
            for tensor, before in zip(tensors, kept, strict=True):
                tensor.copy_(before)
        return outcome, lambda: self.replay(work, outcome)

    def replay(self, work, outcome):
        self.n_replayed += 1
        again = work()
        outcome.report.copy_(again.report)
        outcome.checks._found[:] = again.checks._found  # what they would say of is at the same addresses, too


def model_of(captured, seed=0, **kwargs):
    settings = dict(learning_starts=80, buffer_size=100, fast_matmul=False, learning_rate=RATE, device="cpu")
    settings |= dict(policy_kwargs=dict(net_arch=[16, 16]), refine_target=True) | kwargs
    model = EnergySAC("MlpPolicy", "Pendulum-v1", seed=seed, **settings).learn(80)
    if captured:
        model._captured = CapturedUpdates(model._update, model._optimizers, partial(dependencies, model), Rerun(model))
    return model


def train(model, gradient_steps, batch_size=32, seed=1):
    th.manual_seed(seed), np.random.seed(seed)
    model.train(gradient_steps, batch_size)
    return model


def recorder(model):
    return model._captured._recorder


def assert_equal(ours, theirs):
    for mine, other in zip(ours.policy.parameters(), theirs.policy.parameters(), strict=True):
        assert th.equal(mine, other)
    assert th.equal(ours.log_ent_coef, theirs.log_ent_coef)
    for mine, other in zip(ours._optimizers(), theirs._optimizers(), strict=True):
        assert str(mine.state_dict()) == str(other.state_dict())


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        dict(policy_kwargs=dict(net_arch=[16], n_particles=1, backbone="simba")),
        dict(policy_kwargs=dict(net_arch=[16], refiner="mppi", critic="quantile"), entropy_estimator="base"),
        dict(
            entropy_estimator="soft_value",
            entropy_estimator_kwargs=dict(n_proposals=16),
            target_update_interval=2,
            distillation_coef=0.1,
        ),
        dict(policy_kwargs=dict(net_arch=[16], optimizer_class=th.optim.AdamW)),
        dict(policy_kwargs=dict(net_arch=[16], value_scale="none")),
    ],
    ids=["defaults", "simba", "mppi and quantiles", "soft value", "AdamW", "units of the reward"],
)
def test_replays_are_updates(kwargs):
    ours, theirs = (model_of(captured, **kwargs) for captured in (True, False))
    for _ in range(2):
        train(ours, 6), train(theirs, 6)
    assert_equal(ours, theirs)
    assert (recorder(ours).n_warm, recorder(ours).n_recorded, recorder(ours).n_replayed) == (WARM_UP, 1, 12 - WARM_UP)
    assert ours._entropy == theirs._entropy and ours._n_updates == theirs._n_updates == 12
    mine, others = ({k: v for k, v in model.logger.name_to_value.items() if "train/" in k} for model in (ours, theirs))
    assert mine == others and len(mine) > 5


def test_a_new_scale_of_values_is_seen_by_replays():
    kwargs = dict(policy_kwargs=dict(net_arch=[16], value_scale="auto"))
    ours, theirs = model_of(True, **kwargs), model_of(False, **kwargs)
    for largest in (500.0, 800.0, 100.0):
        for model in (ours, theirs):
            model.value_units.returns.statistics[2:4] = th.tensor([0.0, largest])
            train(model, 6)
            assert model.value_units.sigma == largest / 5.0
    assert_equal(ours, theirs)
    assert recorder(ours).n_recorded == 1


def test_each_shape_is_recorded_once():
    ours, theirs = model_of(True), model_of(False)
    for batch_size in (32, 32, 16, 32, 16):
        train(ours, 3, batch_size), train(theirs, 3, batch_size)
    assert_equal(ours, theirs)
    assert (recorder(ours).n_warm, recorder(ours).n_recorded) == (WARM_UP, 2)


def test_rates_follow_their_schedule():
    ours, theirs = (model_of(captured, learning_rate=lambda left: RATE * left) for captured in (True, False))
    for left in (1.0, 0.5, 0.5, 0.25):
        for model in (ours, theirs):
            model._current_progress_remaining = left
            train(model, 2)
    assert_equal(ours, theirs)
    assert recorder(ours).n_recorded == 1
    groups = [group for optimizer in ours._optimizers() for group in optimizer.param_groups]
    assert {(group["lr"], group["capturable"]) for group in groups} == {(0.25 * RATE, False)}


def load_parameters(model):
    model.set_parameters(copy.deepcopy(model.get_parameters()))


def swap_critic(model):
    for parameter in model.critic_target.parameters():
        parameter.data = parameter.data.clone()


CHANGES = {
    "set_parameters": load_parameters,
    "data": swap_critic,
    "gamma": lambda model: setattr(model, "gamma", 0.5),
    "target_entropy": lambda model: setattr(model, "target_entropy", -3.0),
    "betas": lambda model: model.critic.optimizer.param_groups[0].update(betas=(0.5, 0.9)),
    "refine_target": lambda model: setattr(model, "refine_target", False),
    "update_particles": lambda model: setattr(model, "update_particles", 4),
    "refinement": lambda model: setattr(model.policy, "refinement", replace(model.policy.refinement, n_steps=1)),
}


def test_settings_are_found_and_counters_are_not():
    found = dict(settings(model_of(False, entropy_estimator="soft_value")))
    expected = {".gamma", ".tau", ".target_entropy", ".distillation_coef", "policy.refinement", "policy.energy"}
    assert expected | {"entropy_term.estimator"} <= found.keys()
    assert not {
        name for name in found if "num_timesteps" in name or "n_updates" in name or name.endswith(("training", "is_due"))
    }


@pytest.mark.parametrize("change", CHANGES)
def test_what_has_changed_is_recorded_anew(change):
    ours, theirs = model_of(True), model_of(False)
    for model in (ours, theirs):
        train(model, 5)
        CHANGES[change](model)
        train(model, 6, seed=2)
    assert_equal(ours, theirs)
    assert (recorder(ours).n_warm, recorder(ours).n_recorded) == (2 * WARM_UP, 2)


def freeze(model):
    next(model.actor.parameters()).requires_grad_(False)


def hook(model):
    for parameter in model.critic.parameters():
        parameter.register_hook(th.neg)


@pytest.mark.parametrize("change", [freeze, hook], ids=lambda change: change.__name__)
def test_networks_that_are_changed_are_not_recorded(change):
    """A recording would do again what a hook did once."""
    ours, theirs = model_of(True), model_of(False)
    for model in (ours, theirs):
        train(model, 5)
        change(model)
        train(model, 6, seed=2)
    assert_equal(ours, theirs)
    assert (recorder(ours).n_warm, recorder(ours).n_recorded, recorder(ours).n_replayed) == (WARM_UP, 1, 5 - WARM_UP)


def test_nothing_is_recorded_anew_for_nothing():
    model = train(model_of(True), 5)
    for _ in range(3):
        model.policy.predict(model.observation_space.sample())
        train(model, 1)
    assert (recorder(model).n_warm, recorder(model).n_recorded) == (WARM_UP, 1)


@pytest.mark.parametrize("n_before", [1, 6], ids=["warm-up", "replay"])
def test_an_error_comes_with_nothing_changed(n_before):
    model = train(model_of(True), n_before)
    rewards = model.replay_buffer.rewards.copy()
    model.replay_buffer.rewards[:] = np.nan
    before, n_updates = [parameter.clone() for parameter in model.policy.parameters()], model._n_updates
    with pytest.raises(FloatingPointError, match=r"^critic_loss is nan: training stops before it changes the networks"):
        train(model, 1)
    assert model._n_updates == n_updates
    assert all(th.equal(old, new) for old, new in zip(before, model.policy.parameters(), strict=True))
    model.replay_buffer.rewards[:] = rewards
    train(model, 1)
    assert not all(th.equal(old, new) for old, new in zip(before, model.policy.parameters(), strict=True))
    assert all(th.isfinite(parameter).all() for parameter in model.policy.parameters())


def test_dictionaries_of_observations():
    seen = []
    batch = dict(a=th.zeros(4, 2), b=th.zeros(4, 1, dtype=th.uint8))
    sample = type(model_of(False).replay_buffer.sample(4))(batch, *(th.zeros(4, 1) for _ in range(4)))
    parameter = th.nn.Parameter(th.ones(1))
    optimizer = th.optim.Adam([parameter], lr=RATE, fused=True)

    class Once:
        def warm_up(self, work):
            work()

        def record(self, work):
            outcome = work()
            return outcome, lambda: outcome.report.copy_(work().report)

    def update(given, records):
        seen.append(given.observations["a"].sum().item())
        records["sum"].append(given.observations["a"].sum() + given.observations["b"].sum())

    captured, records = CapturedUpdates(update, lambda: [optimizer], lambda: 0, Once()), defaultdict(list)
    for _ in range(WARM_UP + 1):
        captured(sample, records)
    batch["a"] += 1.0
    batch["b"] += 2
    captured(sample, records)
    assert records["sum"][WARM_UP:] == [0.0, 16.0] and seen[-1] == 8.0


def test_a_number_cannot_be_replayed():
    optimizer = th.optim.Adam([th.nn.Parameter(th.ones(1))], lr=RATE, fused=True)

    class Once:
        def warm_up(self, work):
            work()

        def record(self, work):
            return work(), None

    sample = model_of(False).replay_buffer.sample(4)
    captured = CapturedUpdates(lambda _, records: records["a"].append(1.0), lambda: [optimizer], lambda: 0, Once())
    for _ in range(WARM_UP):
        captured(sample, defaultdict(list))
    with pytest.raises(RuntimeError, match=r"^capture='cuda_graph' could not record this update, .*the number 1\.0"):
        captured(sample, defaultdict(list))


def test_rates_are_numbers_again_afterwards():
    group = dict(lr=0.5, capturable=False)
    with pytest.raises(ZeroDivisionError), capturable([group], [th.tensor(math.pi)]):
        assert group["capturable"] and group["lr"] == th.tensor(math.pi)
        raise ZeroDivisionError
    assert group == dict(lr=0.5, capturable=False)
