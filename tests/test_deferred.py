"""Checks that are put off say the same, later, and nothing has been changed by then."""

import math
from collections import defaultdict
from functools import partial

import numpy as np
import pytest
import torch as th

from sb3_energy import EnergySAC, deferred
from sb3_energy.deferred import require, require_finite
from sb3_energy.stats import draw_indices
from sb3_energy.training.guards import as_floats, can_skip, guarded_step

NO, YES = th.tensor(False), th.tensor(True)


def failure(what):
    return FloatingPointError(what)


def test_at_once():
    require(YES, partial(failure, "a")), require_finite(th.tensor(1.0), partial(failure, "a"))
    with pytest.raises(FloatingPointError, match=r"^b$"):
        require(NO, partial(failure, "b"))
    for value in (math.nan, math.inf):
        with pytest.raises(FloatingPointError, match=r"^c$"):
            require_finite(th.tensor(value), partial(failure, "c"))


def test_later():
    with deferred.deferred() as checks:
        assert deferred.active_checks() is checks and checks.failed() is None
        require(YES, partial(failure, "a"))
        assert checks.failed().item() == 0.0
        require_finite(th.tensor(math.nan), partial(failure, "b"))
        require(NO, partial(failure, "c"))
        assert checks.failed().item() == 1.0
        with deferred.deferred() as inner:
            require(NO, partial(failure, "d"))
    assert deferred.active_checks() is None
    assert checks.flags().tolist() == [True, False, False]
    with pytest.raises(FloatingPointError, match=r"^b$"):
        checks.raise_first()
    checks.raise_first([True, True, True])
    with pytest.raises(FloatingPointError, match=r"^d$"):
        inner.raise_first()


def test_an_error_in_between_ends_it():
    with pytest.raises(ZeroDivisionError), deferred.deferred():
        raise ZeroDivisionError
    assert deferred.active_checks() is None


@pytest.mark.parametrize("optimizer_class", [th.optim.Adam, th.optim.AdamW, th.optim.SGD])
def test_a_loss_that_is_no_number_changes_nothing(optimizer_class):
    layer = th.nn.Linear(3, 300)
    kwargs = {} if optimizer_class is th.optim.SGD else dict(fused=True)
    optimizer = optimizer_class(layer.parameters(), lr=0.1, **kwargs)
    assert can_skip(optimizer) == bool(kwargs)
    records = {"loss": []}
    guarded_step(optimizer, layer(th.ones(3)).sum(), "loss", records)
    before, state = [p.clone() for p in layer.parameters()], str(optimizer.state_dict())
    with pytest.raises(FloatingPointError, match=r"^loss is nan: training stops before it changes the networks"):
        with deferred.deferred() as checks:
            guarded_step(optimizer, layer(th.full((3,), math.nan)).sum(), "loss", records)
        checks.raise_first()
    # Nor does a later one, whose own loss is fine
    if kwargs:
        with deferred.deferred(checks):
            guarded_step(optimizer, layer(th.ones(3)).sum(), "loss", records)
    assert all(th.equal(old, new) for old, new in zip(before, layer.parameters(), strict=True))
    assert str(optimizer.state_dict()) == state
    assert not hasattr(optimizer, "found_inf")
    guarded_step(optimizer, layer(th.ones(3)).sum(), "loss", records)
    assert not any(th.equal(old, new) for old, new in zip(before, layer.parameters(), strict=True))


@pytest.mark.parametrize("on_host", [True, False])
def test_records_are_read_in_their_order(monkeypatch, on_host):
    monkeypatch.setattr(deferred, "HOSTS", {"cpu"} if on_host else set())
    records = dict(a=[1, th.tensor([0.1]), 2.5], b=[], c=[th.tensor(1 / 3, dtype=th.float64)])
    assert as_floats(records) == dict(a=[1.0, th.tensor(0.1).item(), 2.5], b=[], c=[1 / 3])


@pytest.mark.parametrize("on_host", [True, False])
def test_draws_follow_the_probabilities(monkeypatch, on_host):
    monkeypatch.setattr(deferred, "HOSTS", {"cpu"} if on_host else set())
    probabilities = th.tensor([[0.0, 0.5, 0.2, 0.0, 0.3, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]])
    n = 200_000
    index = draw_indices(probabilities, n, th.Generator().manual_seed(0))
    assert index.shape == (3, n)
    shares = th.stack([row.bincount(minlength=6) for row in index]) / n
    assert (shares[probabilities == 0.0] == 0.0).all()
    assert (shares - probabilities).abs().max() < 5.0 * math.sqrt(0.25 / n)


def test_no_level_draws_what_has_no_weight(monkeypatch):
    monkeypatch.setattr(deferred, "HOSTS", set())
    probabilities = th.rand(1000, 40, generator=th.Generator().manual_seed(0))
    probabilities[:, [0, 7, 39]] = 0.0
    probabilities /= probabilities.sum(1, keepdim=True)
    for level in (0.0, 1.0 - 2.0**-24):
        monkeypatch.setattr(th, "rand", lambda shape, level=level, **_: th.full(shape, level))
        index = draw_indices(probabilities, 1)
        assert (probabilities.gather(1, index) > 0.0).all()


def small(seed=0, **kwargs):
    policy_kwargs = dict(net_arch=[16, 16]) | kwargs.pop("policy_kwargs", {})
    settings = dict(learning_starts=40, buffer_size=100, batch_size=32, fast_matmul=False, device="cpu")
    return EnergySAC("MlpPolicy", "Pendulum-v1", seed=seed, policy_kwargs=policy_kwargs, **(settings | kwargs)).learn(40)


REFINERS = ["none", "langevin", "mala", "svgd", "mppi", "snis"]


@pytest.mark.parametrize("refiner", REFINERS)
def test_updates_are_the_same_bits(refiner):
    models = [small(refine_target=refiner != "none", policy_kwargs=dict(refiner=refiner)) for _ in range(2)]
    for model, puts_off in zip(models, (False, True), strict=True):
        update = model._update

        def deferring(batch, records, update=update):
            with deferred.deferred() as checks:
                update(batch, records)
            checks.raise_first()

        model._update = deferring if puts_off else update
        th.manual_seed(1), np.random.seed(1)
        model.train(8, 32)
    for mine, other in zip(*(model.policy.parameters() for model in models), strict=True):
        assert th.equal(mine, other)
    logs = [{name: value for name, value in model.logger.name_to_value.items() if "train/" in name} for model in models]
    assert logs[0] == logs[1] and models[0]._entropy == models[1]._entropy


def poison(model, where):
    with th.no_grad():
        if where == "reward":
            model.replay_buffer.rewards[:] = np.nan
        elif where == "temperature":
            model.log_ent_coef.fill_(math.nan)
        else:
            for parameter in getattr(model, where).parameters():
                parameter.fill_(math.inf)


@pytest.mark.parametrize("on_host", [True, False])
@pytest.mark.parametrize("where", ["reward", "actor", "critic", "critic_target"])
@pytest.mark.parametrize("refiner", REFINERS)
def test_the_same_error_later_and_nothing_changed(monkeypatch, refiner, where, on_host):
    model = small(refine_target=refiner != "none", policy_kwargs=dict(refiner=refiner))
    model.train(2, 32)
    poison(model, where)
    model._begin_updates()
    batch, state = model.replay_buffer.sample(32), th.get_rng_state()
    before = [tensor.clone() for tensor in model.policy.parameters()]
    with pytest.raises(FloatingPointError) as at_once:
        model._update(batch, defaultdict(list))
    th.set_rng_state(state)
    monkeypatch.setattr(deferred, "HOSTS", {"cpu"} if on_host else set())
    with deferred.deferred() as checks:
        model._update(batch, defaultdict(list))
    with pytest.raises(FloatingPointError) as later:
        checks.raise_first()
    assert type(later.value) is type(at_once.value)
    assert str(later.value) == str(at_once.value)
    for old, new in zip(before, model.policy.parameters(), strict=True):
        assert th.equal(old.nan_to_num(), new.nan_to_num())
