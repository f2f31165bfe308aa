"""Each save and each load of the package: the old file stays whole, and a bad file is answered in one sentence."""

import errno
import io
import json
import os
import random
import stat
import zipfile
from typing import NamedTuple

import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.policies import BaseModel

from sb3_energy import BC, PGAC, EnergyMatching, EnergySAC, load_dataset
from sb3_energy.files.errors import explained
from sb3_energy.files.finite import module_tensors
from sb3_energy.training.model_files import own_settings
from tests.models import small_model

OBS = np.random.default_rng(0).uniform(-1, 1, (4, 3)).astype(np.float32)
ALGORITHMS = {"EnergySAC": "langevin", "PGAC": "pgac"}
CASES = [f"{name}.{what}" for name in ALGORITHMS for what in ("model", "policy", "actor", "critic", "buffer")]
CASES += ["EnergyMatching.model", "BC.model", "BC.policy", "OfflineDataset.file"]
SHARED = ("buffer", "actor", "critic")
posix = pytest.mark.skipif(os.name == "nt", reason="no such modes, links and limits on Windows")


class Case(NamedTuple):
    """One kind of file: how it is written, and what a look at it says."""

    save: object
    look: object
    holder: object


def small_matching():
    matching = EnergyMatching(net_arch=[4], warm_up_steps=1, n_steps=2, n_particles=2, seed=0, device="cpu")
    return matching.fit(OBS[:, :1], OBS, gradient_steps=3)


def small_data():
    return load_dataset(dict(observations=np.tile(OBS, (5, 1)), actions=np.tile(OBS[:, :1], (5, 1))))


def small_clone():
    return BC("MlpPolicy", small_data(), batch_size=8, policy_kwargs=dict(net_arch=[4]), seed=0, device="cpu").learn(3)


def actions(model):
    return model.predict(OBS, deterministic=True)[0]


def critic_values(critic):
    return critic(th.from_numpy(OBS), th.zeros(len(OBS), 1))[0].detach().numpy()


@pytest.fixture(scope="module")
def models():
    found = {name: small_model(kind, buffer_size=60).learn(26) for name, kind in ALGORITHMS.items()}
    return found | dict(EnergyMatching=small_matching(), BC=small_clone(), OfflineDataset=small_data())


@pytest.fixture(params=CASES)
def case(request, models):
    return make_case(request.param, models)


def make_case(which, models):
    name, what = which.split(".")
    model = models[name]
    if name == "EnergyMatching":
        return Case(model.save, lambda path: actions(EnergyMatching.load(path, device="cpu")), model)
    if name == "OfflineDataset":
        return Case(model.save, lambda path: load_dataset(path).actions, model)
    algorithm, policy = type(model), model.policy
    if what == "model":
        return Case(model.save, lambda path: actions(algorithm.load(path, device="cpu")), model)
    if what == "policy":
        return Case(policy.save, lambda path: actions(type(policy).load(path, device="cpu")), policy)
    if what == "actor":
        load = type(policy.actor).load
        return Case(policy.actor.save, lambda path: load(path)(th.from_numpy(OBS), True).detach().numpy(), policy.actor)
    if what == "critic":
        load = type(policy.critic).load
        return Case(policy.critic.save, lambda path: critic_values(load(path)), policy.critic)

    def look(path):
        model.load_replay_buffer(path)
        return model.replay_buffer.observations.copy()

    return Case(model.save_replay_buffer, look, model.replay_buffer)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def refused(look, path, errors=ValueError):
    """The message with which a file is refused: one sentence that says which file."""
    with pytest.raises(errors) as caught:
        look(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message and len(message) < 700
    return message


def test_a_file_says_the_same_when_it_is_read(case, tmp_path):
    case.save(tmp_path / "file.bin")
    first = case.look(tmp_path / "file.bin")
    np.testing.assert_array_equal(first, case.look(str(tmp_path / "file.bin")))
    stream = io.BytesIO()
    case.save(stream)
    stream.seek(0)
    np.testing.assert_array_equal(first, case.look(stream))


def test_checksums_that_torch_was_told_to_leave_out(case, tmp_path):
    th.serialization.set_crc32_options(False)
    try:
        case.save(tmp_path / "file.bin")
        assert th.serialization.get_crc32_options() is False
    finally:
        th.serialization.set_crc32_options(True)
    case.look(tmp_path / "file.bin")


def test_sb3_and_torch_read_policies_and_older_files_are_read(models, tmp_path):
    for name in ALGORITHMS:
        policy = models[name].policy
        policy.save(tmp_path / "policy.pth")
        assert set(th.load(tmp_path / "policy.pth", weights_only=False)) == {"state_dict", "data", "has_checksum"}
        of_sb3 = BaseModel.load.__func__(type(policy), str(tmp_path / "policy.pth"))
        np.testing.assert_array_equal(actions(of_sb3), actions(policy))
        BaseModel.save(policy, str(tmp_path / "old.pth"))
        np.testing.assert_array_equal(actions(type(policy).load(tmp_path / "old.pth")), actions(policy))
    content = th.load(tmp_path / "policy.pth", weights_only=False)
    th.save(content, tmp_path / "cut.pth")
    assert "its checksum is missing" in refused(type(policy).load, tmp_path / "cut.pth")


def test_the_settings_that_a_file_names_are_those_of_the_constructors():
    assert {"refine_target", "update", "capture"} <= set(own_settings(EnergySAC)) < set(own_settings(PGAC))
    assert "transport_coef" in own_settings(PGAC) and "gamma" not in own_settings(PGAC), "those of SB3 are its own matter"


class FullDisk(io.RawIOBase):
    """A file on a disk that has space for so many bytes."""

    def __init__(self, space):
        self.space = space

    def writable(self):
        return True

    def write(self, data):
        self.space -= len(data)
        if self.space < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return len(data)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_full_disk_leaves_the_old_file_whole(case, tmp_path, monkeypatch, share):
    path = tmp_path / "file.bin"
    case.save(path)
    whole = path.read_bytes()
    fdopen = os.fdopen

    def full(descriptor, mode):
        os.close(descriptor)
        fdopen(os.open(os.devnull, os.O_WRONLY), "wb").close()
        return Buffered(FullDisk(int(share * len(whole))))

    class Buffered(io.BufferedWriter):
        def fileno(self):
            raise AssertionError("it is full before it is brought to the disk")

    monkeypatch.setattr(os, "fdopen", full)
    with pytest.raises(OSError) as caught:
        case.save(path)
    assert caught.value.errno == errno.ENOSPC and str(path) in str(caught.value)
    assert path.read_bytes() == whole and names(tmp_path) == ["file.bin"]


def test_a_disk_that_fails_at_the_end_leaves_the_old_file_whole(case, tmp_path, monkeypatch):
    path = tmp_path / "file.bin"
    case.save(path)
    whole = path.read_bytes()

    def fails(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match=r"file\.bin") as caught:
        case.save(path)
    assert caught.value.errno == errno.EIO
    assert path.read_bytes() == whole and names(tmp_path) == ["file.bin"]


@posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_a_file_that_is_replaced_keeps_its_mode(case, tmp_path, mode):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    path.chmod(mode)
    case.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == mode and path.stat().st_size > 100


@posix
@pytest.mark.parametrize("name", ["n" * 246, "n" * 251, "ü" * 123, "字" * 82, "n" * 250 + ".bin"])
def test_names_as_long_as_they_can_be(case, tmp_path, name):
    case.save(tmp_path / name)
    assert len(names(tmp_path)) == 1 and names(tmp_path)[0].startswith(name)
    case.look(tmp_path / name)


def test_a_file_cut_off_anywhere_is_refused(case, tmp_path):
    path = tmp_path / "file.bin"
    case.save(path)
    whole = path.read_bytes()
    for length in [*range(0, len(whole), len(whole) // 10 + 1), len(whole) - 1, len(whole) - 30]:
        path.write_bytes(whole[:length])
        assert "no saved" in refused(case.look, path), length


def test_a_changed_byte_is_noticed_or_means_nothing(case, tmp_path):
    path = tmp_path / "file.bin"
    case.save(path)
    whole, expected, rng = path.read_bytes(), case.look(path), random.Random(0)
    n_refused = 0
    for trial in range(40):
        # every other one at the beginning or the end, where a zip file keeps what its checksums leave out
        at = rng.randrange(len(whole)) if trial % 2 else rng.choice((rng.randrange(200), len(whole) - 1 - rng.randrange(1500)))
        changed = bytearray(whole)
        changed[at] ^= rng.randrange(1, 256)
        path.write_bytes(changed)
        try:
            found = case.look(path)
        except ValueError as error:
            n_refused += 1
            assert "\n" not in str(error) and str(path) in str(error), at
        else:
            np.testing.assert_array_equal(found, expected, str(at))
    assert n_refused > 20


def test_checksums_cover_every_byte(models, tmp_path):
    for which in ("EnergyMatching.model", "EnergySAC.buffer", "PGAC.policy"):
        case, path = make_case(which, models), tmp_path / "file.bin"
        case.save(path)
        whole = path.read_bytes()
        for at in range(len(whole) - 1, -1, -len(whole) // 150):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            refused(case.look, path)


@pytest.mark.parametrize("content", [b"", b"hi", b"hello, this is text\n" * 50, b"\x80\x05N.", b"PK\x05\x06" + 18 * b"\0"])
def test_something_else_is_refused(case, tmp_path, content):
    path = tmp_path / "file.bin"
    path.write_bytes(content)
    assert "no saved" in refused(case.look, path)
    with pytest.raises(ValueError, match="no saved"):
        case.look(io.BytesIO(content))


def test_a_file_that_must_not_be_read_is_not_called_damaged():
    with pytest.raises(PermissionError), explained("model.zip", "EnergySAC"):
        raise PermissionError(errno.EACCES, "Permission denied", "model.zip")


def test_a_folder_and_nothing_are_refused(case, tmp_path):
    (tmp_path / "folder.bin").mkdir()
    assert "it is a folder" in refused(case.look, tmp_path / "folder.bin")
    refused(case.look, tmp_path / "nowhere.bin", FileNotFoundError)
    with pytest.raises(OSError, match=r"folder\.bin"):
        case.save(tmp_path / "folder.bin")
    assert names(tmp_path) == ["folder.bin"]
    (tmp_path / "file").write_text("hello")
    with pytest.raises(NotADirectoryError, match=r"what should be its folder is a file.*new\.bin"):
        case.save(tmp_path / "file" / "new.bin")


def test_every_other_file_of_the_package_is_refused(case, models, tmp_path, request):
    mine = request.node.callspec.params["case"]
    for which in CASES:
        what, path = which.split(".")[1], tmp_path / "file.bin"
        make_case(which, models).save(path)
        is_read = mine == "OfflineDataset.file" and what == "buffer"  # transitions are in both
        if which != mine and not is_read and not (what in SHARED and mine.endswith(what)):  # the algorithms share these
            refused(case.look, path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", [case for case in CASES if not case.endswith(("buffer", "file"))])
def test_what_is_not_finite_is_not_saved(which, value, tmp_path, monkeypatch):
    name = which.split(".")[0]
    made = dict(EnergyMatching=small_matching, BC=small_clone)
    model = made[name]() if name in made else small_model(ALGORITHMS[name], buffer_size=60)
    case, path = make_case(which, {name: model}), tmp_path / "file.bin"
    case.save(path)
    whole = path.read_bytes()
    networks = case.holder.network if name == "EnergyMatching" else getattr(case.holder, "policy", case.holder)
    with th.no_grad():
        module_tensors(networks)[0][-1][1].view(-1)[-1] = value
    with pytest.raises(FloatingPointError, match=r"^nothing was saved to .*file\.bin: .* has NaN or infinity"):
        case.save(path)
    assert path.read_bytes() == whole and names(tmp_path) == ["file.bin"]
    for owner in (
        "sb3_energy.training.persistence",
        "sb3_energy.policies.policy_files",
        "sb3_energy.offline.energy_matching.energy_matching",
    ):
        monkeypatch.setattr(f"sb3_energy.{owner}.not_finite", lambda *args: None)
    case.save(path)
    monkeypatch.undo()
    assert "has NaN or infinity" in refused(case.look, path)


@pytest.mark.parametrize("algorithm", [EnergySAC, PGAC])
def test_an_optimizer_that_is_not_finite_is_not_saved(algorithm, tmp_path):
    model = small_model("pgac" if algorithm is PGAC else "langevin", buffer_size=60).learn(26)
    next(iter(model.critic.optimizer.state.values()))["exp_avg"].view(-1)[0] = float("inf")
    with pytest.raises(FloatingPointError, match=r"critic\.optimizer"):
        model.save(tmp_path / "model")
    assert names(tmp_path) == []


def test_infinity_may_be_meant_in_a_buffer(tmp_path):
    model = small_model("langevin", buffer_size=60)
    model.policy.register_buffer("mask", th.full((2,), -float("inf")))
    model.save(tmp_path / "model")
    model.policy.mask[0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"policy\.mask"):
        model.save(tmp_path / "model")


def rewritten(path, **entries):
    """A zip file with some of its entries replaced."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in content.items():
            archive.writestr(name, entries.get(name.removesuffix(".pth").replace(".", "_"), value))


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("data", [b"null", b"[]", b"3", b'"text"', b"{}", b"{", b"", b"\xff\xfe", b"[" * 100_000])
def test_settings_that_are_none(models, tmp_path, name, data):
    model = models[name]
    model.save(tmp_path / "model.zip")
    rewritten(tmp_path / "model.zip", data=data)
    assert f"is no saved {name}: " in refused(type(model).load, tmp_path / "model.zip")


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("setting", ["policy_kwargs", "gamma", "batch_size", "n_envs", "verbose", "learning_rate", "update"])
def test_one_setting_that_is_none(models, tmp_path, name, setting):
    model = models[name]
    model.save(tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        data = json.loads(archive.read("data"))
    rewritten(tmp_path / "model.zip", data=json.dumps(data | {setting: None}))
    assert setting.replace("_", " ") in refused(type(model).load, tmp_path / "model.zip").replace("_", " ")


@pytest.mark.parametrize("algorithm", [PPO, SAC, TD3])
def test_files_of_sb3s_algorithms(models, tmp_path, algorithm):
    other = algorithm("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(net_arch=[16]))
    other.save(tmp_path / "model.zip")
    other.policy.save(tmp_path / "policy.pth")
    for name in ALGORITHMS:
        model = models[name]
        assert f"is no saved {name}: its policy is" in refused(type(model).load, tmp_path / "model.zip")
        assert f"has no parameters for this {name}" in refused(model.set_parameters, tmp_path / "model.zip")
        assert "is no saved" in refused(type(model.policy).load, tmp_path / "policy.pth")
    assert "is no saved EnergyMatching" in refused(EnergyMatching.load, tmp_path / "policy.pth")


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("entry", ["policy", "actor_optimizer", "pytorch_variables"])
def test_parameters_that_are_cut_or_others(models, tmp_path, name, entry):
    model, path = models[name], tmp_path / "model.zip"
    model.save(path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        inner = archive.read(entry.replace("actor_", "actor.") + ".pth")
    for content in (inner[: len(inner) // 2], b"", b"hello", b"\x80\x02N."):
        path.write_bytes(whole)
        rewritten(path, **{entry: content})
        assert ".pth' in it is damaged" in refused(type(model).load, path)
        if entry == "policy":
            refused(model.set_parameters, path)
    other = io.BytesIO()
    th.save({"something": th.zeros(3)}, other)
    path.write_bytes(whole)
    rewritten(path, **{entry: other.getvalue()})
    refused(type(model).load, path)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_set_parameters_from_a_file(models, tmp_path, name):
    model, path = models[name], tmp_path / "model.zip"
    model.save(path)
    other = small_model(ALGORITHMS[name], buffer_size=60, seed=1)
    other.set_parameters(str(tmp_path / "model"))
    np.testing.assert_array_equal(actions(other), actions(model))
    wider = small_model(ALGORITHMS[name], buffer_size=60, policy_kwargs=dict(net_arch=[24]))
    before = actions(wider)
    assert "has no parameters for this" in refused(wider.set_parameters, path)
    np.testing.assert_array_equal(actions(wider), before)
    inner = io.BytesIO()
    th.save(model.critic.optimizer.state_dict(), inner)
    rewritten(path, actor_optimizer=inner.getvalue())
    before = actions(small_model(ALGORITHMS[name], buffer_size=60, seed=1))
    other = small_model(ALGORITHMS[name], buffer_size=60, seed=1)
    refused(other.set_parameters, path)
    np.testing.assert_array_equal(actions(other), before, "networks come before optimisers, and are put back")
    (tmp_path / "text").write_text("hello")
    assert "no saved" in refused(other.set_parameters, tmp_path / "text")
    refused(other.set_parameters, tmp_path / "nowhere.zip", FileNotFoundError)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_settings_of_another_version(models, tmp_path, monkeypatch, name):
    model, path = models[name], tmp_path / "model.zip"
    settings = lambda cls: ["quantum_leap", "update"]  # noqa: E731
    monkeypatch.setattr("sb3_energy.training.persistence.own_settings", settings)
    model.save(path)
    monkeypatch.undo()
    assert f"has settings that {name} of this version does not know, ['quantum_leap']" in refused(type(model).load, path)
    monkeypatch.setattr(model, "policy_kwargs", model.policy_kwargs | dict(entanglement=3))
    model.save(path)
    monkeypatch.undo()
    assert f"has policy_kwargs that {name} of this version does not know, ['entangle" in refused(type(model).load, path)


def test_settings_of_another_version_of_energy_matching(models, tmp_path, monkeypatch):
    model = models["EnergyMatching"]
    monkeypatch.setattr(type(model.settings), "as_dict", lambda self: vars(self) | dict(quantum_leap=1))
    model.save(tmp_path / "model.pt")
    monkeypatch.undo()
    assert "does not know, ['quantum_leap']" in refused(EnergyMatching.load, tmp_path / "model.pt")


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_environment_by_its_name(models, tmp_path, name):
    model = models[name]
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", env="Pendulum-v1")
    loaded.learn(22)
    later = type(model).load(tmp_path / "model")
    later.set_env("Pendulum-v1")
    later.learn(22)
    assert loaded.num_timesteps == later.num_timesteps == 22
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        later.set_env("MountainCarContinuous-v0")
    assert "Observation spaces do not match" in refused(
        lambda path: type(model).load(path, env="MountainCarContinuous-v0"), tmp_path / "model"
    )
