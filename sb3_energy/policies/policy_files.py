"""Save and load of policies, actors and critics without their algorithm."""

from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.utils import get_device

from sb3_energy.files.atomic import PathOrFile, write_whole
from sb3_energy.files.checksums import DamagedError
from sb3_energy.files.errors import existing, explained, opened
from sb3_energy.files.finite import module_tensors, not_finite
from sb3_energy.files.tensors import load_tensors, save_tensors

SelfPersistentModel = TypeVar("SelfPersistentModel", bound="PersistentModel")


class PersistentModel(BaseModel):
    """SB3's ``BaseModel`` with a ``save`` that leaves no half-written file and a ``load`` with errors of one sentence."""

    def save(self, path: PathOrFile) -> None:
        """
        Save model to a given location. An old file is replaced once the new one is complete.

        :param path: path to the file (or a file-like)
        :raises FloatingPointError: if a parameter is not finite; no file is touched
        :raises OSError: if the file cannot be written
        """
        bad = not_finite(*module_tensors(self))
        if bad is not None:
            raise FloatingPointError(f"nothing was saved to {path}: {bad} has NaN or infinity")
        content = {"state_dict": self.state_dict(), "data": self._get_constructor_parameters()}
        write_whole(path, "", lambda file: save_tensors(content, file))

    @classmethod
    def load(
        cls: type[SelfPersistentModel],
        path: PathOrFile,
        device: th.device | str = "auto",
    ) -> SelfPersistentModel:
        """
        Load model from path. This runs code that the file contains: load only files of people you trust.

        :param path: path to the file (or a file-like)
        :param device: Device on which the policy should be loaded.
        :return: the model
        :raises FileNotFoundError: if there is no such file
        :raises ValueError: if the file is no saved model of this class, is damaged, or needs a class that cannot be imported
        """
        found, device = existing(path, "", cls.__name__), get_device(device)
        with explained(path, cls.__name__), opened(found) as file:
            content: Any = load_tensors(file, device, weights_only=False)  # spaces and classes are in it
            if not {"state_dict", "data"} <= set(content):
                raise DamagedError("it was written by something else")
            model = cls(**content["data"])
            model.load_state_dict(content["state_dict"])
            bad = not_finite(*module_tensors(model))
            if bad is not None:
                raise DamagedError(f"{bad} has NaN or infinity")
        model.to(device)
        return model
