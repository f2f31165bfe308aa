"""Every test runs on one thread: on few cores that is faster for small networks, and xdist's workers do not compete."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # also for the processes that tests start
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch as th

from sb3_energy.policies.fast_predict.fast_predict import FastPredict

th.set_num_threads(1)


@pytest.fixture
def never(monkeypatch):
    """Makes the fast path fail, so that whoever predicts has taken the slow one."""

    def refuse(*args):
        raise AssertionError("the fast path was taken")

    monkeypatch.setattr(FastPredict, "_base", refuse)
