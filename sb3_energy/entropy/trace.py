"""The density of particles that Stein variational gradient descent has moved."""

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import torch as th

from sb3_energy.autodiff import hessian_trace
from sb3_energy.checks import check_bool, plain_fields
from sb3_energy.entropy.chains import known_log_prob
from sb3_energy.steps import steps
from sb3_energy.types import EntropyContext, EntropyEstimate, Target


@dataclass(frozen=True)
class TraceEntropy:
    """
    ``log q_L = log q_0 - Σ_l ε Tr ∇φ(a^l)``: the density that the steps of SVGD leave, to first order, in S2AC's closed form
    (Messaoud et al. 2024, theorem 3.3), in the mean over the particles. It holds for steps with ``ε |∇φ|`` well below 1 and a
    warning says where they are not; clipped steps count as if they were not clipped.

    :param self_term: whether the trace of the Hessian at the particle itself is added, which S2AC leaves out, with one probe
        (Hutchinson 1990); it costs a second derivative of the energy
    :param determinant: whether to use ``log |det(I + ε ∇φ)|`` in place of its first order, without the self term's share
    :raises TypeError: if something is no bool
    :raises ValueError: if both are asked for
    """

    self_term: bool = False
    determinant: bool = False

    reads_values: ClassVar[bool] = True

    def __post_init__(self) -> None:
        plain_fields(self)
        for name in ("self_term", "determinant"):
            check_bool(name, getattr(self, name))
        if self.self_term and self.determinant:
            raise ValueError("self_term=True adds to the first order and needs determinant=False, got True")

    def estimate(self, context: EntropyContext) -> EntropyEstimate:
        """
        Accumulate the change of log-density along the chain from the Jacobians of its steps.

        :param context: which starts the particles
        :return: the mean over particles, and the longest step in units of where the first order fails
        """
        chains = context.simulate(1)
        refiner: Any = chains.refiner.deterministic()
        log_prob, ends = known_log_prob(chains), chains.particles
        longest = log_prob.new_zeros(len(log_prob))
        for before, after, _, tick in steps(refiner, chains.particles, chains.target, n_steps=chains.n_steps):
            jacobian = refiner.step_jacobian(before, tick)
            log_prob = log_prob - self._log_volume(jacobian)
            if self.self_term:
                log_prob = log_prob + refiner.own_share(before, tick) * _hessian_trace(chains.target, before.particles)
            longest = th.maximum(longest, jacobian.flatten(2).norm(dim=2).amax(dim=1))
            ends = after.particles
        log_prob = log_prob - chains.log_jacobian(ends)
        if longest.mean() > 1.0:
            warnings.warn(
                # Without the number, so that Python shows it once; entropy_step_norm is logged
                "entropy_estimator='trace' counts steps to first order, and these are too long for it: ε|∇φ| passes 1 in the "
                "mean over observations (train/entropy_step_norm); try a smaller step_size or max_step_norm=0.5",
                stacklevel=2,
            )
        return EntropyEstimate(log_prob.mean(dim=1, keepdim=True), dict(entropy_step_norm=longest))

    def _log_volume(self, jacobian: th.Tensor) -> th.Tensor:
        if not self.determinant:
            return jacobian.diagonal(dim1=-2, dim2=-1).sum(-1)
        identity = th.eye(jacobian.shape[-1], device=jacobian.device, dtype=jacobian.dtype)
        return th.linalg.slogdet(identity + jacobian).logabsdet


def _hessian_trace(target: Target, particles: th.Tensor) -> th.Tensor:
    probes = th.randint_like(particles, 0, 2) * 2.0 - 1.0
    return hessian_trace(target.energy, particles, probes)
