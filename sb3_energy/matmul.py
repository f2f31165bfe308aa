"""Which library multiplies 32-bit matrices on the CPU.

PyTorch multiplies with MKL, or, at ``torch.set_float32_matmul_precision("medium")``, with oneDNN. On processors that are not
Intel's the latter can be twice as fast and as exact; on some it rounds to 16 bits. So it is tried before it is used, and it is
used for large products alone: those with a single row or column take it several times as long.
"""

import time
from functools import lru_cache
from types import TracebackType

import torch as th

LARGEST_ERROR = 1e-5
"""Of a product in units of the product of absolute values; 32-bit arithmetic has about 5e-7, 16-bit 4e-3."""

FEWEST_ROWS = 32
"""Of a batch for which oneDNN is worth while; at 16 rows both libraries are equally fast."""


class MatmulPrecision:
    """
    Context manager: ``torch.set_float32_matmul_precision``, and what it was before afterwards.

    :param precision: ``"highest"``, ``"high"`` or ``"medium"``
    """

    __slots__ = ("before", "precision")

    def __init__(self, precision: str):
        self.precision = precision

    def __enter__(self) -> None:
        self.before = th.get_float32_matmul_precision()
        if self.before != self.precision:
            th.set_float32_matmul_precision(self.precision)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.before != self.precision:
            th.set_float32_matmul_precision(self.before)


@lru_cache
def fast_matmul_is_exact(n_threads: int) -> bool:
    """
    Measure whether matmul at ``"medium"`` precision is still accurate to single precision.

    :param n_threads: that torch uses, for which the answer holds
    :return: whether oneDNN's products have an error below ``LARGEST_ERROR``
    """
    generator = th.Generator().manual_seed(0)
    a, b = (th.randn(256, 256, generator=generator) for _ in range(2))
    with MatmulPrecision("medium"):
        product = a @ b
    error = (product.double() - a.double() @ b.double()).abs() / (a.double().abs() @ b.double().abs())
    return bool(error.max() < LARGEST_ERROR)


@lru_cache
def fast_matmul_gain(n_threads: int) -> float:
    """
    Benchmark the speed-up of matmul at ``"medium"`` over ``"highest"`` precision.

    :param n_threads: that torch uses, for which the answer holds
    :return: how many times as fast oneDNN multiplies 256 × 256 matrices
    """
    a, b = th.ones(256, 256), th.ones(256, 256)
    fastest = {"highest": float("inf"), "medium": float("inf")}
    for _ in range(12):  # in turn: a machine that others use is fast and slow by turns
        for precision in fastest:
            with MatmulPrecision(precision):
                start = time.perf_counter()
                for _ in range(2):
                    th.mm(a, b)
                fastest[precision] = min(fastest[precision], time.perf_counter() - start)
    return fastest["highest"] / fastest["medium"]
