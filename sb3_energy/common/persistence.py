"""Saving and loading that leaves no half-written file and says in one sentence what is wrong with one."""

import io
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv

from sb3_energy.common.model_files import PathOrFile, check_model_file

SelfPersistent = TypeVar("SelfPersistent", bound="PersistentAlgorithm")

_BUFFER_SIZE_WITHOUT_ENV = 1


class PersistentAlgorithm(OffPolicyAlgorithm):
    """
    Mixin for off-policy algorithms.

    * ``save`` and ``save_replay_buffer`` write beside the file and rename: killed in between, the old file is whole.
    * ``load`` explains what is wrong with a file.
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

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """
        As in SB3; allocates the replay buffer if that was postponed.

        :param env: The environment for learning a policy
        :param force_reset: Force call to ``reset()`` before training
            to avoid unexpected behavior.
        """
        super().set_env(env, force_reset)
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
        """
        write_whole(path, "zip", lambda file: super(PersistentAlgorithm, self).save(file, exclude, include))

    def save_replay_buffer(self, path: PathOrFile) -> None:
        """
        Save the replay buffer as a pickle file.

        :param path: Path to the file where the replay buffer should be saved.
            if path is a str or pathlib.Path, the path is automatically created if necessary.
        """
        write_whole(path, "pkl", super().save_replay_buffer)

    @classmethod
    def load(
        cls: type[SelfPersistent],
        path: PathOrFile,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfPersistent:
        """
        Load the model from a zip-file, as in SB3.

        :param path: path to the file (or a file-like) where to
            load the agent from
        :param env: the new environment to run the loaded model on
            (can be None if you only need prediction from a trained model) has priority over any saved environment
        :param device: Device on which the code should run.
        :param custom_objects: Dictionary of objects to replace upon loading.
        :param print_system_info: Whether to print system info from the saved model and the current system
        :param force_reset: Force call to ``reset()`` before training to avoid unexpected behavior.
        :param kwargs: extra arguments to change the model when loading
        :return: new model instance with loaded parameters
        :raises ValueError: if the file is no model of this package's or SB3's, or needs a class that cannot be imported
        """
        check_model_file(cls, path, custom_objects)
        return super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)


def write_whole(path: PathOrFile, suffix: str, write: Callable[[Any], None]) -> None:
    """
    Write a file so that at its path there is always a whole one: the old one until the new one is complete.

    :param path: where to; a file-like is written to directly
    :param suffix: appended to a path that has none, as SB3 does
    :param write: writes to a file-like
    """
    if isinstance(path, io.IOBase):
        write(path)
        return
    final = pathlib.Path(path)
    if final.suffix == "":
        final = final.with_name(f"{final.name}.{suffix}")
    final = final.resolve()  # a link stays, and what it points to is replaced
    final.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{final.name}.", dir=final.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's own mode would hide the file from everybody else
        os.replace(temporary, final)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
