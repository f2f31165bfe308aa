"""Saving and loading: no half-written files, and one sentence for each error."""

import copy
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm, maybe_make_env
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.save_util import recursive_getattr
from stable_baselines3.common.type_aliases import GymEnv, TensorDict
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_energy.checks import plain
from sb3_energy.files.atomic import PathOrFile, write_whole
from sb3_energy.files.checksums import UNREADABLE, dump_checked
from sb3_energy.files.errors import existing, one_line
from sb3_energy.files.finite import module_tensors, not_finite, optimizer_tensors
from sb3_energy.keywords import takes, written
from sb3_energy.training.buffer_files import check_buffer_fits, not_finite_row, read_buffer
from sb3_energy.training.model_files import SETTING_NAMES, check_model_file, own_settings, read_parameters

SelfAlgorithm = TypeVar("SelfAlgorithm", bound=BaseAlgorithm)
SelfPersistent = TypeVar("SelfPersistent", bound="PersistentAlgorithm")

_BUFFER_SIZE_WITHOUT_ENV = 1

_OF_BOTH = ("observation_space", "action_space", "lr_schedule")
"""Arguments of policies that are also attributes of algorithms, which ``load`` may set."""


class PersistentAlgorithm(OffPolicyAlgorithm):
    """
    Off-policy algorithm with safe files.

    * ``save`` and ``save_replay_buffer`` write to another file and rename it: after a kill in between, the old file is whole.
    * ``save`` raises if a parameter is NaN or infinite.
    * ``load``, ``load_replay_buffer`` and ``set_parameters`` raise for a bad file, with its fault, and change nothing then.
    * Without an environment no replay buffer is allocated until one is set: predicting needs none.
    """

    _buffer_postponed: bool = False

    def _setup_model(self) -> None:
        buffer_size = self.buffer_size
        # A million images would be allocated to load a model that only predicts
        self._buffer_postponed = self.env is None and self.replay_buffer is None
        if self._buffer_postponed:
            self.buffer_size = _BUFFER_SIZE_WITHOUT_ENV * self.n_envs
        try:
            super()._setup_model()
        finally:
            self.buffer_size = buffer_size

    def set_env(self, env: GymEnv | str, force_reset: bool = True) -> None:
        """
        As in SB3, and takes a name too, as the constructor does; allocates the replay buffer if that was postponed.

        :param env: The environment for learning a policy (if registered in Gym, can be str)
        :param force_reset: Force call to ``reset()`` before training
            to avoid unexpected behavior.
        """
        super().set_env(maybe_make_env(env, self.verbose), force_reset)
        if self._buffer_postponed:
            self._buffer_postponed = False
            self._allocate_replay_buffer()

    def _allocate_replay_buffer(self) -> None:
        assert self.replay_buffer is not None and self.replay_buffer_class is not None
        if self.replay_buffer.size() > 0:  # one was loaded in the meantime
            return
        self.replay_buffer = self.replay_buffer_class(
            self.buffer_size,
            self.observation_space,
            self.action_space,
            device=self.device,
            n_envs=self.n_envs,
            optimize_memory_usage=self.optimize_memory_usage,
            **self.replay_buffer_kwargs,
        )

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_buffer_postponed"]

    def save(self, path: PathOrFile, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None) -> None:
        """
        Save all the attributes of the object and the model parameters in a zip-file.

        :param path: path to the file where the rl agent should be saved
        :param exclude: name of parameters that should be excluded in addition to the default ones
        :param include: name of parameters that might be excluded but should be included anyway
        :raises FloatingPointError: if a parameter, or an optimiser's state, is not finite; no file is touched
        :raises OSError: if the file cannot be written
        """
        save_whole(self, path, lambda file: super(PersistentAlgorithm, self).save(file, exclude, include))

    def save_replay_buffer(self, path: PathOrFile) -> None:
        """
        Save the replay buffer as a pickle file, followed by a checksum.

        :param path: Path to the file where the replay buffer should be saved.
            if path is a str or pathlib.Path, the path is automatically created if necessary.
        :raises FloatingPointError: if a number in it is not finite; no file is touched
        :raises OSError: if the file cannot be written
        """
        assert self.replay_buffer is not None, "The replay buffer is not defined"
        bad = not_finite_row(self.replay_buffer)
        if bad is not None:
            raise FloatingPointError(f"nothing was saved to {path}: the replay buffer has NaN or infinity in {bad}")
        write_whole(path, "pkl", lambda file: dump_checked(self.replay_buffer, file))

    def load_replay_buffer(self, path: PathOrFile, truncate_last_traj: bool = True) -> None:
        """
        Load a replay buffer from a pickle file. This runs code that the file contains: load only files of people you trust.

        :param path: Path to the pickled replay buffer.
        :param truncate_last_traj: When using ``HerReplayBuffer`` with online sampling:
            If set to ``True``, we assume that the last trajectory in the replay buffer was finished
            (and truncate it).
            If set to ``False``, we assume that we continue the same trajectory (same episode).
        :raises FileNotFoundError: if there is no such file
        :raises ValueError: if it is no replay buffer, is damaged, or does not fit the model, which then keeps its own
        """
        buffer = read_buffer(path)
        self._check_replay_buffer(buffer)
        if isinstance(buffer, HerReplayBuffer):
            assert self.env is not None  # as checked above
            buffer.set_env(self.env)
            if truncate_last_traj:
                buffer.truncate_last_trajectory()
        buffer.device = self.device
        self.replay_buffer = buffer

    def _check_replay_buffer(self, buffer: ReplayBuffer) -> None:
        check_buffer_fits(buffer, self)

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
        cls: type[SelfPersistent],
        path: PathOrFile,
        env: GymEnv | str | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfPersistent:
        """
        Load the model from a zip-file, as in SB3. This runs code that the file contains: load only files of people you trust.

        :param path: path to the file (or a file-like) where to
            load the agent from
        :param env: the new environment to run the loaded model on (if registered in Gym, can be str)
            (can be None if you only need prediction from a trained model) has priority over any saved environment
        :param device: Device on which the code should run.
        :param custom_objects: Dictionary of objects to replace upon loading.
        :param print_system_info: Whether to print system info from the saved model and the current system
        :param force_reset: Force call to ``reset()`` before training to avoid unexpected behavior.
        :param kwargs: extra arguments to change the model when loading
        :return: new model instance with loaded parameters
        :raises FileNotFoundError: if there is no such file
        :raises TypeError: if an argument is the policy's
        :raises ValueError: if the file is no model of this package's or SB3's, is damaged, or needs a class that cannot be
            imported
        """
        env = None if env is None else maybe_make_env(env, verbose=0)

        def sb3_load(found: PathOrFile, **changes: Any) -> SelfPersistent:
            return super(PersistentAlgorithm, cls).load(
                found, env, device, custom_objects, print_system_info, force_reset, **changes
            )

        return load_checked_model(cls, sb3_load, path, custom_objects, kwargs)


def save_whole(model: BaseAlgorithm, path: PathOrFile, write: Callable[[Any], None]) -> None:
    """
    Save a model, unless something in it is not finite.

    :param model: any algorithm
    :param path: path to the file (or a file-like)
    :param write: SB3's ``save``, to a file-like
    :raises FloatingPointError: if a parameter, or an optimiser's state, is not finite; no file is touched
    :raises OSError: if the file cannot be written
    """
    bad = not_finite_part(model)
    if bad is not None:
        raise FloatingPointError(f"nothing was saved to {path}: {bad} has NaN or infinity; load an earlier one")
    setattr(model, SETTING_NAMES, own_settings(type(model)))  # goes into the file with everything else
    write_whole(path, "zip", write)


def not_finite_part(model: BaseAlgorithm) -> str | None:
    """
    Look through all tensors of a checkpoint.

    :param model: any algorithm
    :return: name of the first one that is not finite, or ``None``
    """
    finite, not_nan = module_tensors(model.policy, "policy")
    names, variables = model._get_torch_save_params()
    finite += [(name, value) for name in variables if isinstance(value := recursive_getattr(model, name), th.Tensor)]
    for name in names:
        part = recursive_getattr(model, name)
        if isinstance(part, th.optim.Optimizer):
            finite += optimizer_tensors(part, name)
        elif part is not model.policy:
            finite += module_tensors(part, name)[0]
    return not_finite(finite, not_nan)


def set_parameters_of_file(model: Any, path: PathOrFile, exact_match: bool, device: th.device | str) -> None:
    """
    Load the parameters in a model's file, all or none.

    :param model: any algorithm
    :param path: path to the file (or a file-like) that ``save`` has written
    :param exact_match: as in SB3's ``set_parameters``
    :param device: as in SB3's ``set_parameters``
    :raises FileNotFoundError: if there is no such file
    :raises ValueError: if the file is no model's, is damaged, does not fit or is not finite; the model stays as it was
    """
    what = type(model).__name__
    parameters: Any = read_parameters(what, existing(path, "zip", what))
    before: Any = copy.deepcopy(model.get_parameters())
    try:
        model.set_parameters(parameters, exact_match, device)
        bad = not_finite_part(model)
        if bad is not None:
            raise ValueError(f"{bad} has NaN or infinity")
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        model.set_parameters(before)
        raise ValueError(f"{path} has no parameters for this {what} ({one_line(error)})") from error


def load_checked_model(
    cls: type[SelfAlgorithm],
    load: Callable[..., SelfAlgorithm],
    path: PathOrFile,
    custom_objects: dict[str, Any] | None,
    changes: dict[str, Any],
) -> SelfAlgorithm:
    """
    Load a model by SB3's ``load``, with one sentence for each error.

    :param cls: class of the model
    :param load: SB3's ``load``, with the path and the changes as arguments
    :param path: path to the file (or a file-like)
    :param custom_objects: as in SB3's ``load``
    :param changes: arguments of the algorithm that replace those in the file
    :return: the model
    :raises FileNotFoundError: if there is no such file
    :raises TypeError: if one of the changes is an argument of the policy
    :raises ValueError: if the file is no model of this class, is damaged, or needs a class that cannot be imported
    """
    _refuse_policys(cls, changes)
    found = existing(path, "zip", cls.__name__)
    check_model_file(cls, found, custom_objects)
    try:
        model = load(found, **plain(changes))
    except UNREADABLE as error:
        read_parameters(cls.__name__, found)  # which says so, if one of them cannot be read
        of_the_machine = isinstance(error, (MemoryError, RuntimeError)) and "loading state_dict" not in str(error)
        if changes or of_the_machine:  # or of an argument
            raise
        raise ValueError(f"{path} cannot be loaded as {cls.__name__}: {one_line(error)}") from error
    bad = not_finite_part(model)
    if bad is not None:
        raise ValueError(f"{path} is no {cls.__name__} to go on with: {bad} has NaN or infinity")
    return model


def _refuse_policys(cls: Any, arguments: dict[str, Any]) -> None:
    """Raise for arguments of the policy: SB3's ``load`` would make them attributes that nothing reads."""
    for name in arguments:
        if name in _OF_BOTH or takes(cls, name) or not takes(cls.policy_aliases["MlpPolicy"], name):
            continue
        raise TypeError(
            f"{name} is an argument of the policy, which is loaded as it was saved: make another {cls.__name__} with "
            f"policy_kwargs=dict({written(name, arguments[name])}), and give it the saved one's get_parameters() by "
            "set_parameters()"
        )
