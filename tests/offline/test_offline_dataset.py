"""Data sets: what is refused, with row and field, episodes and the best of them, next observations, minibatches, files."""

import os
import stat

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_energy.offline.loading import load_dataset
from sb3_energy.offline.offline_dataset import OfflineDataset
from tests.offline.small_clone import BOX, PLANE

N = 6


def rows(**changes):
    """Three episodes, of 2, 3 and 1 rows: one terminates, one is cut off by a time limit, one by the end of the recording."""
    count = np.arange(N, dtype=np.float64)
    found = dict(
        observations=np.stack([count, -count, count**2], axis=1),
        actions=np.stack([count / 4.0, count / 3.0], axis=1),
        rewards=count,
        terminations=[False, True, False, False, False, False],
        truncations=[False, False, False, False, True, False],
    )
    return found | changes


def dataset(**changes):
    return OfflineDataset(**(dict(observation_space=PLANE, action_space=BOX) | rows(**changes)))


def test_episodes_and_their_returns():
    data = dataset()
    assert len(data) == 6 and data.n_episodes == 3
    assert data.returns.tolist() == [0 + 1, 2 + 3 + 4, 5] and data.are_whole.tolist() == [True, True, False]
    episodes = list(data.episodes())
    assert [len(one) for one in episodes] == [2, 3, 1] and [one.n_episodes for one in episodes] == [1, 1, 1]
    assert np.array_equal(np.concatenate([one.observations for one in episodes]), data.observations)
    assert "6 transitions, 3 episodes" in repr(data)


def test_the_best_episodes_are_whole_and_stay_in_their_order():
    data = dataset()
    assert data.best(0.5).rewards.tolist() == [2.0, 3.0, 4.0]
    assert data.best(1.0).rewards.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0], "the last one's return is not known"
    assert data.best(1e-6).n_episodes == 1 and data.best(0.5).truncations.tolist() == [False, False, True]
    many = dataset(rewards=[5, 0, 1, 1, 1, 9], terminations=[0, 1, 0, 0, 1, 1], truncations=None)
    assert many.best(2 / 3).rewards.tolist() == [5.0, 0.0, 9.0] and many.best(2 / 3).n_episodes == 2
    for fraction in (0.0, 1.5):
        with pytest.raises(ValueError, match=r"fraction must lie in \(0, 1\]"):
            data.best(fraction)
    with pytest.raises(ValueError, match=r"returns need rewards, which these data do not have"):
        dataset(rewards=None).best(0.5)
    with pytest.raises(ValueError, match=r"best needs episodes with an end"):
        dataset(terminations=None, truncations=None).best(0.5)


def test_best_agrees_with_sorting():
    rng = np.random.default_rng(0)
    ends = rng.random(300) < 0.1
    rewards = rng.standard_normal(300)
    data = dataset(
        observations=np.zeros((300, 3)), actions=np.zeros((300, 2)), rewards=rewards, terminations=ends, truncations=None
    )
    parts = [part for part in np.split(rewards, np.flatnonzero(ends) + 1) if len(part) > 0]
    whole = sorted((part.sum() for part in parts[: ends.sum()]), reverse=True)
    best = data.best(0.25)
    assert sorted(best.returns, reverse=True) == pytest.approx(whole[: int(np.ceil(0.25 * len(whole)))], abs=1e-5)


def test_next_observations_are_those_of_the_next_row_of_the_episode():
    data = dataset()
    made = data.with_next_observations()
    assert made.rewards.tolist() == [0.0, 1.0, 2.0, 3.0], "the rows whose next observation was not recorded are left out"
    assert made.next_observations[:, 0].tolist() == [1.0, 1.0, 3.0, 4.0], "after a termination it does not matter"
    assert made.terminations.tolist() == [False, True, False, False] and made.truncations.tolist() == [False] * 3 + [True]
    assert made.episode_ends.tolist() == [False, True, False, True]
    assert made.with_next_observations() is made
    with pytest.raises(ValueError, match=r"next_observations are needed, and every episode of these data has one row only"):
        dataset(terminations=None, truncations=np.ones(N)).with_next_observations()


def test_terminations_are_no_ends_of_episodes_where_these_are_given():
    data = dataset(terminations=[0, 1, 1, 0, 1, 1], truncations=None, episode_ends=[0, 0, 1, 0, 0, 1])
    assert data.n_episodes == 2 and data.are_whole.tolist() == [True, True]
    assert data.draw(50, th.Generator().manual_seed(0)).dones.mean() > 0.3


def test_rows_of_a_minibatch_stay_together():
    batch = dataset().draw(400, th.Generator().manual_seed(0))
    count = batch.rewards
    assert set(count.tolist()) == set(range(N)) and batch.next_observations is None
    assert th.equal(batch.observations, th.stack([count, -count, count**2], dim=1))
    assert th.allclose(batch.actions, th.stack([count / 4.0, count / 3.0], dim=1))
    assert th.equal(batch.dones, (count == 1.0).float())
    again = dataset().draw(400, th.Generator().manual_seed(0))
    assert th.equal(again.rewards, batch.rewards) and batch.to(th.device("cpu")).rewards.dtype == th.float32
    with pytest.raises(ValueError, match=r"n must be at least 1"):
        dataset().draw(0)


def with_entry(name, place, value):
    column = np.array(rows()[name], dtype=np.float64)
    column[place] = value
    return {name: column}


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (
            with_entry("observations", (4, 1), np.nan),
            ValueError,
            "observations must be finite in single precision, got nan in row 4",
        ),
        (
            with_entry("observations", (0, 2), 1e39),
            ValueError,
            r"observations must be finite in single precision, got 1e\+39 in row 0",
        ),
        (with_entry("rewards", 2, -np.inf), ValueError, "rewards must be finite in single precision, got -inf in row 2"),
        (with_entry("actions", (5, 0), np.inf), ValueError, "actions must be finite in single precision, got inf in row 5"),
        (
            with_entry("actions", (3, 1), 3.1),
            ValueError,
            r"actions must lie in the box of the action space, got 3.1 in row 3 at coordinate 1, which goes from -1 to 3; .*",
        ),
        (dict(next_observations=np.full((N, 3), np.nan)), ValueError, "next_observations must be finite .* row 0"),
        (dict(observations=np.zeros((N, 4))), ValueError, r"observations must have shape \(n, 3\), got \(6, 4\)"),
        (
            dict(observations=np.zeros((N - 1, 3))),
            ValueError,
            "there must be as many rows of observations as of actions, got 5 and 6",
        ),
        (dict(next_observations=np.zeros((N, 3, 1))), ValueError, r"next_observations must have shape \(n, 3\)"),
        (dict(rewards=np.zeros(N + 1)), ValueError, "there must be as many rows of rewards as of actions, got 7 and 6"),
        (dict(rewards=np.zeros((N, 2))), ValueError, r"rewards must have shape \(n,\) or \(n, 1\), got \(6, 2\)"),
        (dict(terminations=np.zeros(N - 1)), ValueError, "there must be as many rows of terminations as of actions"),
        (dict(truncations=[0, 0, 0.5, 0, 0, 0]), ValueError, "truncations must be 0 or 1, got another value in row 2"),
        (dict(actions=np.zeros((0, 2))), ValueError, "actions must have at least one row, got none: the data set is empty"),
        (dict(actions=np.zeros(N)), ValueError, r"actions must have shape \(n, 2\), got \(6,\)"),
        (
            dict(rewards=np.ma.masked_equal(np.arange(N), 3)),
            ValueError,
            "rewards must be finite in single precision, got nan in row 3",
        ),
        (dict(actions="actions"), TypeError, "actions must be an array of numbers, got <U7"),
        (dict(observations=[[1, 2], [3]]), TypeError, "observations must be an array of numbers, got list"),
        (dict(observations=dict(a=np.zeros(N))), ValueError, "observations must be an array for the observation space Box"),
        (dict(action_space=spaces.Discrete(3)), ValueError, r"the action space must be a Box: .*, got Discrete\(3\)"),
        (dict(action_space=spaces.Box(-np.inf, 1.0, (2,))), ValueError, "the action space must have finite bounds"),
        (dict(observation_space=spaces.Text(3)), ValueError, "the observation space must be a Box, Discrete, .*, got Text"),
        (
            dict(observation_space=spaces.Dict(a=spaces.Dict(b=spaces.Discrete(2)))),
            ValueError,
            "the observation space must be .* a flat Dict of these, got Dict.* at 'a'",
        ),
    ],
)
def test_wrong_data_are_refused_with_field_and_row(changes, error, words):
    with pytest.raises(error, match=f"^{words}") as caught:
        dataset(**changes)
    assert "\n" not in str(caught.value)


def test_actions_outside_by_a_rounding_are_clipped():
    actions = np.full((N, 2), 2.0) * (1.0 + 1e-7)
    assert (dataset(actions=actions).actions <= BOX.high).all()


def test_discrete_observations_are_checked():
    space = spaces.Discrete(4, start=1)
    assert dataset(observations=[1, 2, 3, 4, 1, 2], observation_space=space).observations.dtype == np.int64
    with pytest.raises(ValueError, match=r"observations must be whole numbers of Discrete\(4, start=1\), got 5 in row 2"):
        dataset(observations=[1, 2, 5, 4, 1, 2], observation_space=space)
    both = spaces.Dict(kind=spaces.MultiDiscrete([2, 3]), on=spaces.MultiBinary(2))
    parts = dict(kind=np.ones((N, 2)), on=np.zeros((N, 2)))
    assert dataset(observations=parts, observation_space=both).observations["on"].dtype == np.int8
    with pytest.raises(ValueError, match=r"observations\['kind'\] must be whole numbers of .*, got 2 in row 0"):
        dataset(observations=parts | dict(kind=np.full((N, 2), 2)), observation_space=both)
    with pytest.raises(ValueError, match=r"observations must be a dictionary with the keys \['kind', 'on'\], got \['kind'\]"):
        dataset(observations=dict(kind=parts["kind"]), observation_space=both)


def test_images_become_channels_first_and_stay_bytes():
    images = np.random.default_rng(0).integers(0, 256, (N, 36, 40, 3), dtype=np.uint8)
    data = dataset(observations=images, observation_space=spaces.Box(0, 255, (36, 40, 3), np.uint8))
    assert data.observation_space == spaces.Box(0, 255, (3, 36, 40), np.uint8)
    assert np.array_equal(data.observations, images.transpose(0, 3, 1, 2)) and data.draw(3).observations.dtype == th.uint8
    late = dataset(observations=images, observation_space=data.observation_space)
    assert np.array_equal(late.observations, data.observations), "of an environment that SB3 has wrapped"
    with pytest.raises(ValueError, match=r"observations must be whole numbers of .*, got 0.5 in row 0"):
        dataset(observations=np.full((N, 3, 36, 40), 0.5), observation_space=data.observation_space)


SPACES = [
    PLANE,
    spaces.Discrete(N, start=2),
    spaces.MultiDiscrete([7, 8]),
    spaces.MultiBinary(3),
    spaces.Box(0, 255, (36, 36, 1), np.uint8),
    spaces.Dict({"a/b": PLANE, "image": spaces.Box(0, 255, (4, 36, 36), np.uint8), "kind": spaces.Discrete(3)}),
]


def sampled(space):
    if isinstance(space, spaces.Dict):
        return {key: sampled(part) for key, part in space.spaces.items()}
    return np.stack([np.asarray(space.sample()) for _ in range(N)])


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_a_saved_data_set_is_loaded_with_its_spaces(tmp_path, space):
    space.seed(0)
    data = dataset(observations=sampled(space), next_observations=sampled(space), observation_space=space)
    data.save(tmp_path / "data")
    again = load_dataset(tmp_path / "data.npz")
    assert (again.observation_space, again.action_space) == (data.observation_space, BOX)
    for name in ("actions", "rewards", "terminations", "truncations", "episode_ends"):
        assert np.array_equal(getattr(again, name), getattr(data, name)), name
    for name in ("observations", "next_observations"):
        old, new = getattr(data, name), getattr(again, name)
        pairs = [(old[key], new[key]) for key in old] if isinstance(old, dict) else [(old, new)]
        assert all(np.array_equal(*pair) and pair[0].dtype == pair[1].dtype for pair in pairs)


@pytest.mark.skipif(os.name == "nt", reason="no such modes on Windows")
def test_an_old_file_stays_whole_if_the_new_one_cannot_be_written(tmp_path, monkeypatch):
    dataset().save(tmp_path / "data.npz")
    before = (tmp_path / "data.npz").read_bytes()
    monkeypatch.setattr(np, "savez", lambda file, **columns: file.write(b"half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        dataset().save(tmp_path / "data.npz")
    assert (tmp_path / "data.npz").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    assert stat.S_ISREG((tmp_path / "data.npz").stat().st_mode)
