"""Files are whole at any time, and a model without environment takes no memory for experience."""

import io
import os
import stat

import numpy as np
import pytest
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env

from sb3_energy import EnergySAC
from sb3_energy.files.atomic import write_whole

SMALL = dict(learning_starts=20, batch_size=16, seed=0, policy_kwargs=dict(net_arch=[8], n_particles=2, refiner_steps=1))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    model = EnergySAC("MlpPolicy", "Pendulum-v1", buffer_size=600, **SMALL).learn(30)
    model.save(folder / "model")
    model.save_replay_buffer(folder / "buffer")
    return folder, model


def test_without_environment_the_buffer_is_small(saved):
    folder, model = saved
    loaded = EnergySAC.load(folder / "model")
    assert loaded.replay_buffer.buffer_size == 1
    assert loaded.buffer_size == 600, "the setting is kept for later"
    obs = np.zeros((2, 3), np.float32)
    assert np.array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])


def test_setting_an_environment_allocates_it_and_learning_goes_on(saved):
    loaded = EnergySAC.load(saved[0] / "model")
    loaded.set_env(make_vec_env("Pendulum-v1", n_envs=1))
    assert loaded.replay_buffer.buffer_size == 600 and loaded.replay_buffer.size() == 0
    buffer = loaded.replay_buffer
    loaded.learn(25, reset_num_timesteps=False)
    assert loaded.num_timesteps == 55 and buffer.size() == 25 and loaded.replay_buffer is buffer
    loaded.set_env(make_vec_env("Pendulum-v1", n_envs=1))
    assert loaded.replay_buffer is buffer, "allocated once; a second environment keeps the experience"


def test_with_an_environment_it_is_there_at_once(saved):
    loaded = EnergySAC.load(saved[0] / "model", env=make_vec_env("Pendulum-v1", n_envs=2))
    assert loaded.replay_buffer.buffer_size == 300, "rows of two environments"


def test_a_loaded_buffer_is_kept(saved):
    folder, model = saved
    loaded = EnergySAC.load(folder / "model")
    loaded.load_replay_buffer(folder / "buffer")
    loaded.set_env(make_vec_env("Pendulum-v1", n_envs=1))
    assert loaded.replay_buffer.size() == 30 and loaded.replay_buffer.buffer_size == 600
    assert np.array_equal(loaded.replay_buffer.observations, model.replay_buffer.observations)


def test_saving_a_model_without_environment_loses_nothing(saved, tmp_path):
    """The small buffer is no setting: saved and loaded again, the model still asks for its own."""
    EnergySAC.load(saved[0] / "model").save(tmp_path / "again")
    loaded = EnergySAC.load(tmp_path / "again", env=make_vec_env("Pendulum-v1", n_envs=1))
    assert loaded.replay_buffer.buffer_size == 600
    loaded = EnergySAC.load(tmp_path / "again")
    loaded.set_env(make_vec_env("Pendulum-v1", n_envs=1))
    assert loaded.replay_buffer.buffer_size == 600


def test_the_arguments_of_the_buffer_are_kept(tmp_path):
    kwargs = dict(replay_buffer_class=ReplayBuffer, replay_buffer_kwargs=dict(handle_timeout_termination=False))
    EnergySAC("MlpPolicy", "Pendulum-v1", buffer_size=70, optimize_memory_usage=True, **kwargs, **SMALL).save(tmp_path / "m")
    loaded = EnergySAC.load(tmp_path / "m")
    loaded.set_env(make_vec_env("Pendulum-v1", n_envs=1))
    assert loaded.replay_buffer.optimize_memory_usage and not loaded.replay_buffer.handle_timeout_termination
    EnergySAC("MlpPolicy", "Pendulum-v1", buffer_size=70, n_steps=3, **SMALL).save(tmp_path / "n")
    loaded = EnergySAC.load(tmp_path / "n")
    loaded.set_env(make_vec_env("Pendulum-v1", n_envs=1))
    assert loaded.replay_buffer.n_steps == 3 and loaded.replay_buffer.buffer_size == 70


def test_a_file_is_written_beside_and_renamed(tmp_path):
    path = tmp_path / "deep" / "folder" / "model"
    write_whole(path, "zip", lambda file: file.write(b"old"))
    final = path.with_name("model.zip")
    assert final.read_bytes() == b"old"

    def write(file):
        file.write(b"new")
        file.flush()
        assert final.read_bytes() == b"old", "the old file is there until the new one is complete"

    write_whole(path, "zip", write)
    assert final.read_bytes() == b"new"
    assert [entry.name for entry in final.parent.iterdir()] == ["model.zip"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_alone(tmp_path, error):
    path = tmp_path / "model.zip"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"half")
        raise error

    with pytest.raises(type(error)):
        write_whole(path, "zip", fail)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.zip"]


@pytest.mark.skipif(os.name == "nt", reason="no such modes on Windows")
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_mode_is_that_of_any_new_file(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_whole(tmp_path / "model", "zip", lambda file: file.write(b"x"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model.zip").stat().st_mode) == 0o666 & ~umask


def test_a_link_stays_a_link(tmp_path):
    """Many keep `latest.zip` as a link to a larger disk."""
    (tmp_path / "disk").mkdir()
    target, link = tmp_path / "disk" / "model.zip", tmp_path / "latest.zip"
    target.write_bytes(b"old")
    link.symlink_to(target)
    write_whole(link, "zip", lambda file: file.write(b"new"))
    assert link.is_symlink() and target.read_bytes() == b"new"


def test_file_likes_are_written_to_directly(saved):
    model = saved[1]
    for save, load in ((model.save, EnergySAC.load), (model.save_replay_buffer, model.load_replay_buffer)):
        file = io.BytesIO()
        save(file)
        assert file.tell() > 0
        file.seek(0)
        load(file)
