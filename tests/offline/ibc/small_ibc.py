"""Small implicit policies that learn in a moment."""

from sb3_energy import IBC, OfflineDataset
from tests.offline.small_clone import data


def small_ibc(dataset=None, policy="MlpPolicy", **kwargs):
    """A few counter-examples and particles; keyword arguments are added to the defaults, those in dictionaries as well."""
    given = dict(batch_size=16, seed=0, device="cpu")
    policy_kwargs = dict(net_arch=[16], n_particles=32) | kwargs.pop("policy_kwargs", {})
    if "energy_training_kwargs" not in kwargs and kwargs.get("loss", "info_nce") in ("info_nce", "r_nce", "nce"):
        kwargs["energy_training_kwargs"] = dict(n_negatives=16)
    return IBC(policy, data() if dataset is None else dataset, policy_kwargs=policy_kwargs, **(given | kwargs))


def drawn(function, n, seed=0):
    """A function of :mod:`sb3_energy.envs.functions` as a data set."""
    x, y = function.draw(n, seed)
    return OfflineDataset(x, y, function.observation_space, function.action_space)
