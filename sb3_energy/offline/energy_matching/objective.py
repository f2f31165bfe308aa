"""The losses of an Energy Matching: transport far from the data, contrastive divergence near it."""

import torch as th

from sb3_energy.autodiff import energy_and_grad
from sb3_energy.losses import contrastive_divergence_loss, points_between, transport_loss, transport_pairs
from sb3_energy.networks import PotentialNetwork
from sb3_energy.offline.energy_matching.sampling import PotentialSampler
from sb3_energy.offline.energy_matching.settings import Settings

Losses = dict[str, th.Tensor]


def warm_up_losses(
    network: PotentialNetwork, features: th.Tensor, ends: th.Tensor, settings: Settings, generator: th.Generator
) -> Losses:
    """
    The losses of the warm-up: transport alone, at uniform times in [0, 1].

    :param network: of the potential
    :param features: ``(B, F)``
    :param ends: ``(B, N, D)`` data
    :param settings: of the training
    :param generator: source of starts and times
    :return: scalars by name; ``loss`` is what is descended
    """
    starts, ends, times = _pairs(ends, settings, generator)
    loss = transport_loss(_gradients(network, features, starts, ends, times), starts, ends).mean()
    return dict(loss=loss, transport_loss=loss)


def joint_losses(
    network: PotentialNetwork, features: th.Tensor, ends: th.Tensor, settings: Settings, generator: th.Generator
) -> Losses:
    """
    The losses after the warm-up: ``c_t · transport + c_d · contrastive divergence + c_m · (E[V(x⁺)²] + E[V(x⁻)²]) / ε``.

    At the data ``exp(-V / ε)`` has to be the density, whose gradient is not the mean transport velocity. So the weight of
    transport falls linearly from 1 at ``τ*`` to 0 at 1 (the time gate of Balcerak et al. 2025). The last term bounds the
    potential, whose offset is not identified and whose steepness only the sampler limits (Du and Mordatch 2019, section 3.3).

    :param network: of the potential
    :param features: ``(B, F)``
    :param ends: ``(B, N, D)`` data
    :param settings: of the training
    :param generator: source of starts, times and chains
    :return: scalars by name; ``loss`` is what is descended
    """
    negatives = draw_negatives(network, features, ends, settings, generator)
    starts, paired, times = _pairs(ends, settings, generator)
    gate = ((1.0 - times) / (1.0 - settings.transport_time)).clamp(max=1.0).sqrt().unsqueeze(-1)
    gradients = _gradients(network, features, starts, paired, times)
    transport = transport_loss(gate * gradients, gate * starts, gate * paired).mean()
    data_energy, model_energy = network(features, ends), network(features, negatives)
    divergence = contrastive_divergence_loss(data_energy, model_energy, settings.temperature).mean()
    magnitude = (data_energy.square().mean() + model_energy.square().mean()) / settings.temperature
    loss = settings.transport_coef * transport + settings.divergence_coef * divergence + settings.magnitude_coef * magnitude
    return dict(loss=loss, transport_loss=transport, divergence_loss=divergence, magnitude=magnitude)


def draw_negatives(
    network: PotentialNetwork, features: th.Tensor, ends: th.Tensor, settings: Settings, generator: th.Generator
) -> th.Tensor:
    """
    Draws of the current model. A fraction of the chains starts at the base and runs the whole sampler, so that training and
    sampling use the same chains; the others start at the data and run at the temperature ``ε``.

    :param network: of the potential
    :param features: ``(B, F)``
    :param ends: ``(B, N, D)`` data
    :param settings: of the training
    :param generator: source of starts and noise
    :return: ``(B, N, D)``, without a graph
    """
    sampler = PotentialSampler(settings)
    n_observations, n, dim = ends.shape
    with th.no_grad():
        if n > 1:  # a fraction of the particles of each observation
            potential, held = network.bind(features), n - round(settings.noise_fraction * n)
            parts = [sampler.moved(potential, ends[:, :held], generator, at_data=True)] if held > 0 else []
            if held < n:
                starts = sampler.starts(n_observations, n - held, dim, generator)
                parts.append(sampler.moved(potential, starts, generator))
            return th.cat(parts, dim=1)
        held = n_observations - round(settings.noise_fraction * n_observations)  # a fraction of the observations
        parts = [sampler.moved(network.bind(features[:held]), ends[:held], generator, at_data=True)] if held > 0 else []
        if held < n_observations:
            starts = sampler.starts(n_observations - held, 1, dim, generator)
            parts.append(sampler.moved(network.bind(features[held:]), starts, generator))
        return th.cat(parts, dim=0)


def _pairs(ends: th.Tensor, settings: Settings, generator: th.Generator) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    n_observations, n, dim = ends.shape
    starts = PotentialSampler(settings).starts(n_observations, n, dim, generator)
    paired = transport_pairs(starts, ends) if n > 1 else ends
    return starts, paired, th.rand(n_observations, n, generator=generator, device=ends.device)


def _gradients(
    network: PotentialNetwork, features: th.Tensor, starts: th.Tensor, ends: th.Tensor, times: th.Tensor
) -> th.Tensor:
    points = points_between(starts, ends, times)
    return energy_and_grad(lambda x: network(features, x), points, create_graph=True)[1]
