"""The base of algorithms that learn from a data set, in the form of Stable-Baselines3's algorithms."""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

import gymnasium as gym
import torch as th
from stable_baselines3.common import utils
from stable_baselines3.common.base_class import BaseAlgorithm, maybe_make_env
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback, EventCallback
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule, TensorDict
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_energy.checks import check_bool, check_integer
from sb3_energy.deferred import NonFiniteError
from sb3_energy.files.atomic import PathOrFile
from sb3_energy.keywords import plain_arguments, takes, written
from sb3_energy.offline.columns import check_dataset_spaces
from sb3_energy.offline.fit import descend, fit, record_losses
from sb3_energy.offline.loading import load_dataset
from sb3_energy.offline.offline_dataset import SPACES, Batch, OfflineDataset
from sb3_energy.offline.policies import OfflinePolicy
from sb3_energy.offline.randomness import own_randomness
from sb3_energy.policies.causes import Cause, broken_module
from sb3_energy.training.arguments import check_experience_arguments, check_learning_rate, check_rate
from sb3_energy.training.buffer_files import same_space
from sb3_energy.training.causes import scale_cause
from sb3_energy.training.guards import require_gradients
from sb3_energy.training.keyword_places import check_policy_kwargs, check_policy_name
from sb3_energy.training.persistence import load_checked_model, save_whole, set_parameters_of_file
from sb3_energy.types import Tick

SelfOffline = TypeVar("SelfOffline", bound="OfflineAlgorithm")
Losses = Mapping[str, th.Tensor | float]


class OfflineAlgorithm(BaseAlgorithm):
    """
    Base of algorithms that learn from a data set without an environment. They are used like Stable-Baselines3's: a gradient
    step takes the place of an environment step in ``total_timesteps``, callbacks and logs. An environment is optional. Its
    spaces are the model's; without one these are the spaces of the data set.

    A subclass names its policies in ``policy_aliases`` and implements :meth:`_losses`; one with more than one optimiser
    overrides :meth:`_update` and ``_get_torch_save_params``. What an update draws from torch's global generators continues a
    random stream that belongs to the model and is saved with it, whatever else in the process draws.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy)
    :param dataset: an :class:`~sb3_energy.offline.offline_dataset.OfflineDataset`, or what
        :func:`~sb3_energy.offline.loading.load_dataset` takes: the path of a file, a Minari data set or its id, a replay
        buffer, a dictionary of arrays
    :param env: The environment to evaluate in (if registered in Gym, can be str); training does not step it
    :param learning_rate: learning rate for the optimizer,
        it can be a function of the current progress remaining (from 1 to 0)
    :param batch_size: Minibatch size for each gradient update
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation
    :param verbose: Verbosity level: 0 for no output, 1 for info messages (such as device or wrappers used), 2 for
        debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run.
        Setting it to auto, the code will be run on the GPU if possible.
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: if a number, the data or the environment are not accepted, or do not go together
    :raises TypeError: if an argument has the wrong type
    """

    policy: OfflinePolicy
    needs: ClassVar[tuple[str, ...]] = ()
    """Columns of the data beside observations and actions, ``"rewards"`` or ``"next_observations"``."""
    advice: ClassVar[str] = "a lower learning_rate"
    """What to try if a loss is NaN or infinity."""

    @plain_arguments
    def __init__(
        self,
        policy: str | type[OfflinePolicy],
        dataset: Any = None,
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule = 3e-4,
        batch_size: int = 256,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        check_policy_name(self.policy_aliases, policy)
        if isinstance(policy, type) and not issubclass(policy, tuple(self.policy_aliases.values())):
            raise TypeError(f"policy must be one of {list(self.policy_aliases)} or a subclass of one, got {policy.__name__}")
        check_experience_arguments(dict(policy_kwargs=policy_kwargs, verbose=verbose, seed=seed, device=device))
        check_policy_kwargs(type(self), [], policy, policy_kwargs)
        super().__init__(policy, None, learning_rate, policy_kwargs, 100, tensorboard_log, verbose, device, seed=seed)
        self.batch_size = batch_size
        self.n_envs = 1
        self.dataset: OfflineDataset | None = None
        self._latest_losses: Losses = {}
        self._evaluation_env: VecEnv | None = None
        if not _init_setup_model:  # by ``load``, which knows the spaces
            return
        if env is not None:
            self._take_env(env)
        self.dataset = self._checked_data(dataset)
        if env is None:
            self.observation_space, self.action_space = self.dataset.observation_space, self.dataset.action_space
        self._setup_model()

    @classmethod
    def place_of(cls, name: str, arguments: dict[str, Any]) -> str | None:
        """
        Suggest where a misplaced keyword argument belongs.

        :param name: name of an unknown argument
        :param arguments: all keyword arguments
        :return: an error message with the place where the argument belongs, or ``None``
        """
        if not takes(cls.policy_aliases["MlpPolicy"], name):
            return None
        return f"{name} is an argument of the policy: write policy_kwargs=dict({written(name, arguments[name])})"

    def _setup_model(self) -> None:
        check_learning_rate(self.learning_rate)
        self.batch_size = check_integer("batch_size", self.batch_size, minimum=1)
        self._setup_lr_schedule()
        self.generator = th.Generator()  # on the CPU, so that its state can be restored on any machine
        self.generator.seed()
        self.set_random_seed(self.seed)
        self.random_state = self.generator.get_state()
        made: Any = self.policy_class(self.observation_space, self.action_space, self.lr_schedule, **self.policy_kwargs)
        self.policy = made.to(self.device)
        if self.dataset is not None:
            self.policy.learn_statistics(self.dataset)

    def set_random_seed(self, seed: int | None = None) -> None:
        """
        Set the seed of the pseudo-random generators
        (python, numpy, pytorch, gym, action_space), and of the model's own.

        :param seed:
        """
        super().set_random_seed(seed)
        if seed is not None:
            self.generator.manual_seed(seed)

    def set_dataset(self, dataset: Any) -> None:
        """
        Learn from these data from now on. The statistics of observations, the bounds of actions and the optimiser stay.

        :param dataset: as in the constructor
        :raises ValueError: if the data do not have the model's spaces, or lack a column that the algorithm needs
        :raises TypeError: if these are no data
        """
        self.dataset = self._checked_data(dataset)

    def _checked_data(self, dataset: Any) -> OfflineDataset:
        """The data in the model's spaces, where these are known, with the columns that are needed."""
        name = type(self).__name__
        if dataset is None:
            raise TypeError(f"dataset must be given, {name} learns from data, got None")
        if _is_env(dataset):
            raise TypeError(f"dataset must be data, got an environment, {dataset!r}: write {name}(policy, dataset, env)")
        known = {key: getattr(self, key) for key in SPACES if hasattr(self, key)}
        found = dataset if isinstance(dataset, OfflineDataset) else load_dataset(dataset, **known)
        for key, expected in known.items():
            _check_space("the data set", key, getattr(found, key), expected)
        if "rewards" in self.needs and found.rewards is None:
            raise ValueError(f"the data set must have rewards, which {name} needs, got one without")
        return found.with_next_observations() if "next_observations" in self.needs else found

    def set_env(self, env: GymEnv | str, force_reset: bool = True) -> None:
        """
        Set the environment to evaluate in, of which the constructor and this method take the name, too.

        :param env: The environment (if registered in Gym, can be str)
        :param force_reset: as in SB3, without effect: training does not step an environment
        :raises ValueError: if it has other spaces than the model, or changes observations by ``VecNormalize``
        """
        self._take_env(env)

    def _take_env(self, env: GymEnv | str) -> None:
        wrapped = self._wrap_env(maybe_make_env(env, self.verbose), self.verbose)
        check_dataset_spaces(wrapped.observation_space, wrapped.action_space)
        normalize = unwrap_vec_normalize(wrapped)
        if normalize is not None and normalize.norm_obs:
            raise ValueError("VecNormalize must have norm_obs=False, since the policy standardises observations, got True")
        for key in SPACES:
            if hasattr(self, key):
                _check_space("the environment", key, getattr(wrapped, key), getattr(self, key))
            else:
                setattr(self, key, getattr(wrapped, key))
        self._vec_normalize_env, self.n_envs, self.env = normalize, wrapped.num_envs, wrapped

    def get_env(self) -> VecEnv | None:
        """
        Return the environment. While a model without one is evaluated by ``EvalCallback``, that is the callback's.

        :return: The environment (can be None if not defined)
        """
        return self._evaluation_env if self.env is None else self.env

    def _losses(self, batch: Batch) -> dict[str, th.Tensor]:
        """
        The losses of a minibatch.

        :param batch: on the model's device, with actions ``(B, A)`` scaled to [-1, 1]
        :return: scalars to log, of which ``"loss"`` is descended
        """
        raise NotImplementedError(f"{type(self).__name__} must implement _losses(batch), or _update(batch)")

    def _update(self, batch: Batch) -> Losses:
        """
        One gradient step.

        :param batch: as in :meth:`_losses`
        :return: scalars to log, without a graph
        """
        losses = self._losses(batch)
        descend(self.policy.optimizer, losses["loss"], f"the loss of gradient step {self._n_updates + 1}", self.advice)
        return {name: value.detach() for name, value in losses.items()}

    def _optimizers(self) -> list[th.optim.Optimizer]:
        """Those that follow ``learning_rate``."""
        return [self.policy.optimizer]

    def _step(self, tick: Tick) -> Losses:
        """One gradient step of :meth:`learn`, with its bookkeeping."""
        assert self.dataset is not None
        self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        remaining = self._current_progress_remaining
        check_rate(float(self.lr_schedule(remaining)), remaining)
        self._update_learning_rate(self._optimizers())
        batch = self.dataset.draw(self.batch_size, self.generator).to(self.device)
        if not self.policy.training:  # a callback may have predicted
            self.policy.set_training_mode(True)
        with own_randomness(self.generator, self.device), self._explained():
            losses = self._update(batch._replace(actions=self.policy.scaled(batch.actions)))
        self.num_timesteps += 1
        self._n_updates += 1
        self._latest_losses = losses
        return losses

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Within this context an error about NaN or infinity says where it comes from, if that is found."""
        try:
            yield
        except NonFiniteError as error:
            broken = broken_module(self.policy, "policy")
            cause = scale_cause(self.dataset, "data set") if broken is None else Cause(broken, advised=True)
            if cause is None:
                raise
            raise error.because(*cause) from error

    def learn(
        self: SelfOffline,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 1000,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfOffline:
        """
        Make gradient steps on minibatches of the data, see :func:`sb3_energy.offline.fit.fit`. The networks and the optimiser
        go on from where they are.

        :param total_timesteps: The number of gradient steps
        :param callback: callback(s) called after every gradient step with state of the algorithm.
        :param log_interval: gradient steps between two lines of the log (``None``: no lines)
        :param tb_log_name: the name of the run for TensorBoard logging (``None``: the class's)
        :param reset_num_timesteps: whether or not to reset the current timestep number (used in logging and for schedules)
        :param progress_bar: Display a progress bar using tqdm and rich.
        :return: the trained model
        :raises ValueError: without data, or if a number is out of range
        :raises TypeError: if an argument has the wrong type
        :raises FloatingPointError: if a loss or its gradient is NaN or infinity; no parameter is changed by that step
        """
        total_timesteps = check_integer("total_timesteps", total_timesteps, minimum=0)
        if self.dataset is None:
            raise ValueError("learn needs data, which a file does not hold: load(path, dataset=...), or set_dataset(...)")
        require_gradients()
        if check_bool("reset_num_timesteps", reset_num_timesteps):
            self.num_timesteps = 0
        self._total_timesteps = self.num_timesteps + total_timesteps
        self._num_timesteps_at_start = self.num_timesteps
        self.start_time = time.time_ns()
        if not self._custom_logger:
            run = type(self).__name__ if tb_log_name is None else tb_log_name
            self._logger = utils.configure_logger(self.verbose, self.tensorboard_log, run, reset_num_timesteps)
        self._evaluation_env = next((one.eval_env for one in _parts(callback) if isinstance(one, EvalCallback)), None)
        try:
            fit(self, self._step, total_timesteps, callback, log_interval, progress_bar)
        finally:
            self.policy.set_training_mode(False)
            self._evaluation_env = None
        return self

    def dump_logs(self) -> None:
        """Write the losses of the last gradient step and SB3's counters to the log."""
        seconds = max((time.time_ns() - self.start_time) / 1e9, sys.float_info.epsilon)
        record_losses(self.logger, self._latest_losses)
        self.logger.record("time/fps", int((self.num_timesteps - self._num_timesteps_at_start) / seconds))
        self.logger.record("time/time_elapsed", int(seconds), exclude="tensorboard")
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "dataset", "generator", "_latest_losses", "_evaluation_env"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer"], ["random_state"]

    def save(self, path: PathOrFile, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None) -> None:
        """
        Save all the attributes of the object, the model parameters and the state of the random stream in a zip-file; the data
        are not saved. The old file stays whole until the new one is complete.

        :param path: path to the file where the rl agent should be saved
        :param exclude: name of parameters that should be excluded in addition to the default ones
        :param include: name of parameters that might be excluded but should be included anyway
        :raises FloatingPointError: if a parameter, or an optimiser's state, is not finite; no file is touched
        :raises OSError: if the file cannot be written
        """
        self.random_state = self.generator.get_state()
        save_whole(self, path, lambda file: super(OfflineAlgorithm, self).save(file, exclude, include))

    def set_parameters(
        self,
        load_path_or_dict: PathOrFile | TensorDict | dict[str, Any],
        exact_match: bool = True,
        device: th.device | str = "auto",
    ) -> None:
        """
        As in SB3: load parameters from a zip-file or from a nested dictionary (see ``get_parameters``).

        :param load_path_or_dict: path to the file (or a file-like) that ``save`` has written, or a dictionary
        :param exact_match: If True, the given parameters should include parameters for each
            module and each of their parameters, otherwise raises an Exception. If set to False, this
            can be used to update only specific parameters.
        :param device: Device on which the code should run.
        :raises FileNotFoundError: if there is no such file
        :raises ValueError: if the file is no model's, is damaged, does not fit or is not finite; the model stays as it was
        """
        if isinstance(load_path_or_dict, dict):
            super().set_parameters(load_path_or_dict, exact_match, device)
        else:
            set_parameters_of_file(self, load_path_or_dict, exact_match, device)

    @classmethod
    def load(
        cls: type[SelfOffline],
        path: PathOrFile,
        env: GymEnv | str | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        dataset: Any = None,
        **kwargs: Any,
    ) -> SelfOffline:
        """
        Load the model from a zip-file, as in SB3. With the same data its training continues bit by bit as the saved model's
        would have. This runs code that the file contains: load only files of people you trust.

        :param path: path to the file (or a file-like) where to
            load the agent from
        :param env: the environment to evaluate in (if registered in Gym, can be str)
        :param device: Device on which the code should run.
        :param custom_objects: Dictionary of objects to replace upon loading.
        :param print_system_info: Whether to print system info from the saved model and the current system
        :param force_reset: as in SB3, without effect: training does not step an environment
        :param dataset: as in the constructor, to go on learning (``None``: predictions need none)
        :param kwargs: extra arguments to change the model when loading
        :return: new model instance with loaded parameters
        :raises FileNotFoundError: if there is no such file
        :raises TypeError: if an argument is the policy's
        :raises ValueError: if the file is no model of this class or is damaged, or data or environment have other spaces
        """

        def sb3_load(found: PathOrFile, **changes: Any) -> SelfOffline:
            return super(OfflineAlgorithm, cls).load(found, None, device, custom_objects, print_system_info, **changes)

        model = load_checked_model(cls, sb3_load, path, custom_objects, kwargs)
        if "seed" not in kwargs:
            model.generator.set_state(model.random_state.cpu())
        if env is not None:
            model.set_env(env, force_reset)
        if dataset is not None:
            model.set_dataset(dataset)
        return model


def _is_env(value: Any) -> bool:
    return isinstance(value, (gym.Env, VecEnv)) or (isinstance(value, str) and value in gym.registry)


def _check_space(whose: str, name: str, found: Any, expected: Any) -> None:
    if not same_space(found, expected, bounds=name == "action_space", any_float=True):
        raise ValueError(f"{whose} must have the model's {name}, {expected}, got {found}")


def _parts(callback: Any) -> Iterator[BaseCallback]:
    """All callbacks in lists, and those that an event triggers."""
    if isinstance(callback, CallbackList):
        callback = callback.callbacks
    if isinstance(callback, list):
        for one in callback:
            yield from _parts(one)
        return
    yield callback
    if isinstance(callback, EventCallback):
        yield from _parts(callback.callback)
