"""An update that is to be captured asks no tensor for its value: shown on the CPU, where that would do no harm.

Two proofs. One watches every operation that PyTorch is asked for, and refuses those that make the host wait for a GPU. The
other does the update with tensors that have no values (the ``meta`` device), so that none can be read, and refuses what comes
from the host or mixes its tensors with the device's, as a GPU would.
"""

import sys
from collections import defaultdict

import pytest
import torch as th
from torch.utils._python_dispatch import TorchDispatchMode

from sb3_energy import EnergySAC, deferred
from sb3_energy.training.guards import ENTROPY

aten = th.ops.aten

WAITS = {
    aten._local_scalar_dense,
    aten.item,
    aten.is_nonzero,
    aten.nonzero,
    aten.masked_select,
    aten.equal,
    aten.multinomial,
    aten._unique2,
    aten.repeat_interleave,
}
COPIES = {aten._to_copy, aten.copy_}
INDICES = {aten.index, aten.index_put, aten.index_put_}

SOFT_VALUE = dict(entropy_estimator="soft_value", entropy_estimator_kwargs=dict(n_proposals=16))
"""With a number of proposals: a choice reads values."""

SETTINGS = {
    "sac": dict(policy_kwargs=dict(refiner="none", backbone="plain")),
    "none": dict(policy_kwargs=dict(refiner="none")),
    "langevin, 1": dict(refine_target=True, policy_kwargs=dict(refiner="langevin", n_particles=1)),
    "langevin, 16": dict(refine_target=True, policy_kwargs=dict(refiner="langevin", n_particles=16)),
    "base": dict(refine_target=True, entropy_estimator="base"),
    "soft_value": dict(refine_target=True, **SOFT_VALUE),
    "smc entropy": dict(refine_target=True, entropy_estimator="smc"),
    "smc": dict(refine_target=True, policy_kwargs=dict(refiner="smc", n_particles=8, refiner_steps=3)),
    "mixture": dict(refine_target=True, entropy_estimator="mixture", policy_kwargs=dict(refiner="langevin")),
    "mala": dict(refine_target=True, policy_kwargs=dict(refiner="mala")),
    "mala, tuned": dict(
        refine_target=True, policy_kwargs=dict(refiner="mala", refiner_kwargs=dict(target_acceptance=0.5), refiner_steps=4)
    ),
    "hmc": dict(refine_target=True, policy_kwargs=dict(refiner="hmc")),
    "svgd": dict(refine_target=True, policy_kwargs=dict(refiner="svgd", refiner_kwargs=dict(max_step_norm=0.5))),
    "mppi": dict(refine_target=True, policy_kwargs=dict(refiner="mppi")),
    "mppi, fixed": dict(refine_target=True, policy_kwargs=dict(refiner="mppi", refiner_kwargs=dict(quasi_random=True))),
    "snis": dict(refine_target=True, policy_kwargs=dict(refiner="snis")),
    "derivative_free": dict(refine_target=True, policy_kwargs=dict(refiner="derivative_free")),
    "distillation": dict(distillation_coef=0.1),
    "fixed ent_coef": dict(ent_coef=0.1, refine_target=True, **SOFT_VALUE),
    "min": dict(refine_target=True, policy_kwargs=dict(energy_kwargs=dict(aggregate="min"))),
    "reflect": dict(refine_target=True, policy_kwargs=dict(box="reflect", trust_region=0.5)),
    "simba": dict(refine_target=True, policy_kwargs=dict(backbone="simba")),
    "bro": dict(refine_target=True, policy_kwargs=dict(backbone="bro", tolerance=0.1)),
    "by autograd": dict(refine_target=True),
    "units of the reward": dict(refine_target=True, policy_kwargs=dict(value_scale="none")),
}


class NoWaiting(TorchDispatchMode):
    """
    :param device: type of the device to which nothing may be copied from another
    """

    def __init__(self, device):
        super().__init__()
        self.device, self.seen = device, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        packet, kwargs = func.overloadpacket, kwargs or {}
        self.seen += 1
        if packet in WAITS:
            raise AssertionError(f"{func} makes the host wait")
        if packet in INDICES and any(part is not None and part.dtype in (th.bool, th.uint8) for part in args[1]):
            raise AssertionError(f"{func} with a mask makes the host wait")
        if packet in COPIES:
            devices = {part.device.type for part in args if isinstance(part, th.Tensor)}
            if devices | ({th.device(kwargs["device"]).type} if kwargs.get("device") else set()) != {self.device}:
                raise AssertionError(f"{func} copies between devices")
        return func(*args, **kwargs)


def model_of(critic="scalar", policy_kwargs=None, **kwargs):
    policy_kwargs = dict(net_arch=[16, 16], critic=critic) | (policy_kwargs or {})
    settings = dict(learning_starts=100, buffer_size=1000, seed=0, device="cpu", fast_matmul=False)
    return EnergySAC("MlpPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs, **settings, **kwargs).learn(80)


def named(name, critic):
    model = model_of(critic, **SETTINGS[name])
    if name == "by autograd":
        model.critic.by_hand = model.critic_target.by_hand = False
    return model


def to_meta(model):
    """The same model of tensors without values. Modules are changed in place; optimisers are made again."""
    for module in model.policy.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = th.nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            module._buffers[name] = buffer.to("meta")
    for part in (model.actor, model.critic):
        part.optimizer = th.optim.Adam(part.parameters())
    if model.log_ent_coef is None:
        model.ent_coef_tensor = model.ent_coef_tensor.to("meta")
    else:
        model.log_ent_coef = model.log_ent_coef.detach().to("meta").requires_grad_()
        model.ent_coef_optimizer = th.optim.Adam([model.log_ent_coef])
    return model


def update(model, batch):
    """What is captured: a step whose optimisers are as captured updates have them."""
    records = defaultdict(list)
    model._begin_updates()
    with deferred.deferred() as checks:
        model._update(batch, records)
    return records, checks


@pytest.mark.parametrize("critic", ["scalar", "quantile"])
@pytest.mark.parametrize("name", SETTINGS)
def test_no_operation_waits(monkeypatch, name, critic):
    monkeypatch.setattr(deferred, "HOSTS", set())
    model = named(name, critic)
    model.policy.set_training_mode(True)
    before = [parameter.clone() for parameter in model.policy.parameters()]
    batch = model.replay_buffer.sample(64)
    with NoWaiting("cpu") as mode:
        records, checks = update(model, batch)
    assert mode.seen > 100 and len(records[ENTROPY]) == 1
    assert all(th.isfinite(value).all() for values in records.values() for value in values)
    checks.raise_first()
    changed = [not th.equal(old, new) for old, new in zip(before, model.policy.parameters(), strict=True)]
    assert any(changed)


@pytest.mark.parametrize("critic", ["scalar", "quantile"])
@pytest.mark.parametrize("name", SETTINGS)
def test_an_update_needs_no_values(monkeypatch, name, critic):
    model = named(name, critic)
    batch = type(sample := model.replay_buffer.sample(64))(*(None if part is None else part.to("meta") for part in sample))
    to_meta(model)
    # Which devices have the kernel; this one has its shapes
    monkeypatch.setattr(sys.modules["torch.optim.adam"], "_device_dtype_check_for_fused", lambda parameter: None)
    update(model, batch)  # what is made when it is first used is there then, as after the warm-up
    with NoWaiting("meta") as mode:
        records, checks = update(model, batch)
    assert mode.seen > 100 and checks.flags().device.type == "meta"
    assert {value.device.type for values in records.values() for value in values} == {"meta"}
    assert all(value.numel() == 1 for values in records.values() for value in values)
    with pytest.raises(RuntimeError):
        checks.raise_first()


@pytest.mark.parametrize(
    "wait",
    [lambda x: x.sum().item(), lambda x: bool(x.any()), lambda x: x[x > 0], lambda x: x.nonzero(), lambda x: x.multinomial(1)],
)
def test_the_proof_finds_who_waits(wait):
    with pytest.raises(AssertionError, match="wait"), NoWaiting("cpu"):
        wait(th.ones(3))


def test_the_body_of_training_is_what_is_captured(monkeypatch):
    model, seen = model_of(), []
    original = model._update
    model._update = lambda batch, records: (seen.append(len(batch.rewards)), original(batch, records))
    model.train(2, 32)
    assert seen == [32, 32]
