"""Training keeps nothing: neither tensors nor memory grow with the number of updates."""

import gc
import resource
from pathlib import Path

import pytest
import torch as th
from torch.utils._python_dispatch import TorchDispatchMode

from sb3_energy import PGAC, EnergySAC
from tests.models import POTENTIAL_TRAINING

POLICIES = {
    "none": dict(refiner="none"),
    "langevin": dict(refiner="langevin", refiner_steps=1, n_particles=1),
    "mppi": dict(refiner="mppi", refiner_steps=1, n_particles=4),
    "potential": dict(refiner_steps=1, n_particles=1),
}
KEPT = 8
"""Tensors that may be added once, such as a value in the logger."""
GROWTH = 2.0
"""MB that the allocator may add in 18,000 updates; it adds 0.02. A number kept as a tensor by each update would be 11."""


def make_model(name):
    policy = dict(net_arch=[16]) | POLICIES[name]
    settings = dict(learning_starts=200, buffer_size=200, seed=0, device="cpu", policy_kwargs=policy)
    settings |= dict(refine_target=name != "none")
    if name == "potential":
        return PGAC("MlpPolicy", "Pendulum-v1", **settings, potential_training_kwargs=POTENTIAL_TRAINING).learn(100)
    return EnergySAC("MlpPolicy", "Pendulum-v1", **settings).learn(100)


def update(model, n):
    for _ in range(n // 100):
        model.train(100, batch_size=8)


def n_tensors():
    gc.collect()
    return sum(issubclass(type(kept), th.Tensor) for kept in gc.get_objects())


def resident_mb():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_updates_leave_no_tensors_behind(name):
    model = make_model(name)
    update(model, 100)
    before = n_tensors()
    update(model, 200 if name == "potential" else 1_000)  # an update of which takes five times as long
    assert n_tensors() <= before + KEPT


class Shapes(TorchDispatchMode):
    """Collects the shapes of matrix products."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (th.ops.aten.mm, th.ops.aten.addmm, th.ops.aten.bmm, th.ops.aten.baddbmm):
            self.seen.add((func, *(tuple(part.shape) for part in args if isinstance(part, th.Tensor))))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_updates_multiply_matrices_of_few_shapes(name):
    # oneDNN compiles a primitive for each shape and keeps it: gathering so many rows as there are cost 0.5 ms and 200 MB
    model = make_model(name)
    with Shapes() as first:
        model.train(15, batch_size=256)
    with Shapes() as later:
        model.train(30, batch_size=256)
    assert len(first.seen) > 5 and len(later.seen - first.seen) <= 8


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
@pytest.mark.parametrize("name", ["none", "langevin"])
def test_memory_does_not_grow_over_twenty_thousand_updates(name):
    model = make_model(name)
    update(model, 2_000)
    gc.collect()
    before = resident_mb()
    update(model, 18_000)
    gc.collect()
    assert resident_mb() - before < GROWTH
