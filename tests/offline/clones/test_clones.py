"""Explicit clones: what each head learns of a known law, nearest neighbours against SciPy's, and SB3's expectations."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from scipy.spatial import cKDTree
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_energy import BC, NearestNeighbour, OfflineDataset
from sb3_energy.offline.clones import BCPolicy, NearestNeighbourPolicy
from tests.offline.small_clone import BOX, PLANE, Reach, data

LINE = spaces.Box(-1.0, 1.0, (1,), np.float32)


def two_ways(n=2000, seed=0):
    """Right with probability .3, else left, whatever is observed."""
    rng = np.random.default_rng(seed)
    sides = np.where(rng.random((n, 1)) < 0.3, 0.6, -0.4)
    return OfflineDataset(rng.uniform(-1, 1, (n, 1)), sides + 0.02 * rng.standard_normal((n, 1)), LINE, LINE)


def clone(head="mse", dataset=None, **kwargs):
    dataset = two_ways() if dataset is None else dataset
    kwargs = dict(net_arch=[32], head=head) | kwargs
    return BC("MlpPolicy", dataset, learning_rate=1e-2, policy_kwargs=kwargs, seed=0, device="cpu")


SEEN = np.linspace(-0.9, 0.9, 400, dtype=np.float32)[:, None]


def test_least_squares_learn_the_mean_of_two_ways():
    model = clone().learn(300)
    actions, _ = model.predict(SEEN)
    assert np.abs(actions - (0.3 * 0.6 - 0.7 * 0.4)).mean() < 0.06
    assert np.array_equal(actions, model.predict(SEEN, deterministic=True)[0]), "it has no other"


@pytest.mark.parametrize("backbone", ["plain", "layer_norm"])
def test_a_mixture_learns_both_ways_and_their_shares(backbone):
    model = clone("mixture", n_components=3, backbone=backbone).learn(300)
    actions = np.concatenate([model.predict(SEEN)[0] for _ in range(5)])
    assert abs((actions > 0.1).mean() - 0.3) < 0.1
    assert np.minimum(np.abs(actions - 0.6), np.abs(actions + 0.4)).mean() < 0.05
    assert np.abs(model.predict(SEEN, deterministic=True)[0] + 0.4).max() < 0.05, "the mode of the larger share"


def test_nearest_neighbours_are_scipys():
    dataset = data(500)
    model = NearestNeighbour("MlpPolicy", dataset, policy_kwargs=dict(n_neighbours=5), device="cpu", seed=0)
    mean, std = dataset.observations.mean(0), dataset.observations.std(0)
    tree = cKDTree((dataset.observations - mean) / std)
    seen = data(50, seed=4).observations
    nearest = tree.query((seen - mean) / std, 5)[1]
    actions = model.predict(seen, deterministic=True)[0]
    assert np.allclose(actions, dataset.actions[nearest[:, 0]], atol=1e-5)
    drawn = np.stack([model.predict(seen)[0] for _ in range(200)], axis=1)
    among = np.abs(drawn[:, :, None] - dataset.actions[nearest][:, None]).max(-1) < 1e-5
    assert among.any(-1).all() and among.any(1).all(), "each of the five, and no other"


def test_a_step_of_nearest_neighbours_measures_with_the_row_left_out():
    dataset = data(300)
    model = NearestNeighbour("MlpPolicy", dataset, batch_size=4096, device="cpu", seed=0).learn(1)
    standard = (dataset.observations - dataset.observations.mean(0)) / dataset.observations.std(0)
    second = cKDTree(standard).query(standard, 2)[1][:, 1]
    scaled = 2.0 * (dataset.actions - BOX.low) / (BOX.high - BOX.low) - 1.0
    errors = np.square(scaled - scaled[second]).mean(1)
    assert abs(model._latest_losses["loss"].item() - errors.mean()) < 4.0 * errors.std() / 64.0


def test_other_data_replace_what_was_remembered():
    model = NearestNeighbour("MlpPolicy", data(100), device="cpu")
    other = data(40, seed=9)
    model.set_dataset(other)
    assert len(model.policy.known_actions) == 40
    assert np.allclose(model.predict(other.observations, deterministic=True)[0], other.actions, atol=1e-5)


def made(kind, **kwargs):
    if kind == "nearest":
        return NearestNeighbour("MlpPolicy", data(), seed=0, device="cpu", **kwargs)
    return BC("MlpPolicy", data(), batch_size=32, policy_kwargs=dict(net_arch=[8], head=kind), seed=0, device="cpu", **kwargs)


@pytest.mark.parametrize("kind", ["mse", "mixture", "nearest"])
def test_they_are_saved_loaded_and_continued(tmp_path, kind):
    model = made(kind).learn(20)
    seen = data(9, seed=5).observations
    expected = model.predict(seen, deterministic=True)[0]
    model.save(tmp_path / "model")
    again = type(model).load(tmp_path / "model", device="cpu")
    assert np.array_equal(again.predict(seen, deterministic=True)[0], expected)
    again.set_dataset(data())
    for one in (model, again):
        one.learn(10, reset_num_timesteps=False)
    state = model.policy.state_dict()
    assert all(th.equal(value, again.policy.state_dict()[name]) for name, value in state.items())
    model.policy.save(tmp_path / "policy")
    alone = type(model.policy).load(tmp_path / "policy", device="cpu")
    assert np.array_equal(alone.predict(seen, deterministic=True)[0], model.predict(seen, deterministic=True)[0])


@pytest.mark.parametrize("kind", ["mse", "mixture", "nearest"])
def test_they_are_evaluated_during_training(kind):
    evaluate = EvalCallback(make_vec_env(Reach, 1), eval_freq=5, n_eval_episodes=2, verbose=0)
    made(kind, env=Reach()).learn(10, callback=evaluate)
    assert np.isfinite(evaluate.best_mean_reward)


def dictionary(n=40):
    rng = np.random.default_rng(0)
    parts = dict(image=rng.integers(0, 256, (n, 36, 36, 1), dtype=np.uint8), arm=rng.normal(5.0, 2.0, (n, 3)))
    space = spaces.Dict(image=spaces.Box(0, 255, (36, 36, 1), np.uint8), arm=PLANE)
    return parts, data(n, observations=parts, observation_space=space)


@pytest.mark.parametrize("algorithm", [BC, NearestNeighbour])
def test_dictionaries_and_images(algorithm):
    parts, dataset = dictionary()
    model = algorithm("MultiInputPolicy", dataset, device="cpu").learn(2)
    shown = {key: parts[key][:5] for key in ("image", "arm")}
    actions = model.predict(shown, deterministic=True)[0]
    assert np.array_equal(model.predict(dict(reversed(shown.items())), deterministic=True)[0], actions), "in any order"
    images = data(40, observations=parts["image"], observation_space=spaces.Box(0, 255, (36, 36, 1), np.uint8))
    of_images = algorithm("CnnPolicy", images, device="cpu").learn(1).predict(parts["image"][:5], deterministic=True)[0]
    assert actions.shape == of_images.shape == (5, 2)
    if algorithm is NearestNeighbour:
        assert np.allclose(actions, dataset.actions[:5], atol=1e-5) and np.allclose(of_images, images.actions[:5], atol=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "error", "words"),
    [
        (dict(head="gaussian"), ValueError, r"head must be one of \['mse', 'mixture'\], got 'gaussian'"),
        (dict(n_components=3), ValueError, "n_components needs head='mixture', got 3 with head='mse'"),
        (dict(head="mixture", n_components=0), ValueError, "n_components must be at least 1, got 0"),
        (
            dict(backbone="flash"),
            ValueError,
            "backbone of a clone must not normalise over batches, got 'flash'; use 'layer_norm'",
        ),
        (dict(step_size=0.1), TypeError, "policy_kwargs of BCPolicy have no argument 'step_size'"),
        (dict(n_neighbours=2), TypeError, "policy_kwargs of BCPolicy have no argument 'n_neighbours'"),
    ],
)
def test_wrong_arguments_are_refused(kwargs, error, words):
    with pytest.raises(error, match=words):
        BC("MlpPolicy", data(), policy_kwargs=kwargs, device="cpu")


def test_nearest_neighbours_take_no_arguments_of_networks():
    with pytest.raises(TypeError, match="NearestNeighbour has no argument 'learning_rate'"):
        NearestNeighbour("MlpPolicy", data(), learning_rate=0.1)
    with pytest.raises(TypeError, match="policy_kwargs of NearestNeighbourPolicy have no argument 'net_arch'"):
        NearestNeighbour("MlpPolicy", data(), policy_kwargs=dict(net_arch=[4]))
    with pytest.raises(ValueError, match="n_neighbours must be at least 1"):
        NearestNeighbour("MlpPolicy", data(), policy_kwargs=dict(n_neighbours=0))
    empty = NearestNeighbourPolicy(PLANE, BOX, lambda _: 0.0)
    with pytest.raises(RuntimeError, match="nothing is remembered yet"):
        empty.predict(data(2).observations)
    assert isinstance(clone().policy, BCPolicy)
