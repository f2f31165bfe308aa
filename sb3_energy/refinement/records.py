"""Means of a refinement's numbers, for the logger."""

import torch as th

from sb3_energy.types import RefinerInfo


def refinement_records(infos: list[RefinerInfo], actions: th.Tensor) -> dict[str, th.Tensor]:
    """
    Means of a refinement's numbers over observations.

    :param infos: of its steps
    :param actions: ``(B, A)`` refined actions, scaled to [-1, 1]
    :return: ``refiner_displacement``, the sum of the steps' lengths; ``refiner_acceptance``, the mean over steps;
        ``refiner_effective_sample_size``, the mean over resamplings, where there was one; ``refiner_energy_drop``, by how
        much the target's energy is lower after the last step than before the first, over observations where all energies
        were finite (NaN if there is none); and ``refined_at_edge``, the part of the actions' coordinates
        beyond .99. Scalars
    """
    records = {"refined_at_edge": (actions.abs() > 0.99).float().mean()}
    if infos:
        records["refiner_displacement"] = _sum_of_means([info.displacement for info in infos])
        records["refiner_acceptance"] = _sum_of_means([info.acceptance for info in infos]) / len(infos)
    sizes = [info.effective_sample_size for info in infos if info.effective_sample_size is not None]
    if sizes:
        records["refiner_effective_sample_size"] = _sum_of_means(sizes) / len(sizes)
    drops = [info.energy_drop for info in infos if info.energy_drop is not None]
    if drops:
        drop = th.stack(drops).sum(dim=0)
        finite = th.isfinite(drop)  # an infinite energy at one particle must not hide the others
        records["refiner_energy_drop"] = th.where(finite, drop, 0.0).sum() / finite.sum()
    return records


def _sum_of_means(parts: list[th.Tensor]) -> th.Tensor:
    return th.stack([part.mean() for part in parts]).double().sum()
