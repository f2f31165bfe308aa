"""Data sets: what is accepted, what raises, and minibatches whose columns stay together."""

import numpy as np
import pytest
import torch as th

from sb3_energy.offline.dataset import checked_dataset

CPU = th.device("cpu")
N = 6


def columns(**changes):
    rows = np.arange(N, dtype=np.float64)
    found = dict(
        actions=np.stack([rows, -rows], axis=1),
        observations=rows[:, None] + 10.0,
        rewards=rows * 2.0,
        next_observations=rows[:, None] + 11.0,
        dones=rows == N - 1,
    )
    return found | changes


def test_columns_stay_together_in_a_minibatch():
    data = checked_dataset(**columns(), device=CPU)
    assert len(data) == N and all(column.dtype == th.float32 for column in vars(data).values())
    batch = data.draw(500, th.Generator().manual_seed(0))
    rows = batch.actions[:, 0]
    assert set(rows.tolist()) == set(range(N)), "every row is drawn"
    assert th.equal(batch.actions[:, 1], -rows) and th.equal(batch.observations[:, 0], rows + 10.0)
    assert th.equal(batch.rewards, 2.0 * rows) and th.equal(batch.next_observations[:, 0], rows + 11.0)
    assert th.equal(batch.dones, (rows == N - 1).float())
    again = data.draw(500, th.Generator().manual_seed(0))
    assert all(th.equal(old, new) for old, new in zip(vars(batch).values(), vars(again).values(), strict=True))


def test_columns_that_are_left_out_stay_out():
    batch = checked_dataset([[0.0], [1.0]], device=CPU).draw(3, th.Generator())
    assert batch.actions.shape == (3, 1)
    assert batch.observations is batch.rewards is batch.next_observations is batch.dones is None


@pytest.mark.parametrize("dones", [[0, 1], [[False], [True]], th.tensor([False, True]), np.array([[0.0], [1.0]])])
def test_ends_of_returns_in_every_form(dones):
    assert checked_dataset([[0.0], [1.0]], dones=dones, device=CPU).dones.tolist() == [0.0, 1.0]


def test_several_actions_of_an_observation():
    data = checked_dataset(np.zeros((4, 3, 2)), np.zeros((4, 1)), device=CPU, action_dims=(2, 3))
    assert data.draw(5, th.Generator()).actions.shape == (5, 3, 2)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (dict(actions=np.zeros(N)), ValueError, r"actions must have shape \(n, D\) with no 0 in it, got \(6,\)"),
        (dict(actions=np.zeros((0, 2))), ValueError, "actions must have shape"),
        (dict(actions="actions"), TypeError, "actions must be"),
        (dict(actions=np.full((N, 2), np.nan)), ValueError, "actions must be finite"),
        (dict(observations=np.zeros((N, 2, 2))), ValueError, "observations must have shape"),
        (dict(observations=np.zeros((N - 1, 1))), ValueError, "as many observations as rows of actions, got 5 and 6"),
        (dict(next_observations=np.zeros((N, 2))), ValueError, "observations and next_observations must have one shape"),
        (dict(next_observations=np.full((N, 1), np.inf)), ValueError, "next_observations must be finite"),
        (dict(rewards=np.zeros((N, 2))), ValueError, r"rewards must have shape \(n,\) or \(n, 1\), got \(6, 2\)"),
        (dict(rewards=np.zeros(N + 1)), ValueError, "as many rewards"),
        (dict(rewards=np.full(N, np.inf)), ValueError, "rewards must be finite"),
        (dict(dones=np.full(N, 0.5)), ValueError, "dones must be 0 or 1"),
    ],
)
def test_wrong_data_raise(changes, error, words):
    with pytest.raises(error, match=words):
        checked_dataset(**columns(**changes), device=CPU)
