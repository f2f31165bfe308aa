"""A random stream of a model's own, so that what it learns does not depend on what else in the process draws."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch as th


@contextmanager
def own_randomness(generator: th.Generator, device: th.device) -> Iterator[None]:
    """
    Within this context torch's global generators, of the CPU and of the device, continue a stream of their own; afterwards
    they are as they were. So networks with dropout, and code that knows nothing of generators, are repeatable.

    :param generator: the stream, on the CPU, which moves on
    :param device: on which draws are made
    """
    seed = int(th.randint(2**62, (), generator=generator))
    with th.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        th.default_generator.manual_seed(seed)  # th.manual_seed would seed those of all GPUs
        if device.type == "cuda":
            with th.cuda.device(device):
                th.cuda.manual_seed(seed)
        yield
