"""EnergyMatching: fit, sample, energy, predict, save and load."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import fields
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.logger import Logger, configure
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import get_device, update_learning_rate
from torch import nn

from sb3_energy.checks import check_device, check_integer, check_verbose
from sb3_energy.energies import check_energy, energy_name
from sb3_energy.files.atomic import PathOrFile
from sb3_energy.files.checksums import DamagedError
from sb3_energy.files.errors import explained
from sb3_energy.files.finite import module_tensors, not_finite, optimizer_tensors
from sb3_energy.files.tensors import read_tensors, write_tensors
from sb3_energy.keywords import plain_arguments
from sb3_energy.networks import PotentialNetwork, RunningNorm, find_activation
from sb3_energy.offline.averaging import update_average
from sb3_energy.offline.dataset import Dataset, as_points
from sb3_energy.offline.energy_matching.data import checked_samples, training_batch
from sb3_energy.offline.energy_matching.objective import joint_losses, warm_up_losses
from sb3_energy.offline.energy_matching.sampling import PotentialSampler
from sb3_energy.offline.energy_matching.settings import Settings
from sb3_energy.offline.fit import descend, fit, record_losses
from sb3_energy.policies.causes import named
from sb3_energy.types import EnergyFn, Tick

WHAT = "EnergyMatching"
ADVICE = "a lower learning_rate, a smaller divergence_coef, or layer_norm=True"


class EnergyMatching:
    """
    A potential ``V(x)`` that is velocity field and energy at once, learned from data (Energy Matching, Balcerak et al. 2025).

    Far from the data ``-∇V`` transports draws of a base distribution to it; near the data ``exp(-V / ε)`` is its density,
    within each mode. From mode to mode it is not: how deep a mode is beside another was learned by transport, and no chain
    goes between them to correct it. The shares of modes are in the draws, and choices between modes are made by them.

    It learns a sampler of a density from samples, or a policy from the observations and actions of an expert.

    Draws of the base are paired with data by exact optimal transport within a batch and, with observations, among the actions
    of one observation. Where an observation has a single action its start is an independent draw, which is plain conditional
    flow matching. Nothing is paired across observations: that would move actions from one observation to another.

    The transport cost is a distance, so data should be scaled to a standard deviation of about 1, that of the base.

    :param net_arch: width of each hidden layer of the potential (default: three of 128)
    :param activation_fn: a smooth activation, one of :data:`sb3_energy.networks.SMOOTH_ACTIVATIONS`, or its name
    :param layer_norm: whether each hidden layer is normalised before its activation
    :param spectral_norm: whether weights are divided by their largest singular value; needs ``input_gain=1.0``
    :param input_gain: factor on the first layer's initial weights of the samples; with 1, torch's own, a potential learns
        detail of a tenth of the standard deviation very slowly
    :param normalize_observations: whether observations are standardised by mean and standard deviation of the first ``fit``
    :param learning_rate: of Adam, at the first gradient step of a ``fit``
    :param final_learning_rate: of Adam, at the last gradient step of that ``fit``; linear in between
    :param batch_size: samples of a gradient step
    :param temperature: ``ε``, called ``ε_max`` in the paper
    :param sampling_time: time that the sampler simulates; transport takes a time of 1
    :param transport_time: ``τ*`` in [0, 1): from there on the sampler has noise, and the weight of transport falls to 0
    :param n_steps: steps of the sampler, in training and afterwards
    :param n_particles: draws of which ``predict(deterministic=True)`` finds the densest place, and draws from which each draw
        of ``sample(energy=...)`` is chosen
    :param warm_up_steps: gradient steps, counted from the first ``fit``, that learn transport alone
    :param transport_coef: weight of transport after the warm-up
    :param divergence_coef: weight of contrastive divergence after the warm-up
    :param magnitude_coef: weight of ``(E[V²] of data + E[V²] of negatives) / ε``, which keeps the potential bounded
    :param noise_fraction: fraction of the negatives whose chains start at the base; the others start at data. Chains too short
        to forget their starts are biased where both are mixed. With 1 the sampler itself learns to end at the data, whatever
        its length; the paper has 0.5
    :param ema_decay: decay of the running average of the parameters, which draws the samples (``None``: no average)
    :param base: ``"normal"``, standard, or ``"uniform"`` on ``[-1, 1]``
    :param box: ``None`` for samples in ``R^d``, ``"reflect"`` for actions in ``[-1, 1]``, with reflection at the bounds
    :param seed: of everything that is drawn (``None``: a random one)
    :param device: of networks and data
    :param verbose: 1 prints the losses, unless there is a logger
    :param logger: Stable-Baselines3's, for the losses
    :raises ValueError: if a number is out of range
    :raises TypeError: if an argument has the wrong type
    """

    @plain_arguments
    def __init__(
        self,
        net_arch: list[int] | None = None,
        activation_fn: type[nn.Module] | str = nn.SiLU,
        layer_norm: bool = False,
        spectral_norm: bool = False,
        input_gain: float = 4.0,
        normalize_observations: bool = True,
        learning_rate: float = 2e-3,
        final_learning_rate: float = 1e-4,
        batch_size: int = 256,
        temperature: float = 0.1,
        sampling_time: float = 1.5,
        transport_time: float = 0.5,
        n_steps: int = 50,
        n_particles: int = 32,
        warm_up_steps: int = 200,
        transport_coef: float = 0.1,
        divergence_coef: float = 1.0,
        magnitude_coef: float = 0.01,
        noise_fraction: float = 1.0,
        ema_decay: float | None = 0.999,
        base: str = "normal",
        box: str | None = None,
        seed: int | None = None,
        device: th.device | str = "auto",
        verbose: int = 0,
        logger: Logger | None = None,
    ):
        given = dict(locals())
        given["net_arch"] = [128, 128, 128] if net_arch is None else net_arch
        given["activation_fn"] = find_activation(activation_fn).__name__
        self.settings = Settings(**{field.name: given[field.name] for field in fields(Settings)})
        with th.random.fork_rng(devices=[]):  # the network's own checks, before its number of inputs is known
            self._new_network(0, 1)
        if logger is not None and not isinstance(logger, Logger):
            raise TypeError(f"logger must be Stable-Baselines3's Logger or None, got {logger!r}")
        check_device(device)
        self.device = get_device(device)
        self.verbose = check_verbose(verbose)
        if logger is None:
            logger = configure(None, ["stdout"]) if self.verbose > 0 else Logger(None, [])
        self.logger = logger
        self.generator = th.Generator(self.device)
        self.set_random_seed(seed)
        self.n_updates = 0
        self._losses: dict[str, th.Tensor | float] = {}
        self.network: PotentialNetwork | None = None
        self.average: PotentialNetwork | None = None
        self.normalizer: RunningNorm | None = None
        self.dims: tuple[int, int] | None = None
        """``(O, D)``, known since the first ``fit``; ``O`` is 0 without observations."""

    def set_random_seed(self, seed: int | None) -> None:
        """
        Seed everything that is drawn from now on.

        :param seed: an integer (``None``: a random one)
        :raises TypeError: if it is neither integer nor ``None``
        """
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(check_integer("seed", seed, maximum=2**63 - 1))

    @property
    def num_timesteps(self) -> int:
        """Number of gradient steps so far, under the name that Stable-Baselines3's callbacks read."""
        return self.n_updates

    def fit(
        self,
        samples: Any,
        observations: Any = None,
        gradient_steps: int = 2000,
        log_interval: int = 100,
        callback: MaybeCallback = None,
        progress_bar: bool = False,
    ) -> "EnergyMatching":
        """
        Learn, or go on learning: the warm-up happens once, and the optimiser and the average are kept.

        :param samples: ``(n, D)``; with observations, actions ``(n, A)`` or ``K`` of each observation ``(n, K, A)``
        :param observations: ``(n, O)``, or ``None`` for a density
        :param gradient_steps: number of gradient steps
        :param log_interval: gradient steps between two lines of the log
        :param callback: called after each gradient step, see :func:`sb3_energy.offline.fit.fit`
        :param progress_bar: whether to show a progress bar (needs tqdm and rich)
        :return: self
        :raises TypeError: if something is not an array of numbers, or an argument has the wrong type
        :raises ValueError: if shapes do not fit each other or those of the first ``fit``, or a number is NaN or infinity
        :raises FloatingPointError: if a loss or a chain is NaN or infinity; no parameter is changed by that step
        """
        gradient_steps = check_integer("gradient_steps", gradient_steps, minimum=1)
        data = checked_samples(samples, observations, self.settings.box, self.device)
        dims = _dims(data)
        if self.dims not in (None, dims):
            raise ValueError(f"observations and samples must have the dimensions of the first fit, {self.dims}, got {dims}")
        fit(self, lambda tick: self._update(data, tick), gradient_steps, callback, log_interval, progress_bar)
        return self

    def _new_network(self, n_observed: int, dim: int) -> PotentialNetwork:
        s = self.settings
        activation_fn = find_activation(s.activation_fn)
        return PotentialNetwork(
            n_observed,
            dim,
            s.net_arch,
            activation_fn,
            layer_norm=s.layer_norm,
            spectral_norm=s.spectral_norm,
            input_gain=s.input_gain,
        )

    def _build(self, dims: tuple[int, int]) -> None:
        s = self.settings
        seed = int(th.randint(2**62, (), generator=self.generator, device=self.device))
        with th.random.fork_rng(devices=[]):  # torch initialises from its global generator, which is left as it was
            th.default_generator.manual_seed(seed)  # th.manual_seed would seed those of GPUs as well
            network = self._new_network(*dims)
        self.dims = dims
        self.network = network.to(self.device).eval()  # in training mode each forward pass changes spectral norms
        self.optimizer = th.optim.Adam(self.network.parameters(), lr=s.learning_rate)
        if s.ema_decay is not None:
            self.average = deepcopy(self.network).requires_grad_(False)
        if s.normalize_observations and dims[0] > 0:
            self.normalizer = RunningNorm(dims[0]).to(self.device)

    def _update(self, data: Dataset, tick: Tick) -> dict[str, th.Tensor | float]:
        if self.network is None:
            self._build(_dims(data))
            if self.normalizer is not None and data.observations is not None:
                self.normalizer.update(data.observations)
        assert self.network is not None
        rate = self.settings.learning_rate
        rate += (self.settings.final_learning_rate - rate) * tick.step / max(tick.n_steps - 1, 1)
        update_learning_rate(self.optimizer, rate)
        ends, observations = training_batch(data, self.settings.batch_size, self.generator)
        compute = warm_up_losses if self.n_updates < self.settings.warm_up_steps else joint_losses
        self.network.train()
        try:
            with named(self.network, "potential"):
                losses = compute(self.network, self._features(observations), ends, self.settings, self.generator)
                descend(self.optimizer, losses["loss"], f"the loss of gradient step {self.n_updates + 1}", ADVICE)
        finally:
            self.network.eval()
        self.n_updates += 1
        if self.average is not None and self.settings.ema_decay is not None:
            update_average(self.average, self.network, self.settings.ema_decay, self.n_updates)
        self._losses = {**{name: value.detach() for name, value in losses.items()}, "learning_rate": rate}
        return self._losses

    def dump_logs(self) -> None:
        """Write the losses of the last gradient step to the log, as SB3's callbacks ask for."""
        record_losses(self.logger, self._losses)
        self.logger.dump(self.n_updates)

    def _features(self, observations: th.Tensor | None) -> th.Tensor:
        if observations is None:
            return th.zeros(1, 0, device=self.device)
        return observations if self.normalizer is None else self.normalizer(observations)

    def _fitted(self) -> tuple[PotentialNetwork, tuple[int, int]]:
        if self.network is None or self.dims is None:
            raise RuntimeError("nothing has been learned yet: call fit(samples) first")
        return (self.network if self.average is None else self.average), self.dims

    def _conditions(self, observations: Any, n_observed: int) -> th.Tensor:
        """Features ``(B, F)``; raises ValueError for observations that are missing, superfluous or of another size."""
        if n_observed == 0:
            if observations is not None:
                raise ValueError("observations were given, but it has learned from samples without them")
            return self._features(None)
        if observations is None:
            raise ValueError(f"observations of {n_observed} numbers must be given: it has learned from pairs")
        found = as_points("observations", observations, (2,), self.device, may_be_empty=True)
        if found.shape[1] != n_observed:
            raise ValueError(f"observations must have shape (B, {n_observed}), got {tuple(found.shape)}")
        return self._features(found)

    def sample(
        self, n: int = 1, observations: Any = None, energy: Callable[[th.Tensor, th.Tensor], th.Tensor] | None = None
    ) -> np.ndarray:
        """
        Draw samples, or actions of each observation.

        With an energy the draws follow ``exp(-V / ε - E)``: a posterior, where ``V`` is the prior and ``E`` the negative
        log-likelihood of what was observed (Balcerak et al. 2025, inverse problems).

        :param n: number of draws, for each observation
        :param observations: ``(B, O)`` if it has learned from pairs, else ``None``
        :param energy: ``E(observations, x) -> (B, N)`` of observations ``(B, O)`` and ``x`` ``(B, N, D)``, in torch and with a
            gradient; without observations ``B`` is 1 and ``O`` is 0
        :return: ``(n, D)``, or ``(B, n, A)``
        :raises RuntimeError: before the first ``fit``
        :raises ValueError: if observations are missing, superfluous or of another shape, or ``n`` is below 1
        :raises TypeError: if ``n`` is not an integer, or the energy no function
        :raises FloatingPointError: if a chain reaches NaN or infinity
        """
        network, (n_observed, dim) = self._fitted()
        n = check_integer("n", n, minimum=1)
        features = self._conditions(observations, n_observed)
        bound = None if energy is None else self._bound(energy, observations, n_observed, dim)
        if len(features) == 0:
            return np.zeros((0, n, dim), np.float32)
        sampler, potential = PotentialSampler(self.settings), network.bind(features)
        with th.no_grad(), named(network, "potential"):
            if bound is None:
                ends = sampler.moved(potential, sampler.starts(len(features), n, dim, self.generator), self.generator)
            else:
                like = th.empty(len(features), dim, device=self.device)
                ends = sampler.conditioned(potential, bound, like, n, self.generator)
        return (ends[0] if n_observed == 0 else ends).cpu().numpy()

    def _bound(self, energy: Any, observations: Any, n_observed: int, dim: int) -> EnergyFn:
        """An energy of the user's own, checked, at these observations, which are not standardised."""
        if not callable(energy) or isinstance(energy, type):
            raise TypeError(f"energy must be a function (observations, x) -> (B, N), got {energy!r}")
        rows = th.zeros(1, 0, device=self.device)
        if n_observed > 0:
            rows = as_points("observations", observations, (2,), self.device, may_be_empty=True)

        def at(n: int) -> EnergyFn:
            shown = rows if len(rows) > 0 else th.zeros(1, n_observed, device=self.device)
            return partial(energy, shown[th.arange(n, device=self.device) % len(shown)])

        check_energy(at, energy_name(energy), dim, th.zeros((), device=self.device), needs_gradient=True)
        return partial(energy, rows)

    def energy(self, samples: Any, observations: Any = None) -> np.ndarray:
        """
        The potential. Within a mode of the data the density is ``exp(-V / ε)`` up to a factor, which is another one in each
        mode: it ranks samples that are near each other.

        :param samples: ``(n, D)``; with observations, one action of each ``(B, A)`` or some ``(B, N, A)``
        :param observations: ``(B, O)`` if it has learned from pairs, else ``None``
        :return: ``V`` of each, ``(n,)`` or ``(B, N)``
        :raises RuntimeError: before the first ``fit``
        :raises ValueError: if a shape is wrong or a number is NaN or infinity
        """
        network, (n_observed, dim) = self._fitted()
        features = self._conditions(observations, n_observed)
        points = as_points("samples", samples, (2,) if n_observed == 0 else (2, 3), self.device)
        is_row = points.dim() == 2
        shaped = points.unsqueeze(0 if n_observed == 0 else 1) if is_row else points
        if shaped.shape[2] != dim or len(shaped) != len(features):
            raise ValueError(f"samples of {dim} numbers for {len(features)} rows were expected, got {tuple(points.shape)}")
        with th.no_grad():
            values = network(features, shaped)
        return (values.reshape(-1) if is_row else values).cpu().numpy()

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        The action of an observation, with the signature of Stable-Baselines3's policies.

        :param observation: ``(O,)`` or ``(B, O)``
        :param state: hidden state of recurrent policies, returned unchanged
        :param episode_start: not used without a hidden state
        :param deterministic: whether to act where draws of fixed starts and noise are densest, which is in the mode of the
            largest share, and not to draw
        :return: ``(A,)`` or ``(B, A)``, and the state
        :raises RuntimeError: before the first ``fit``
        :raises ValueError: if it has not learned from pairs, or the observation has another shape
        :raises FloatingPointError: if a chain reaches NaN or infinity
        """
        network, (n_observed, dim) = self._fitted()
        if n_observed == 0:
            raise ValueError("predict needs a potential of observations: fit(actions, observations=...), or call sample(n)")
        found = as_points("observation", observation, (1, 2), self.device, may_be_empty=True)
        rows = found.reshape(1, -1) if found.dim() == 1 else found
        if deterministic and len(rows) > 0:
            features = self._conditions(rows, n_observed)
            with th.no_grad(), named(network, "potential"):
                like = th.empty(len(features), dim, device=self.device)
                actions = PotentialSampler(self.settings).most_common(network.bind(features), like).cpu().numpy()
        else:
            actions = self.sample(1, rows)[:, 0]
        return (actions[0] if found.dim() == 1 else actions), state

    def save(self, path: PathOrFile) -> None:
        """
        Save settings, networks, optimiser and the state of the random number generator; the data are not saved.

        :param path: where to; ``.pt`` is appended to a path without suffix. The old file stays whole until the new one is
            complete
        :raises RuntimeError: before the first ``fit``
        :raises FloatingPointError: if a parameter or the optimiser's state is NaN or infinity; no file is changed
        :raises OSError: if the file cannot be written
        """
        self._fitted()
        bad = self._not_finite()
        if bad is not None:
            raise FloatingPointError(f"nothing was saved to {path}: {bad} has NaN or infinity; load an earlier one")
        content = dict(
            settings=self.settings.as_dict(),
            dims=list(self.dims or ()),
            n_updates=self.n_updates,
            optimizer=self.optimizer.state_dict(),
            random_state=self.generator.get_state(),
            random_device=self.device.type,
            **{name: None if module is None else module.state_dict() for name, module in self._modules().items()},
        )
        write_tensors(path, content, WHAT)

    def _modules(self) -> dict[str, nn.Module | None]:
        return dict(network=self.network, average=self.average, normalizer=self.normalizer)

    def _not_finite(self) -> str | None:
        """The name of a tensor with NaN or infinity, if there is one."""
        found = [item for name, part in self._modules().items() if part is not None for item in module_tensors(part, name)]
        return not_finite([*chain.from_iterable(found), *optimizer_tensors(self.optimizer, "optimizer")])

    @classmethod
    def load(
        cls, path: PathOrFile, device: th.device | str = "auto", verbose: int = 0, logger: Logger | None = None
    ) -> "EnergyMatching":
        """
        Load what ``save`` has written, with torch's ``weights_only=True``. Samples and further training are those that the
        saved instance would have made.

        :param path: as it was saved
        :param device: where to put it; on another type of device the random number generator is seeded anew
        :param verbose: as in the constructor
        :param logger: as in the constructor
        :return: what was saved
        :raises FileNotFoundError: if there is no such file
        :raises ValueError: if it is another file, or damaged
        """
        content = read_tensors(path, get_device(device), WHAT)
        model = cls(device=device, verbose=verbose, logger=logger)
        with explained(path, WHAT):
            unknown = sorted(set(content["settings"]) - set(model.settings.as_dict()))
            if unknown:
                raise DamagedError(f"it has settings that this version does not know, {unknown}")
            model._restore(content)
            bad = model._not_finite()
            if bad is not None:
                raise DamagedError(f"{bad} has NaN or infinity")
        return model

    def _restore(self, content: dict[str, Any]) -> None:
        self.settings = Settings(**content["settings"])
        observed, dim = content["dims"]
        self._build((observed, dim))
        for name, module in self._modules().items():
            if module is not None:
                module.load_state_dict(content[name])
        self.optimizer.load_state_dict(content["optimizer"])
        self.n_updates = content["n_updates"]
        if content["random_device"] == self.device.type:
            self.generator.set_state(content["random_state"].cpu())


def _dims(data: Dataset) -> tuple[int, int]:
    return 0 if data.observations is None else data.observations.shape[1], data.actions.shape[2]
