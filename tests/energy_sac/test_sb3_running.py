"""Running a training: seeds, callbacks, logs, the progress bar, and a task that must be learned."""

import io
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pytest
from stable_baselines3.common.callbacks import (
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import IdentityEnvBox
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def observed(model):
    return model.replay_buffer.observations[:50], model.replay_buffer.actions[:50]


@pytest.mark.parametrize("extra", [dict(), dict(refine_target=True, distillation_coef=0.1)])
def test_a_seed_reproduces_a_run(make_model, extra):
    def run(seed):
        model = make_model(seed=seed, **extra).learn(50)
        return *observed(model), model.predict(np.ones((2, 3), np.float32))[0], model.log_ent_coef.item()

    first, second, other = run(3), run(3), run(4)
    for mine, theirs, different in zip(first, second, other, strict=True):
        assert np.array_equal(mine, theirs)
        assert not np.array_equal(mine, different)


def test_checkpoints(make_model, algorithm, tmp_path):
    callback = CheckpointCallback(20, str(tmp_path), save_replay_buffer=True)
    make_model().learn(50, callback=callback)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "rl_model_20_steps.zip",
        "rl_model_40_steps.zip",
        "rl_model_replay_buffer_20_steps.pkl",
        "rl_model_replay_buffer_40_steps.pkl",
    ]
    assert algorithm.load(tmp_path / "rl_model_40_steps").num_timesteps == 40


def test_evaluation_keeps_the_best_model(make_model, algorithm, tmp_path):
    eval_env = make_vec_env("Pendulum-v1", n_envs=1)
    stop = StopTrainingOnRewardThreshold(-1e9)
    callback = EvalCallback(
        eval_env, stop, n_eval_episodes=1, eval_freq=25, log_path=str(tmp_path), best_model_save_path=str(tmp_path), verbose=0
    )
    model = make_model().learn(100, callback=callback)
    assert model.num_timesteps == 25, "the first evaluation reaches the threshold and stops the training"
    assert np.load(tmp_path / "evaluations.npz")["results"].shape == (1, 1)
    best = algorithm.load(tmp_path / "best_model")
    obs = np.ones((2, 3), np.float32)
    assert np.array_equal(best.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])


def test_evaluation_does_not_disturb_the_training(make_model):
    """A deterministic evaluation asks no random number generator of torch."""

    def run(callback):
        return observed(make_model().learn(50, callback=callback))[1]

    eval_env = make_vec_env(lambda: Monitor(IdentityEnvOfThree()), n_envs=1)
    callback = EvalCallback(eval_env, n_eval_episodes=1, eval_freq=25, verbose=0)
    assert np.array_equal(run(None), run(callback))


class IdentityEnvOfThree(IdentityEnvBox):
    """An environment shaped like Pendulum that ends after three steps and shares no generator with it."""

    def __init__(self):
        super().__init__(ep_length=3)
        env = make_vec_env("Pendulum-v1", n_envs=1)
        self.observation_space, self.action_space = env.observation_space, env.action_space

    def _choose_next_state(self):
        self.state = np.zeros(3, np.float32)

    def _get_reward(self, action):
        return 0.0


def test_a_callback_cancels(make_model):
    calls = []
    model = make_model().learn(100, callback=lambda local, _: calls.append(1) or len(calls) < 30)
    assert model.num_timesteps == 30 == len(calls)
    model.learn(10, reset_num_timesteps=False)
    assert model.num_timesteps == 40


def test_stop_after_episodes(make_model):
    model = make_model(env=Monitor(IdentityEnvBox(ep_length=10))).learn(100, callback=StopTrainingOnMaxEpisodes(3))
    assert model.num_timesteps == 30


def test_progress_bar(make_model):
    for package in ("tqdm", "rich"):
        pytest.importorskip(package)
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()):
        model = make_model().learn(30, progress_bar=True)
    assert model.num_timesteps == 30
    assert "30/30" in out.getvalue()


SAC_KEYS = {"train/actor_loss", "train/critic_loss", "train/ent_coef", "train/ent_coef_loss", "train/learning_rate"}
OVERESTIMATION_KEYS = {"train/overestimation", "train/q_value", "train/discounted_return"}


def test_tensorboard(make_model, algorithm, tmp_path):
    env = Monitor(IdentityEnvBox(ep_length=10))
    model = make_model(env=env, tensorboard_log=str(tmp_path), refine_target=True)
    model.learn(60, log_interval=1)
    model.learn(20, reset_num_timesteps=False, log_interval=1)
    model.learn(20, tb_log_name="again")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{algorithm.__name__}_1", "again_1"]
    events = EventAccumulator(str(tmp_path / f"{algorithm.__name__}_1"))
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    rollout = {"rollout/ep_rew_mean", "rollout/ep_len_mean", "time/fps"}
    keys = ("refiner_displacement", "refiner_acceptance", "refiner_energy_drop", "refined_at_edge")
    refinement = {f"train/{key}" for key in keys}
    assert scalars >= SAC_KEYS | OVERESTIMATION_KEYS | rollout | refinement | {"train/refiner_effective_sample_size"}
    value = {key: events.Scalars(key)[-1].value for key in OVERESTIMATION_KEYS}
    difference = value["train/q_value"] - value["train/discounted_return"]
    assert value["train/overestimation"] == pytest.approx(difference, abs=1e-4)
    assert max(event.step for event in events.Scalars("train/actor_loss")) == 80


def test_a_refined_target_logs_what_its_refinement_did(make_model, tmp_path):
    model = make_model(env=Monitor(IdentityEnvBox(ep_length=10)), refine_target=True)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(50, log_interval=1)
    model.logger.close()
    lines = (tmp_path / "progress.csv").read_text().splitlines()
    last = dict(zip(lines[0].split(","), lines[-1].split(","), strict=True))
    assert np.isfinite(float(last["train/refiner_energy_drop"])) and float(last["train/refiner_displacement"]) > 0.0


@pytest.mark.parametrize("ent_coef", ["auto", 0.1])
def test_logged_keys(make_model, tmp_path, ent_coef):
    model = make_model(env=Monitor(IdentityEnvBox(ep_length=10)), ent_coef=ent_coef, distillation_coef=0.1)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(50, log_interval=1)
    model.logger.close()
    lines = (tmp_path / "progress.csv").read_text().splitlines()
    columns = set(lines[0].split(","))
    expected = SAC_KEYS - (set() if ent_coef == "auto" else {"train/ent_coef_loss"})
    assert columns >= expected | OVERESTIMATION_KEYS | {"train/distillation_loss", "train/n_updates"}
    assert ("train/ent_coef_loss" in columns) == (ent_coef == "auto")


def test_a_continued_training_compares_whole_episodes_only(make_model):
    """A second call of learn() resets the environment: half an episode of before is not the start of another one."""
    model = make_model(env=Monitor(IdentityEnvBox(ep_length=10)), ent_coef=0.1).learn(35)
    assert len(model.return_tracker._episodes[0]) == 5
    model.learn(3)
    assert len(model.return_tracker._episodes[0]) == 3
    model.learn(3, reset_num_timesteps=False)
    assert len(model.return_tracker._episodes[0]) == 6


def test_identity_task(make_model):
    """SB3's own test of learning, with its settings: 90 of 100 after 400 steps."""
    env = IdentityEnvBox(eps=0.5)
    settings = dict(learning_starts=100, batch_size=256, learning_rate=1e-3, gamma=0.95)
    model = make_model(env=env, policy_kwargs=dict(net_arch=[64, 64]), **settings)
    evaluate_policy(model.learn(400), env, n_eval_episodes=20, reward_threshold=90, warn=False)
