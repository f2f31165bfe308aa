"""Arrays as people have them are learned from and predicted at: layouts, byte orders, frames, lists, zero rows."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_energy import PGAC, EnergyMatching, EnergySAC
from sb3_energy.conversion import as_native, as_tensor
from sb3_energy.entropy import von_neumann_entropy
from sb3_energy.refiners import REFINERS

X = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)


class Frame:
    """As data frames are: neither array nor sequence of rows, but there is ``__array__``."""

    def __init__(self, values):
        self.values = np.asarray(values)

    def __array__(self, dtype=None, copy=None):
        return self.values.astype(dtype or self.values.dtype)


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


LAYOUTS = {
    "reversed": lambda x: x[::-1].copy()[::-1],
    "fortran": np.asfortranarray,
    "big-endian": lambda x: x.astype(">f4"),
    "big-endian double": lambda x: x.astype(">f8"),
    "double": lambda x: x.astype(np.float64),
    "read-only": read_only,
    "strided": lambda x: np.repeat(x, 2, axis=0)[::2],
    "list": lambda x: x.tolist(),
    "tuple of rows": tuple,
    "frame": Frame,
    "object": lambda x: x.astype(object),
    "masked": np.ma.masked_array,
    "tensor": th.as_tensor,
    "double with grad": lambda x: th.as_tensor(x).double().requires_grad_(),
}
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


@each_layout
def test_numbers_in_any_layout(layout):
    found = as_tensor("x", LAYOUTS[layout](X))
    assert not found.requires_grad and found.is_contiguous()
    np.testing.assert_array_equal(found.float().numpy(), X)


def test_integers_and_halves():
    for values in (np.arange(3, dtype=np.uint16), [0, 1, 2], range(3), th.arange(3), np.arange(3, dtype=np.float16)):
        assert as_tensor("x", values).tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    "values", ["a", ["1"], np.array(["1"], object), [[1, 2], [3]], object(), None, [True], 1j, th.tensor([True]), {1: 2}]
)
def test_what_is_no_numbers_is_refused(values):
    with pytest.raises(TypeError, match=r"^x must be (real numbers|an array or a tensor of numbers), got .*$"):
        as_tensor("x", values)


def test_masked_entries_are_missing():
    assert np.isnan(as_tensor("x", np.ma.masked_array([1.0, 2.0], [False, True])).numpy()).tolist() == [False, True]
    with pytest.raises(ValueError, match="samples must be finite"):
        EnergyMatching(net_arch=[8]).fit(np.ma.masked_array(X, X > 1.0))


@each_layout
def test_energy_matching_learns_from_any_layout(layout):
    def fitted(x, obs):
        model = EnergyMatching(net_arch=[8], seed=0, n_steps=2, n_particles=2, batch_size=4, warm_up_steps=1)
        return model.fit(x, obs, gradient_steps=2)

    model, plain = fitted(LAYOUTS[layout](X), LAYOUTS[layout](X)), fitted(X, X)
    np.testing.assert_array_equal(model.energy(LAYOUTS[layout](X), LAYOUTS[layout](X)), plain.energy(X, X))
    for deterministic in (True, False):
        found, _ = model.predict(LAYOUTS[layout](X), deterministic=deterministic)
        np.testing.assert_array_equal(found, plain.predict(X, deterministic=deterministic)[0])


def test_energy_matching_of_no_observations():
    model = EnergyMatching(net_arch=[8], n_steps=2).fit(X[:, :2], X, gradient_steps=1)
    for deterministic in (True, False):
        assert model.predict(np.zeros((0, 3)), deterministic=deterministic)[0].shape == (0, 2)
    assert model.sample(4, np.zeros((0, 3))).shape == (0, 4, 2)
    with pytest.raises(ValueError, match=r"observations must have shape \(B, 3\), got \(0, 2\)"):
        model.predict(np.zeros((0, 2)))
    with pytest.raises(ValueError, match="with no 0 in it"):
        model.fit(np.zeros((0, 2)), np.zeros((0, 3)))


def policy_of(algorithm, refiner, space=None):
    kwargs = dict(net_arch=[8], refiner=refiner) | (dict(n_particles=4) if refiner != "none" else {})
    kwargs |= dict(box="tanh") if refiner in ("flow", "mean_flow") else {}
    cls = algorithm.policy_aliases["MlpPolicy" if space is None else "MultiInputPolicy"]
    th.manual_seed(0)
    space = spaces.Box(-9, 9, (3,)) if space is None else space
    return cls(space, spaces.Box(-2, 2, (2,)), lambda _: 1e-3, **kwargs)


CASES = [*((EnergySAC, name) for name in REFINERS), *((PGAC, name) for name in REFINERS if name != "none")]


@pytest.mark.parametrize(("algorithm", "refiner"), CASES, ids=lambda x: getattr(x, "__name__", x))
def test_no_observations(algorithm, refiner):
    policy = policy_of(algorithm, refiner)
    for deterministic in (True, False):
        assert policy.predict(np.zeros((0, 3), np.float32), deterministic=deterministic)[0].shape == (0, 2)
    assert policy.q_values(np.zeros((0, 3), np.float32), np.zeros((0, 2), np.float32)).shape == (0,)
    assert policy.sample_actions(np.zeros((0, 3), np.float32), 4).shape == (0, 4, 2)


@pytest.mark.parametrize("fast", [True, False])
@each_layout
def test_predictions_and_values_in_any_layout(layout, fast):
    policy = policy_of(EnergySAC, "langevin")
    policy.fast_predict = fast
    for deterministic in (True, False):
        found = []
        for obs in (LAYOUTS[layout](X[:2]), X[:2]):
            th.manual_seed(1)
            found.append(policy.predict(obs, deterministic=deterministic)[0])
        np.testing.assert_allclose(*found, rtol=0, atol=1e-5)
    actions = X[:2, :2].clip(-1, 1)
    found = policy.q_values(LAYOUTS[layout](X[:2]), LAYOUTS[layout](actions) if layout != "double with grad" else actions)
    np.testing.assert_allclose(found, policy.q_values(X[:2], actions), rtol=0, atol=1e-5)


def test_images_in_any_layout():
    image = spaces.Box(0, 255, (3, 36, 36), np.uint8)
    policy = EnergySAC.policy_aliases["CnnPolicy"](image, spaces.Box(-2, 2, (2,)), lambda _: 1e-3, net_arch=[8])
    obs = np.random.default_rng(0).integers(0, 256, (2, 3, 36, 36), dtype=np.uint8)
    for other in (obs[::-1].copy()[::-1], np.asfortranarray(obs), read_only(obs)):
        th.testing.assert_close(policy.obs_to_tensor(other)[0], policy.obs_to_tensor(obs)[0])


@pytest.mark.parametrize("refiner", ["none", "langevin", "flow"])
def test_several_draws_at_numpy_observations(refiner):
    policy = policy_of(EnergySAC, refiner)
    found = []
    for obs in (X[:2], th.as_tensor(X[:2]), X[:2].astype(">f8")):
        th.manual_seed(1)
        found.append(policy.sample_actions(obs, np.int64(5)))
    assert found[0].shape == (2, 5, 2)
    th.testing.assert_close(found[1], found[0])
    th.testing.assert_close(found[2], found[0])
    for single in (X[0], th.as_tensor(X[0])):
        assert policy.sample_actions(single, 3).shape == (1, 3, 2)
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        policy.sample_actions(X, 0)


def test_several_draws_at_dictionaries():
    space = spaces.Dict(a=spaces.Box(-9, 9, (3,)), b=spaces.Box(-9, 9, (1,)))
    policy = policy_of(EnergySAC, "langevin", space)
    obs = dict(a=X[:2], b=X[:2, :1])
    single = {key: part[0] for key, part in obs.items()}
    tensors = {key: th.as_tensor(part) for key, part in obs.items()}
    assert policy.sample_actions(obs, 3).shape == policy.sample_actions(tensors, 3).shape == (2, 3, 2)
    assert policy.sample_actions(single, 3).shape == (1, 3, 2)
    assert policy.predict({key: part[:0] for key, part in obs.items()}, deterministic=True)[0].shape == (0, 2)


def test_native_observations_are_not_copied():
    assert as_native(X) is X and as_native(3) == 3
    assert as_native(dict(a=X))["a"] is X


@each_layout
def test_von_neumann_entropy_of_any_layout(layout):
    particles = LAYOUTS[layout](X.reshape(2, 6, 3))
    found = von_neumann_entropy(particles)
    th.testing.assert_close(found.double(), von_neumann_entropy(th.as_tensor(X).reshape(2, 6, 3)).double(), rtol=0, atol=1e-5)
    assert found.dtype == (th.float64 if as_tensor("x", particles).dtype == th.float64 else th.float32)


def test_von_neumann_entropy_of_other_shapes():
    assert von_neumann_entropy([[[0.5]]]).item() == pytest.approx(0.0, abs=1e-6)
    assert von_neumann_entropy(np.zeros((2, 3, 1))).shape == (2,) and von_neumann_entropy(np.zeros((0, 3, 1))).shape == (0,)
    for shape in ((3, 2), (2,), (), (2, 0, 1), (2, 3, 0)):
        with pytest.raises(ValueError, match=r"particles must have shape \(B, N, \*event\), got \("):
            von_neumann_entropy(np.zeros(shape))
    with pytest.raises(ValueError, match="particles must be finite"):
        von_neumann_entropy([[[float("nan")]]])
