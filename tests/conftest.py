"""Every test runs on one thread: on few cores that is faster for small networks, and xdist's workers do not compete."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # also for the processes that tests start
os.environ.setdefault("MPLBACKEND", "Agg")

import torch as th

th.set_num_threads(1)
