"""What SB3's users expect of an algorithm holds for one that learns from data, without an environment."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    LogEveryNTimesteps,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import VecNormalize

from sb3_energy.offline.offline_algorithm import OfflineAlgorithm
from sb3_energy.offline.offline_dataset import OfflineDataset
from tests.offline.small_clone import BOX, PLANE, Clone, ClonePolicy, Reach, data, expert, small

OBS = data(n=7, seed=3).observations


class Lines(KVWriter):
    def __init__(self):
        self.lines = []

    def write(self, key_values, key_excluded, step=0):
        self.lines.append((step, dict(key_values)))

    def close(self):
        pass


def logged(model):
    output = Lines()
    model.set_logger(Logger(None, [output]))
    return output.lines


def parameters(model):
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(th.equal(first[name], second[name]) for name in first)


def test_it_learns_what_the_expert_does():
    model = small(policy_kwargs=dict(net_arch=[64], dropout=0.0), learning_rate=1e-2).learn(600)
    seen = np.random.default_rng(1).standard_normal((200, 3)).astype(np.float32)
    observations = seen * np.float32([1.0, 10.0, 0.1]) + np.float32([0.0, 5.0, -3.0])
    error = np.abs(model.predict(observations, deterministic=True)[0] - expert(seen)).mean()
    assert error < 0.05, "of a width of 4"
    assert evaluate_policy(model, Reach(), 10)[0] > -0.2


def test_gradient_steps_are_timesteps():
    model = small().learn(30)
    assert model.num_timesteps == model._n_updates == 30
    model.learn(5)
    assert (model.num_timesteps, model._n_updates) == (5, 35)
    model.learn(10, reset_num_timesteps=False)
    assert (model.num_timesteps, model._n_updates) == (15, 45)
    model.learn(0, reset_num_timesteps=False)
    assert model.num_timesteps == 15
    assert not model.policy.training


@pytest.mark.parametrize("n", [3, 7])
def test_the_learning_rate_follows_its_schedule(n):
    rates = []

    class Record(BaseCallback):
        def _on_step(self):
            rates.append(self.model.policy.optimizer.param_groups[0]["lr"])
            return True

    small(learning_rate=lambda remaining: 0.1 * remaining).learn(n, callback=Record())
    assert rates == pytest.approx([0.1 * (1.0 - k / n) for k in range(n)]), "as SB3: 1 - num_timesteps / total_timesteps"


def test_the_log_has_sb3s_keys():
    model = small()
    lines = logged(model)
    model.learn(20, log_interval=10)
    assert [step for step, _ in lines] == [10, 20]
    assert set(lines[0][1]) == {
        *("time/fps", "time/time_elapsed", "time/total_timesteps"),
        *("train/learning_rate", "train/n_updates", "train/loss", "train/largest_error"),
    }
    assert lines[1][1]["train/n_updates"] == 20 and lines[1][1]["train/learning_rate"] == 3e-4
    model.learn(20, log_interval=None, callback=LogEveryNTimesteps(5))
    assert [step for step, _ in lines[2:]] == [5, 10, 15, 20] and lines[-1][1]["train/loss"] > 0.0


def test_tensorboard_gets_a_folder_for_each_run(tmp_path):
    pytest.importorskip("tensorboard")
    model = small(tensorboard_log=str(tmp_path))
    model.learn(3, log_interval=1)
    model.learn(3, log_interval=1)
    model.learn(3, log_interval=1, reset_num_timesteps=False)
    model.learn(1, tb_log_name="named")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Clone_1", "Clone_2", "named_1"]


def test_it_evaluates_with_sb3s_callback_without_an_environment_of_its_own(tmp_path):
    model = small(policy_kwargs=dict(net_arch=[32], dropout=0.0), learning_rate=1e-2)
    stop = StopTrainingOnRewardThreshold(-0.5)
    evaluate = EvalCallback(
        make_vec_env(Reach, 2), eval_freq=50, callback_on_new_best=stop, best_model_save_path=str(tmp_path), verbose=0
    )
    lines = logged(model)
    model.learn(2000, callback=[evaluate])
    assert model.num_timesteps < 2000 and evaluate.best_mean_reward > -0.5
    assert any("eval/mean_reward" in line for _, line in lines)
    assert model.get_env() is None, "an evaluation's environment is not the model's"
    assert Clone.load(tmp_path / "best_model").num_timesteps == model.num_timesteps


def test_an_evaluation_may_be_triggered_by_another_callback():
    evaluate = EvalCallback(make_vec_env(Reach, 1), eval_freq=1, n_eval_episodes=1, verbose=0)
    small().learn(20, callback=EveryNTimesteps(10, evaluate))
    assert evaluate.n_calls == 2 and np.isfinite(evaluate.last_mean_reward)


def test_training_does_not_step_its_environment():
    class Counted(Reach):
        def step(self, action):
            raise AssertionError("stepped")

    model = small(env=Counted(), verbose=0)
    model.learn(5)
    assert model.get_env().num_envs == 1 and model.observation_space == PLANE


def test_a_callback_stops_it_and_checkpoints_are_written(tmp_path):
    model = small()
    model.learn(50, callback=[CheckpointCallback(4, str(tmp_path)), lambda locals_, _: locals_["self"].num_timesteps < 9])
    assert model.num_timesteps == 9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rl_model_4_steps.zip", "rl_model_8_steps.zip"]


def test_the_progress_bar_counts_gradient_steps(monkeypatch):
    rich = pytest.importorskip("tqdm.rich")
    bars = []

    class Bar(rich.tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            bars.append(self)

    monkeypatch.setattr(rich, "tqdm", Bar)
    small().learn(7, progress_bar=True)
    assert [(bar.total, bar.n) for bar in bars] == [(7, 7)]


def test_seeds_repeat_a_training_whatever_else_draws():
    first = small()
    first.learn(10)
    th.manual_seed(99)

    def drawn(locals_, globals_):
        th.rand(3)
        np.random.rand()
        return True

    second = small()
    second.learn(10, callback=drawn)
    assert same(parameters(first), parameters(second))
    assert not same(parameters(first), parameters(small(seed=1).learn(10)))
    before = th.get_rng_state()
    first.learn(3)
    assert th.equal(th.get_rng_state(), before), "training leaves torch's own stream where it was"


def test_save_and_load_restore_everything(tmp_path):
    model = small(learning_rate=lambda remaining: 1e-2 * remaining).learn(20)
    model.save(tmp_path / "model")
    again = Clone.load(tmp_path / "model", dataset=data(), device="cpu")
    assert same(parameters(model), parameters(again)) and (again.num_timesteps, again._n_updates) == (20, 20)
    for one in (model, again):
        one.learn(10, reset_num_timesteps=False)
    assert same(parameters(model), parameters(again)), "bit by bit: optimiser, schedule and random stream"
    states = [one.policy.optimizer.state_dict()["state"] for one in (model, again)]
    assert all(th.equal(states[0][i]["exp_avg"], states[1][i]["exp_avg"]) for i in states[0])
    with pytest.raises(ValueError, match=r"^learn needs data, which a file does not hold: "):
        Clone.load(tmp_path / "model").learn(1)
    other = Clone.load(tmp_path / "model", dataset=data(), seed=7).learn(10, reset_num_timesteps=False)
    assert not same(parameters(other), parameters(again)), "another seed, if one is given"
    assert Clone.load(tmp_path / "model", env=Reach()).get_env() is not None


def test_a_policy_saved_alone_predicts(tmp_path):
    model = small(policy_kwargs=dict(net_arch=[8], action_bounds="data")).learn(20)
    model.policy.save(tmp_path / "policy")
    alone = ClonePolicy.load(tmp_path / "policy")
    assert np.array_equal(alone.predict(OBS, deterministic=True)[0], model.predict(OBS, deterministic=True)[0])
    assert alone.dropout == 0.1 and alone.net_arch == [8]


def test_set_parameters_takes_a_file_or_nothing(tmp_path):
    first, second = small().learn(5), small(seed=1)
    first.save(tmp_path / "model")
    second.set_parameters(tmp_path / "model")
    assert same(parameters(first), parameters(second))
    small(policy_kwargs=dict(net_arch=[4])).save(tmp_path / "other")
    before = parameters(second)
    with pytest.raises(ValueError, match="has no parameters for this Clone"):
        second.set_parameters(tmp_path / "other")
    assert same(parameters(second), before)


def test_nan_is_neither_learned_nor_saved(tmp_path):
    model = small()
    model.save(tmp_path / "model")
    good = (tmp_path / "model.zip").read_bytes()
    before = parameters(model)
    model._losses = lambda batch: dict(loss=model.policy.network[1].weight.sum() * float("nan"))
    with pytest.raises(FloatingPointError, match=r"the loss of gradient step 1 is nan: .*; try a lower learning_rate"):
        model.learn(3)
    assert same(parameters(model), before) and model.num_timesteps == 0 and not model.policy.training
    with th.no_grad():
        model.policy.network[1].weight[0, 0] = float("nan")
    del model._losses
    with pytest.raises(FloatingPointError, match=r"the policy's parameters contain NaN \(network.1.weight\)"):
        model.learn(3)
    with pytest.raises(FloatingPointError, match=r"the policy's parameters contain NaN \(network.1.weight\)"):
        model.predict(OBS)
    with pytest.raises(FloatingPointError, match=r"nothing was saved to .*: policy.network.1.weight has NaN"):
        model.save(tmp_path / "model")
    assert (tmp_path / "model.zip").read_bytes() == good


def test_numbers_whose_squares_are_infinite_are_named():
    plain = dict(net_arch=[8], normalize_observations=False)
    model = small(data(observations=np.full((200, 3), 1e30, np.float32)), policy_kwargs=plain)
    with pytest.raises(
        FloatingPointError, match=r"the data set's observations are as large as 1e\+30, whose square is infinite"
    ):
        model.learn(10)
    with pytest.raises(ValueError, match=r"learning_rate must be finite and at least 0, got nan at progress_remaining=0.5"):
        small(learning_rate=lambda remaining: float("nan") if remaining == 0.5 else 1e-3).learn(10)


def test_observations_are_standardised_by_statistics_of_the_data():
    dataset = data()
    model = small(dataset)
    standard = model.policy.features(th.as_tensor(dataset.observations)).double()
    assert th.allclose(standard.mean(0), th.zeros(3, dtype=th.double), atol=1e-4)
    assert th.allclose(standard.std(0, unbiased=False), th.ones(3, dtype=th.double), atol=1e-4)
    model.set_dataset(data(observations=dataset.observations * 100.0))
    assert th.equal(model.policy.features(th.as_tensor(dataset.observations)).double(), standard), "the first data's, always"
    raw = small(dataset, policy_kwargs=dict(normalize_observations=False))
    assert th.equal(raw.policy.features(th.as_tensor(dataset.observations)), th.as_tensor(dataset.observations))


def test_a_constant_coordinate_is_only_shifted():
    observations = data().observations.copy()
    observations[:, 1] = 7.3
    policy = small(data(observations=observations)).policy
    seen = policy.features(th.tensor([[0.0, 7.3, -3.0], [0.0, 8.3, -3.0]]))
    assert seen[:, 1].tolist() == pytest.approx([0.0, 1.0], abs=1e-5)


def test_actions_are_scaled_by_the_box_as_sb3_does_or_by_the_data():
    dataset = data()
    policy = small(dataset).policy
    scaled = policy.scaled(th.as_tensor(dataset.actions)).numpy()
    assert np.allclose(scaled, 2.0 * (dataset.actions - BOX.low) / (BOX.high - BOX.low) - 1.0, atol=1e-6)
    assert np.allclose(scaled, policy.scale_action(dataset.actions), atol=1e-6)
    assert np.allclose(policy.unscale_action(scaled), dataset.actions, atol=1e-5)
    by_data = small(dataset, policy_kwargs=dict(action_bounds="data")).policy
    scaled = by_data.scaled(th.as_tensor(dataset.actions)).numpy()
    assert np.allclose(scaled.min(0), -1.0) and np.allclose(scaled.max(0), 1.0, atol=1e-6)
    far = by_data.unscale_action(np.full((1, 2), 5.0, np.float32))
    assert np.allclose(far, dataset.actions.max(0)), "and nothing outside of it is predicted"
    constant = dataset.actions.copy()
    constant[:, 1] = 0.5
    with pytest.raises(ValueError, match=r"action_bounds='data' needs actions that vary, got 0.5 only in coordinate 1"):
        small(data(actions=constant), policy_kwargs=dict(action_bounds="data"))


def test_images_stay_bytes_in_memory_and_go_through_sb3s_extractor():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 36, 36, 1), dtype=np.uint8)
    space = spaces.Box(0, 255, (36, 36, 1), np.uint8)
    dataset = data(40, observations=images, observation_space=space)
    assert dataset.observations.dtype == np.uint8 and dataset.observation_space.shape == (1, 36, 36)
    model = small(dataset, policy="CnnPolicy").learn(2)
    one = model.predict(images[0], deterministic=True)[0]
    assert one.shape == (2,) and np.allclose(one, model.predict(images[:1].transpose(0, 3, 1, 2), deterministic=True)[0][0])
    with pytest.raises(ValueError, match="CnnPolicy needs images, bytes of three axes"):
        small(policy="CnnPolicy")


def test_dictionaries_go_through_sb3s_extractor_and_their_vectors_are_standardised():
    rng = np.random.default_rng(0)
    parts = dict(
        image=rng.integers(0, 256, (40, 36, 36, 1), dtype=np.uint8),
        arm=rng.normal(5.0, 2.0, (40, 3)),
        kind=rng.integers(3, size=40),
    )
    space = spaces.Dict(
        image=spaces.Box(0, 255, (36, 36, 1), np.uint8), arm=spaces.Box(-np.inf, np.inf, (3,)), kind=spaces.Discrete(3)
    )
    dataset = data(40, observations=parts, observation_space=space)
    model = small(dataset, policy="MultiInputPolicy").learn(2)
    assert model.predict({key: part[0] for key, part in parts.items()})[0].shape == (2,)
    batch = dataset.draw(40)
    seen = {}
    model.policy.features_extractor.register_forward_pre_hook(lambda module, args: seen.update(args[0]))
    model.policy.features(batch.observations)
    assert abs(seen["arm"].mean().item()) < 0.6 and 0.6 < seen["arm"].std().item() < 1.4
    assert 0.0 <= seen["image"].min() and seen["image"].max() <= 1.0 and set(seen["kind"].unique().tolist()) == {0.0, 1.0}
    with pytest.raises(ValueError, match="observations that are a dictionary need MultiInputPolicy, got FlattenExtractor"):
        small(dataset)


def test_the_environments_spaces_are_the_models():
    class Doubles(Reach):
        observation_space = spaces.Box(-100.0, 100.0, (3,), np.float64)

    arrays = {name: getattr(data(), name) for name in ("observations", "actions")}
    model = small(arrays, env=Doubles())
    assert model.observation_space == Doubles.observation_space and model.action_space == BOX
    model.learn(2)
    without = small(dict(observations=arrays["observations"], actions=arrays["actions"] / 3.0))
    assert without.action_space == spaces.Box(-1.0, 1.0, (2,)), "of arrays alone"


class Discrete(gym.Env):
    observation_space, action_space = PLANE, spaces.Discrete(3)


class Wide(Reach):
    action_space = spaces.Box(-9.0, 9.0, (2,))


@pytest.mark.parametrize(
    ("kwargs", "error", "words"),
    [
        (
            dict(dataset="Pendulum-v1"),
            TypeError,
            r"dataset must be data, got an environment, 'Pendulum-v1': write Clone\(policy, ",
        ),
        (dict(dataset=Reach()), TypeError, "dataset must be data, got an environment"),
        (dict(env=Discrete()), ValueError, r"the action space must be a Box: .*, got Discrete\(3\)"),
        (dict(env=Wide()), ValueError, r"the data set must have the model's action_space, Box\(-9"),
        (dict(env=VecNormalize(make_vec_env(Reach, 1))), ValueError, "VecNormalize must have norm_obs=False"),
        (dict(policy="Mlp"), ValueError, r"policy must be one of \['MlpPolicy'"),
        (dict(policy=object), TypeError, "policy must be one of"),
        (dict(learning_rate=-1.0), ValueError, "learning_rate must be finite and at least 0, got -1.0"),
        (dict(batch_size=0), ValueError, "batch_size must be at least 1, got 0"),
        (dict(seed=-1), ValueError, "seed must be at least 0"),
        (dict(verbose="much"), TypeError, "verbose must be an integer"),
        (dict(device="gpu0"), ValueError, "device must be"),
        (dict(policy_kwargs=[1]), TypeError, "policy_kwargs must be a dict"),
        (dict(net_arch=[8]), TypeError, r"net_arch is an argument of the policy: write policy_kwargs=dict\(net_arch=\[8\]\)"),
        (dict(batchsize=8), TypeError, "Clone has no argument 'batchsize'; did you mean 'batch_size'"),
        (dict(policy_kwargs=dict(batch_size=3)), TypeError, "batch_size is an argument of Clone itself"),
        (dict(policy_kwargs=dict(net_arch=[0])), ValueError, "a width of net_arch must be at least 1"),
        (dict(policy_kwargs=dict(action_bounds="wide")), ValueError, r"action_bounds must be one of \['box', 'data'\]"),
        (dict(policy_kwargs=dict(normalize_observations=1)), TypeError, "normalize_observations must be True or False"),
        (dict(policy_kwargs=dict(optimizer_class=int)), TypeError, "optimizer_class must be a class of torch.optim"),
    ],
)
def test_what_is_wrong_is_refused_in_one_sentence(kwargs, error, words):
    with pytest.raises(error, match=f"^{words}") as caught:
        small(**kwargs)
    assert "\n" not in str(caught.value)


def test_data_are_needed():
    with pytest.raises(TypeError, match=r"^dataset must be given, Clone learns from data, got None$"):
        Clone("MlpPolicy")
    with pytest.raises(TypeError, match="total_timesteps must be an integer"):
        small().learn(3.5)
    model = small()
    with pytest.raises(ValueError, match="the data set must have the model's observation_space"):
        model.set_dataset(data(observations=np.zeros((200, 4)), observation_space=spaces.Box(-1.0, 1.0, (4,))))


class Valued(Clone):
    needs = ("rewards", "next_observations")


def test_columns_that_an_algorithm_needs_are_made_or_missed():
    model = Valued("MlpPolicy", data(), device="cpu")
    assert model.dataset.next_observations is not None and len(model.dataset) == 190
    with pytest.raises(ValueError, match="the data set must have rewards, which Valued needs, got one without"):
        Valued("MlpPolicy", data(rewards=None), device="cpu")


class Two(Clone):
    """Two optimisers, of the network's first layer and of the others."""

    _losses = OfflineAlgorithm._losses

    def _setup_model(self):
        super()._setup_model()
        first, *others = [layer for layer in self.policy.network if isinstance(layer, th.nn.Linear)]
        self.policy.first = th.optim.SGD(first.parameters(), 1.0)
        self.policy.second = th.optim.Adam([p for layer in others for p in layer.parameters()], 1.0)

    def _optimizers(self):
        return [self.policy.first, self.policy.second]

    def _get_torch_save_params(self):
        return ["policy", "policy.first", "policy.second"], ["random_state"]

    def _update(self, batch):
        loss = Clone._losses(self, batch)["loss"]
        for optimizer in self._optimizers():
            optimizer.zero_grad()
        loss.backward()
        for optimizer in self._optimizers():
            optimizer.step()
        return dict(loss=loss.detach())


def test_an_algorithm_with_two_optimisers_overrides_the_update(tmp_path):
    model = Two("MlpPolicy", data(), policy_kwargs=dict(net_arch=[8]), learning_rate=0.01, seed=0, device="cpu").learn(5)
    assert [optimizer.param_groups[0]["lr"] for optimizer in model._optimizers()] == [0.01, 0.01]
    model.save(tmp_path / "model")
    again = Two.load(tmp_path / "model", dataset=data(), device="cpu")
    for one in (model, again):
        one.learn(5, reset_num_timesteps=False)
    assert same(parameters(model), parameters(again))
    with pytest.raises(NotImplementedError, match=r"Two must implement _losses\(batch\), or _update\(batch\)"):
        model._losses(None)


def test_optimizers_are_chosen_as_in_sb3():
    kwargs = dict(optimizer_class=th.optim.SGD, optimizer_kwargs=dict(momentum=0.5))
    model = small(policy_kwargs=kwargs)
    assert type(model.policy.optimizer) is th.optim.SGD and model.policy.optimizer.defaults["momentum"] == 0.5
    assert isinstance(model.dataset, OfflineDataset)
