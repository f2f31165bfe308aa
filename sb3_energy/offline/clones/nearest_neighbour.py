"""The clone that copies: the action of the most similar observation in the data."""

from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import GymEnv, PyTorchObs, Schedule

from sb3_energy.checks import check_integer
from sb3_energy.keywords import plain_arguments
from sb3_energy.offline.offline_algorithm import Losses, OfflineAlgorithm
from sb3_energy.offline.offline_dataset import Batch, OfflineDataset
from sb3_energy.offline.policies import OfflinePolicy

DISTANCES_AT_A_TIME = 2**24
ROWS_AT_A_TIME = 4096


class Flattened(BaseFeaturesExtractor):
    """
    Everything that is observed, as one vector.

    :param observation_space: Observation space
    """

    def __init__(self, observation_space: spaces.Space):
        super().__init__(observation_space, get_flattened_obs_dim(observation_space))
        self.keys: Any = list(observation_space.spaces) if isinstance(observation_space, spaces.Dict) else None

    def forward(self, observations: PyTorchObs) -> th.Tensor:
        """
        Flatten and join the parts.

        :param observations: ``B`` observations, preprocessed
        :return: ``(B, F)``
        """
        parts: Any = [observations] if self.keys is None else [observations[key] for key in self.keys]
        return th.cat([part.flatten(1) for part in parts], dim=1)


class NearestNeighbourPolicy(OfflinePolicy):
    """
    Remembers all data. The action is that of the nearest observation, in the Euclidean distance of standardised vectors and of
    images in [0, 1]; drawn actions are those of one of the ``n_neighbours`` nearest.

    :param observation_space: Observation space
    :param action_space: Action space
    :param lr_schedule: not used: there is no optimiser
    :param n_neighbours: among how many of the nearest an action is drawn, unless ``deterministic=True``
    :param normalize_observations: whether vectors among observations are standardised by mean and standard deviation of the
        data
    :param normalize_images: Whether to normalize images or not,
         dividing by 255.0 (True by default)
    :raises ValueError: if a number is out of range
    :raises TypeError: if something has the wrong type
    """

    default_features_extractor_class: ClassVar[type[BaseFeaturesExtractor]] = Flattened
    known_features: th.Tensor
    known_actions: th.Tensor

    @plain_arguments
    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        n_neighbours: int = 1,
        normalize_observations: bool = True,
        normalize_images: bool = True,
    ):
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            normalize_observations=normalize_observations,
            normalize_images=normalize_images,
        )
        self.n_neighbours = check_integer("n_neighbours", n_neighbours, minimum=1)
        self.make_networks()

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return dict(
            observation_space=self.observation_space,
            action_space=self.action_space,
            lr_schedule=self._dummy_schedule,
            n_neighbours=self.n_neighbours,
            normalize_observations=self.normalize_observations,
            normalize_images=self.normalize_images,
        )

    def make_networks(self) -> None:
        """Make the memory, which is empty."""
        self.register_buffer("known_features", th.zeros(0, self.features_dim))
        self.register_buffer("known_actions", th.zeros(0, self.action_dim))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        for name in ("known_features", "known_actions"):  # as many rows as were saved
            own, saved = getattr(self, name), state_dict.get(f"{prefix}{name}")
            if saved is not None and saved.shape[1:] == own.shape[1:]:
                setattr(self, name, own.new_zeros(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *others)

    def learn_statistics(self, dataset: OfflineDataset) -> None:
        """
        Take the statistics of the observations, and remember the data.

        :param dataset: the data
        """
        super().learn_statistics(dataset)
        self.remember(dataset)

    def remember(self, dataset: OfflineDataset) -> None:
        """
        Remember these data, in place of those before.

        :param dataset: the data
        """
        parts = []
        for start in range(0, len(dataset), ROWS_AT_A_TIME):
            rows = dataset.rows(np.arange(start, min(start + ROWS_AT_A_TIME, len(dataset))))
            observations: Any = rows.observations
            if isinstance(observations, dict):
                obs: Any = {key: th.as_tensor(part, device=self.device) for key, part in observations.items()}
            else:
                obs = th.as_tensor(observations, device=self.device)
            with th.no_grad():
                parts.append(self.features(obs))
        self.known_features = th.cat(parts)
        self.known_actions = self.scaled(th.as_tensor(dataset.actions, device=self.device))

    @property
    def device(self) -> th.device:
        """Device of the memory: there are no parameters."""
        return self.known_actions.device

    def neighbours(self, features: th.Tensor, n: int) -> th.Tensor:
        """
        Find the most similar observations.

        :param features: ``(B, F)``
        :param n: how many for each
        :return: ``(B, n)``, their rows, the nearest first; fewer where fewer are known
        """
        n, most = min(n, len(self.known_features)), max(DISTANCES_AT_A_TIME // max(len(self.known_features), 1), 1)
        found = [th.cdist(part, self.known_features).topk(n, largest=False).indices for part in features.split(most)]
        return th.cat(found) if found else th.zeros(0, n, dtype=th.long, device=features.device)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        if len(self.known_actions) == 0:
            raise RuntimeError("nothing is remembered yet: make a NearestNeighbour with a data set")
        nearest = self.neighbours(self.features(observation), 1 if deterministic else self.n_neighbours)
        chosen = th.randint(nearest.shape[1], (len(nearest), 1), device=nearest.device)
        return self.known_actions[nearest.gather(1, chosen).squeeze(1)]


class NearestNeighbour(OfflineAlgorithm):
    """
    A clone without networks, which remembers the data when it is made and copies the nearest row. There is nothing to learn:
    each of the ``total_timesteps`` measures, for the log, by how much the copied action is off at rows of a minibatch if the
    row itself is left out (``train/loss``, the mean square in [-1, 1]). Callbacks, files and ``evaluate_policy`` work as with
    other algorithms, so that it can stand beside them in a script.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy), which are one here
    :param dataset: as in :class:`~sb3_energy.offline.offline_algorithm.OfflineAlgorithm`
    :param env: The environment to evaluate in (if registered in Gym, can be str)
    :param batch_size: Minibatch size of each measurement
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation
    :param verbose: Verbosity level: 0 for no output, 1 for info messages (such as device or wrappers used), 2 for
        debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run.
        Setting it to auto, the code will be run on the GPU if possible.
    :param _init_setup_model: Whether or not to build the memory at the creation of the instance
    :raises ValueError: if a number, the data or the environment are not accepted, or do not go together
    :raises TypeError: if an argument has the wrong type
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = dict.fromkeys(
        ("MlpPolicy", "CnnPolicy", "MultiInputPolicy"), NearestNeighbourPolicy
    )
    policy: NearestNeighbourPolicy

    @plain_arguments
    def __init__(
        self,
        policy: str | type[NearestNeighbourPolicy],
        dataset: Any = None,
        env: GymEnv | str | None = None,
        batch_size: int = 256,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        others = (tensorboard_log, policy_kwargs, verbose, seed, device, _init_setup_model)
        super().__init__(policy, dataset, env, 0.0, batch_size, *others)  # nothing has a learning rate

    def set_dataset(self, dataset: Any) -> None:
        """
        Remember these data, in place of those before. The statistics of observations stay.

        :param dataset: as in the constructor
        :raises ValueError: if the data do not have the model's spaces
        :raises TypeError: if these are no data
        """
        super().set_dataset(dataset)
        assert self.dataset is not None
        self.policy.remember(self.dataset)

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy"], ["random_state"]

    def _optimizers(self) -> list[th.optim.Optimizer]:
        return []

    def _losses(self, batch: Batch) -> dict[str, th.Tensor]:
        policy = self.policy
        second = policy.neighbours(policy.features(batch.observations), 2)[:, -1]  # the nearest is the row itself
        return dict(loss=(policy.known_actions[second] - batch.actions).square().mean())

    def _update(self, batch: Batch) -> Losses:
        with th.no_grad():
            return self._losses(batch)
