"""Running normalisation of features."""

import torch as th
from torch import nn

from sb3_energy.deferred import NonFiniteError, active_checks, require
from sb3_energy.networks.backbones import find_backbone


class RunningNorm(nn.Module):
    """
    ``(x - mean) / sqrt(variance + eps)`` with the statistics of everything that :meth:`update` was given.
    SimBa's running observation normalisation (Lee et al. 2025, section 4); the statistics are merged batch by batch
    (Chan, Golub and LeVeque 1979, equation 2.1).

    Before the first update it is the identity. ``forward`` never updates, so acting and evaluating leave no trace, and
    nothing is clipped. The buffers' names contain ``running_``: SB3 copies such statistics from critic to target critic.

    :param dim: number of features
    :param eps: added to the variance, as in SB3's ``VecNormalize``
    """

    running_mean: th.Tensor
    running_var: th.Tensor
    running_count: th.Tensor

    def __init__(self, dim: int, eps: float = 1e-8):
        super().__init__()
        self.eps = eps
        self.register_buffer("running_mean", th.zeros(dim))
        self.register_buffer("running_var", th.ones(dim))
        self.register_buffer("running_count", th.zeros(()))

    def forward(self, features: th.Tensor) -> th.Tensor:
        """
        Normalise features with the running mean and variance.

        :param features: ``(..., F)``
        :return: normalised features, same shape
        """
        return (features - self.running_mean) / th.sqrt(self.running_var + self.eps)

    @th.no_grad()
    def update(self, batch: th.Tensor) -> None:
        """
        Merge the statistics of a batch into the running ones.

        :param batch: ``(B, F)`` features before normalisation
        :raises ValueError: if the shape is another one or the batch is empty
        :raises FloatingPointError: if the statistics would not be finite; they stay as they are then
        """
        if batch.ndim != 2 or batch.shape[0] == 0 or batch.shape[1] != len(self.running_mean):
            raise ValueError(f"batch must have shape (B, {len(self.running_mean)}) with B > 0, got {tuple(batch.shape)}")
        batch_var, batch_mean = th.var_mean(batch, dim=0, correction=0)
        count = self.running_count + len(batch)
        weight = len(batch) / count
        delta = batch_mean - self.running_mean
        mean = self.running_mean + weight * delta
        var = self.running_var * (1.0 - weight) + weight * (batch_var + (1.0 - weight) * delta.square())
        ok = th.isfinite(mean + var).all()
        require(ok, _statistics_error)
        if active_checks() is not None:  # they have not been checked yet
            mean, var = th.where(ok, mean, self.running_mean), th.where(ok, var, self.running_var)
        # In place: SB3 keeps references to these tensors
        self.running_mean.copy_(mean)
        self.running_var.copy_(var)
        self.running_count.copy_(count)

    def extra_repr(self) -> str:
        """
        Describe the layer's size and epsilon, as torch's layers do.

        :return: what ``print`` shows of it
        """
        return f"{len(self.running_mean)}, eps={self.eps}"


def _statistics_error() -> FloatingPointError:
    return NonFiniteError(
        "the running statistics of the observations would become NaN or infinite: training stops before it changes them",
        "observations whose squares single precision can hold, which are below 1e19",
    )


def make_normalizer(backbone: str, features_extractor: nn.Module, features_dim: int) -> nn.Module:
    """
    The normaliser that belongs to a backbone: running statistics where the features are the observation itself, that
    is, where the features extractor has no parameter. Statistics of learned features would lag behind the features;
    these are left to the backbone's layer norm.

    :param backbone: a name in ``BACKBONES``
    :param features_extractor: SB3's features extractor
    :param features_dim: number of features
    :return: a :class:`RunningNorm`, or the identity
    :raises ValueError: if the name is unknown
    """
    learned = any(True for _ in features_extractor.parameters())
    return RunningNorm(features_dim) if find_backbone(backbone).normalizes_features and not learned else nn.Identity()
