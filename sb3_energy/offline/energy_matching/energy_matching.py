"""Energy Matching from data: what users call."""

from copy import deepcopy
from itertools import chain
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.logger import Logger, configure
from stable_baselines3.common.utils import get_device
from torch import nn

from sb3_energy.checks import check_device, check_integer, check_verbose
from sb3_energy.deferred import NonFiniteError
from sb3_energy.files.atomic import PathOrFile
from sb3_energy.files.checksums import DamagedError
from sb3_energy.files.errors import explained
from sb3_energy.files.finite import module_tensors, not_finite, optimizer_tensors
from sb3_energy.keywords import plain_arguments
from sb3_energy.networks import SMOOTH_ACTIVATIONS, PotentialNetwork, RunningNorm, find_activation
from sb3_energy.offline.energy_matching import files
from sb3_energy.offline.energy_matching.data import Samples, as_points, checked_samples
from sb3_energy.offline.energy_matching.objective import Losses, joint_losses, warm_up_losses
from sb3_energy.offline.energy_matching.sampling import PotentialSampler
from sb3_energy.offline.energy_matching.settings import Settings
from sb3_energy.policies.causes import named
from sb3_energy.training.guards import require_finite_gradients


class EnergyMatching:
    """
    One potential ``V`` that does not depend on time. Far from the data ``-∇V`` carries draws of a base to it, and where the
    data is, ``exp(-V / ε)`` is its density (Energy Matching, Balcerak et al. 2025). It learns a density from samples, or a
    policy from the observations and actions of an expert.

    Starts are paired with data by exact optimal transport within a batch, and with observations within each observation that
    has several actions. Where each has one, its start is an independent draw from the base, which is plain conditional flow
    matching: nothing is ever paired across observations, as that would carry actions of one to another.

    Distances count: data should have a spread of about 1, like the base.

    :param net_arch: width of each hidden layer of the potential (default: three of 128)
    :param activation_fn: a smooth activation, one of :data:`sb3_energy.networks.SMOOTH_ACTIVATIONS`, or its name
    :param layer_norm: whether each hidden layer is normalised before its activation
    :param spectral_norm: whether weights are divided by their largest singular value; needs ``input_gain=1.0``
    :param input_gain: by how much the first layer's initial weights of the samples are larger than torch's, under which a
        potential learns detail of a tenth of the spread very slowly
    :param normalize_observations: whether observations are standardised by mean and spread of those of the first ``fit``
    :param learning_rate: of Adam, at the beginning of a ``fit``
    :param final_learning_rate: to which it falls in a straight line until the end of that ``fit``
    :param batch_size: samples of a gradient step
    :param temperature: ``ε``, called ``ε_max`` in the paper
    :param sampling_time: how long the sampler runs; transport takes a time of 1
    :param transport_time: ``τ*`` in [0, 1), from which on the sampler has noise, and transport is learned less and less
    :param n_steps: of the sampler, in training as later
    :param n_particles: descents of which ``predict(deterministic=True)`` takes the lowest end
    :param warm_up_steps: gradient steps, of all, that learn transport alone
    :param transport_coef: weight of transport after the warm-up
    :param divergence_coef: weight of contrastive divergence after the warm-up
    :param magnitude_coef: weight of ``E[V²] / ε`` at the data plus the same at the negatives, which keeps the potential from
        running away
    :param noise_fraction: part of the negatives whose chains start at the base; the others start at the data. Chains too short
        to forget their starts leave a bias where both are mixed: those from the data go too far where those from the base do
        not arrive. With 1 the sampler itself learns to end at the data, whatever its length; the paper has 0.5
    :param ema_decay: of the running average of the parameters, which is what draws samples (``None``: no average is kept)
    :param base: ``"normal"``, standard, or ``"uniform"`` on ``[-1, 1]``
    :param box: ``None`` for samples in ``R^d``, ``"reflect"`` for actions in ``[-1, 1]``, whose chains walk between mirrors
    :param seed: of everything that is drawn (``None``: another one each time)
    :param device: of networks and data
    :param verbose: 1 prints the losses, unless there is a logger
    :param logger: Stable-Baselines3's, for the losses
    :raises ValueError: if a number is out of range
    :raises TypeError: if something has the wrong type
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
        net_arch = [128, 128, 128] if net_arch is None else net_arch
        activation_fn = find_activation(activation_fn)
        with th.random.fork_rng(devices=[]):  # the network's own checks, now and not when its inputs are known
            PotentialNetwork(0, 1, net_arch, activation_fn, layer_norm, spectral_norm, input_gain)
        self.settings = Settings(
            list(net_arch), activation_fn.__name__, layer_norm, spectral_norm, input_gain, normalize_observations,
            learning_rate, final_learning_rate, batch_size, temperature, sampling_time, transport_time, n_steps, n_particles,
            warm_up_steps, transport_coef, divergence_coef, magnitude_coef, noise_fraction, ema_decay, base, box,
        )  # fmt: skip
        if logger is not None and not isinstance(logger, Logger):
            raise TypeError(f"logger must be Stable-Baselines3's Logger or None, got {logger!r}")
        check_device(device)
        self.device = get_device(device)
        self.verbose, self.logger = check_verbose(verbose), logger
        self.generator = th.Generator(self.device)
        self.set_random_seed(seed)
        self.n_updates = 0
        self.network: PotentialNetwork | None = None
        self.average: PotentialNetwork | None = None
        self.normalizer: RunningNorm | None = None
        self.dims: tuple[int, int] | None = None
        """``(O, D)``, known since the first ``fit``; ``O`` is 0 without observations."""

    def set_random_seed(self, seed: int | None) -> None:
        """
        :param seed: of everything that is drawn from now on (``None``: another one each time)
        :raises TypeError: if it is neither integer nor ``None``
        """
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(check_integer("seed", seed, maximum=2**63 - 1))

    def fit(
        self, samples: Any, observations: Any = None, gradient_steps: int = 2000, log_interval: int = 100
    ) -> "EnergyMatching":
        """
        Learn, or go on learning: the warm-up is over once for all, and the optimiser and the average are kept.

        :param samples: ``(n, D)``; with observations, actions ``(n, A)`` or ``K`` of each observation ``(n, K, A)``
        :param observations: ``(n, O)``, or ``None`` for a density
        :param gradient_steps: how many
        :param log_interval: gradient steps between two lines of the log
        :return: self
        :raises TypeError: if something is no array of numbers, or a number of steps no integer
        :raises ValueError: if shapes do not fit each other or those of before, or a number is not finite
        :raises FloatingPointError: if a loss or a chain is not finite; no parameter is changed by that step
        """
        gradient_steps = check_integer("gradient_steps", gradient_steps, minimum=1)
        log_interval = check_integer("log_interval", log_interval, minimum=1)
        data = checked_samples(samples, observations, self.settings.box, self.device)
        dims = (0 if data.observations is None else data.observations.shape[1], data.actions.shape[2])
        if self.dims is None:
            self._build(dims)
            if self.normalizer is not None and data.observations is not None:
                self.normalizer.update(data.observations)
        if self.dims != dims:
            raise ValueError(f"observations and samples must have the dimensions of before, {self.dims}, got {dims}")
        logger = self.logger
        if logger is None and self.verbose > 0:
            logger = configure(None, ["stdout"])
        assert self.network is not None
        self.network.train()
        try:
            for step in range(gradient_steps):
                rate = self.settings.learning_rate
                rate += (self.settings.final_learning_rate - rate) * step / max(gradient_steps - 1, 1)
                with named(self.network, "potential"):
                    losses = self._update(data, rate)
                if logger is not None and (step + 1) % log_interval == 0:
                    for name, value in losses.items():
                        logger.record(f"train/{name}", value.item())
                    logger.record("train/learning_rate", rate)
                    logger.dump(self.n_updates)
        finally:
            self.network.eval()
        return self

    def _build(self, dims: tuple[int, int]) -> None:
        s = self.settings
        activation = {smooth.__name__: smooth for smooth in SMOOTH_ACTIVATIONS}[s.activation_fn]
        seed = int(th.randint(2**62, (), generator=self.generator, device=self.device))
        with th.random.fork_rng(devices=[]):  # torch initialises from its global generator, which is left as it was
            th.default_generator.manual_seed(seed)  # th.manual_seed would do it for GPUs as well
            network = PotentialNetwork(*dims, s.net_arch, activation, s.layer_norm, s.spectral_norm, s.input_gain)
        self.dims = dims
        self.network = network.to(self.device).eval()  # spectral norms change at each look at them while they learn
        self.optimizer = th.optim.Adam(self.network.parameters(), lr=s.learning_rate)
        if s.ema_decay is not None:
            self.average = deepcopy(self.network).requires_grad_(False)
        if s.normalize_observations and dims[0] > 0:
            self.normalizer = RunningNorm(dims[0]).to(self.device)

    def _update(self, data: Samples, rate: float) -> Losses:
        assert self.network is not None
        ends, observations = data.batch(self.settings.batch_size, self.generator)
        features = self._features(observations)
        compute = warm_up_losses if self.n_updates < self.settings.warm_up_steps else joint_losses
        losses = compute(self.network, features, ends, self.settings, self.generator)
        loss = losses["loss"]
        if not th.isfinite(loss):
            raise NonFiniteError(
                f"the loss of gradient step {self.n_updates + 1} is {loss.item()}: training stops before it changes the "
                "potential",
                "a lower learning_rate, a smaller divergence_coef, or layer_norm=True",
            )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        require_finite_gradients(self.optimizer, f"the loss of gradient step {self.n_updates + 1}")
        self.optimizer.step()
        self.n_updates += 1
        if self.average is not None and self.settings.ema_decay is not None:
            # Young averages forget their zero beginning faster
            decay = min(self.settings.ema_decay, self.n_updates / (10 + self.n_updates))
            with th.no_grad():
                for mean, value in zip(self.average.parameters(), self.network.parameters(), strict=True):
                    mean.lerp_(value, 1.0 - decay)
                for statistic, latest in zip(self.average.buffers(), self.network.buffers(), strict=True):
                    statistic.copy_(latest)
        return losses

    def _features(self, observations: th.Tensor | None) -> th.Tensor:
        if observations is None:
            return th.zeros(1, 0, device=self.device)
        return observations if self.normalizer is None else self.normalizer(observations)

    def _fitted(self) -> tuple[PotentialNetwork, tuple[int, int]]:
        if self.network is None or self.dims is None:
            raise RuntimeError("nothing has been learned yet: call fit(samples) first")
        return (self.network if self.average is None else self.average), self.dims

    def _conditions(self, observations: Any, n_observed: int) -> th.Tensor:
        """Features ``(B, F)``; refuses observations that are missing, of another size, or that nobody has learned from."""
        if n_observed == 0:
            if observations is not None:
                raise ValueError("observations were given, but it has learned from samples without them")
            return self._features(None)
        if observations is None:
            raise ValueError(f"observations of {n_observed} numbers must be given: it has learned from pairs")
        found = as_points("observations", observations, (2,), self.device, no_rows=True)
        if found.shape[1] != n_observed:
            raise ValueError(f"observations must have shape (B, {n_observed}), got {tuple(found.shape)}")
        return self._features(found)

    def sample(self, n: int = 1, observations: Any = None) -> np.ndarray:
        """
        :param n: how many, for each observation
        :param observations: ``(B, O)`` if it has learned from pairs, else ``None``
        :return: ``(n, D)``, or ``(B, n, A)``
        :raises RuntimeError: before the first ``fit``
        :raises ValueError: if observations are missing, superfluous or of another shape, or ``n`` is below 1
        :raises TypeError: if ``n`` is no integer
        :raises FloatingPointError: if a chain is not finite
        """
        network, (n_observed, dim) = self._fitted()
        n = check_integer("n", n, minimum=1)
        features = self._conditions(observations, n_observed)
        if len(features) == 0:
            return np.zeros((0, n, dim), np.float32)
        sampler = PotentialSampler(self.settings)
        with th.no_grad(), named(network, "potential"):
            starts = sampler.starts(len(features), n, dim, self.generator)
            ends = sampler.moved(network.bind(features), starts, self.generator)
        return (ends[0] if n_observed == 0 else ends).cpu().numpy()

    def energy(self, samples: Any, observations: Any = None) -> np.ndarray:
        """
        :param samples: ``(n, D)``; with observations, one action of each ``(B, A)`` or some ``(B, N, A)``
        :param observations: ``(B, O)`` if it has learned from pairs, else ``None``
        :return: ``V`` of each, ``(n,)`` or ``(B, N)``; the density is ``exp(-V / ε)`` up to a factor that nobody knows
        :raises RuntimeError: before the first ``fit``
        :raises ValueError: if a shape is wrong or a number is not finite
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
        The action of an observation, in the form of Stable-Baselines3's policies.

        :param observation: ``(O,)`` or ``(B, O)``
        :param state: of a recurrent policy, which this is not: it is handed back
        :param episode_start: has no meaning without such a state
        :param deterministic: whether to take the end of lowest energy of descents without noise, not a draw
        :return: ``(A,)`` or ``(B, A)``, and the state
        :raises RuntimeError: before the first ``fit``
        :raises ValueError: if it has not learned from pairs, or the observation has another shape
        :raises FloatingPointError: if a chain is not finite
        """
        network, (n_observed, dim) = self._fitted()
        if n_observed == 0:
            raise ValueError("predict needs a potential of observations: fit(actions, observations=...), or call sample(n)")
        found = as_points("observation", observation, (1, 2), self.device, no_rows=True)
        rows = found.reshape(1, -1) if found.dim() == 1 else found
        if deterministic and len(rows) > 0:
            features = self._conditions(rows, n_observed)
            with th.no_grad(), named(network, "potential"):
                like = th.empty(len(features), dim, device=self.device)
                actions = PotentialSampler(self.settings).lowest(network.bind(features), like).cpu().numpy()
        else:
            actions = self.sample(1, rows)[:, 0]
        return (actions[0] if found.dim() == 1 else actions), state

    def save(self, path: PathOrFile) -> None:
        """
        Everything but the data: settings, networks, optimiser and the state of the random numbers.

        :param path: where to, ``.pt`` is appended to a path without suffix; killed in between, the old file is whole
        :raises RuntimeError: before the first ``fit``
        :raises FloatingPointError: if a parameter, or the optimiser's state, is not finite; no file is touched
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
        files.write(path, content)

    def _modules(self) -> dict[str, nn.Module | None]:
        return dict(network=self.network, average=self.average, normalizer=self.normalizer)

    def _not_finite(self) -> str | None:
        """The name of a tensor that is not finite, if there is one."""
        found = [item for name, part in self._modules().items() if part is not None for item in module_tensors(part, name)]
        return not_finite([*chain.from_iterable(found), *optimizer_tensors(self.optimizer, "optimizer")])

    @classmethod
    def load(
        cls, path: PathOrFile, device: th.device | str = "auto", verbose: int = 0, logger: Logger | None = None
    ) -> "EnergyMatching":
        """
        The file is read with torch's ``weights_only=True``.

        :param path: as it was saved
        :param device: where to put it; on another type of device random numbers begin anew
        :param verbose: as in the constructor
        :param logger: as in the constructor
        :return: what was saved; samples and further training are those that it would have made
        :raises FileNotFoundError: if there is no such file
        :raises ValueError: if it is another one, or damaged
        """
        content = files.read(path, get_device(device))
        model = cls(device=device, verbose=verbose, logger=logger)
        with explained(path, files.WHAT):
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
