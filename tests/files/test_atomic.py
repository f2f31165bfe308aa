"""Files that are whole at any time: modes, links, long names, devices, and what a killed writer leaves."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from sb3_energy.files import atomic as whole_files
from sb3_energy.files.atomic import ABANDONED_AFTER, remove_left_behind, write_whole

pytestmark = pytest.mark.skipif(os.name == "nt", reason="no such modes, locks and signals on Windows")
ROOT = Path(__file__).parents[2]

WRITER = """
import sys, time
from sb3_energy.files.atomic import write_whole

def write(file):
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    sys.stdin.readline()
    file.write(b" and half")

write_whole(sys.argv[1], "zip", write)
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def new(file):
    file.write(b"new")


@pytest.fixture
def writer(tmp_path):
    """A process in the middle of writing ``model.zip``, which goes on when it is told to."""
    command = [sys.executable, "-c", WRITER, str(tmp_path / "model")]
    env = os.environ | dict(PYTHONPATH=str(ROOT))
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout.readline() == "writing\n"
    yield process
    process.kill()
    process.communicate()


def test_what_a_kill_leaves_is_removed_by_the_next_save(tmp_path, writer):
    (tmp_path / "model.zip").write_bytes(b"old")
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    left = names(tmp_path)
    assert len(left) == 2 and left[0].startswith(".model.zip.") and left[0].endswith(".part")
    assert (tmp_path / "model.zip").read_bytes() == b"old"
    write_whole(tmp_path / "another_step", "zip", new)  # a checkpoint has the name of its step
    assert names(tmp_path) == ["another_step.zip", "model.zip"]


def test_what_somebody_is_writing_is_left_alone(tmp_path, writer):
    write_whole(tmp_path / "model", "zip", new)
    assert len(names(tmp_path)) == 2, "the other one's, and the new file"
    writer.communicate("go on\n")
    assert writer.returncode == 0 and names(tmp_path) == ["model.zip"]
    assert (tmp_path / "model.zip").read_bytes() == b"half and half"


def test_writers_side_by_side_never_lose_a_file(tmp_path):
    """Each one tidies up what the others write."""
    errors = []

    def save(index):
        try:
            for _ in range(40):
                write_whole(tmp_path / f"model_{index % 2}", "zip", new)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=save, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and names(tmp_path) == ["model_0.zip", "model_1.zip"]


def test_only_what_is_surely_left_behind_is_removed(tmp_path, monkeypatch):
    machine = whole_files._machine()
    kept = [
        ".model.zip.part",
        ".model.zip.0123abcd.part",
        "model.zip." + machine + ".0123456789ab.part",
        ".mine.part",
        ".hidden",
    ]
    for name in kept:
        (tmp_path / name).write_bytes(b"mine")
    (tmp_path / f".folder.{machine}.0123456789ab.part").mkdir()
    elsewhere = tmp_path / ".model.zip.00000000.0123456789ab.part"
    elsewhere.write_bytes(b"of another machine")
    remove_left_behind(tmp_path)
    assert names(tmp_path) == sorted([*kept, f".folder.{machine}.0123456789ab.part", elsewhere.name])
    long_ago = time.time() - ABANDONED_AFTER - 60
    os.utime(elsewhere, (long_ago, long_ago))
    (tmp_path / f".model.zip.{machine}.0123456789ab.part").write_bytes(b"left here")
    remove_left_behind(tmp_path)
    assert names(tmp_path) == sorted([*kept, f".folder.{machine}.0123456789ab.part"])


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    """Nobody can tell who is writing, so nothing is removed; saving works."""

    def flock(descriptor, operation):
        raise OSError("no locks available")

    monkeypatch.setattr(whole_files.fcntl, "flock", flock)
    left = tmp_path / f".model.zip.{whole_files._machine()}.0123456789ab.part"
    left.write_bytes(b"half")
    write_whole(tmp_path / "model", "zip", new)
    assert names(tmp_path) == [left.name, "model.zip"]


def test_a_system_without_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(whole_files, "fcntl", None)
    write_whole(tmp_path / "model", "zip", new)
    write_whole(tmp_path / "model", "zip", new)
    assert names(tmp_path) == ["model.zip"] and (tmp_path / "model.zip").read_bytes() == b"new"


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o700])
def test_the_mode_is_kept_and_nobody_reads_more_in_between(tmp_path, mode):
    path, seen = tmp_path / "model.zip", []
    path.write_bytes(b"old")
    path.chmod(mode)

    def write(file):
        seen.append(stat.S_IMODE(os.fstat(file.fileno()).st_mode))
        file.write(b"new")

    write_whole(path, "zip", write)
    assert stat.S_IMODE(path.stat().st_mode) == mode and path.read_bytes() == b"new"
    assert seen[0] & ~mode == 0


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_owner_and_group_are_kept(tmp_path):
    path = tmp_path / "model.zip"
    path.write_bytes(b"old")
    os.chown(path, 1234, 2345)
    path.chmod(0o640)
    write_whole(path, "zip", new)
    status = path.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 2345, 0o640)


def test_another_group_gets_no_more_than_everybody(tmp_path, monkeypatch):
    """Where neither owner nor group can be kept, the group's rights would be somebody else's."""
    path = tmp_path / "model.zip"
    path.write_bytes(b"old")
    path.chmod(0o660)
    status = list(path.stat())
    status[5] += 1  # the group

    def refuse(*args):
        raise PermissionError("not allowed")

    monkeypatch.setattr(os, "fchown", refuse)
    descriptor = os.open(path, os.O_RDWR)
    whole_files._hand_on(descriptor, os.stat_result(status))
    os.close(descriptor)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def message_of_a_user(path):
    """What somebody is told who is not root, whom nothing stops."""
    received, sent = os.pipe()
    process = os.fork()
    if process == 0:
        if os.geteuid() == 0:
            os.setuid(65534)
        try:
            write_whole(path, "zip", new)
        except PermissionError as error:
            os.write(sent, str(error).encode())
        os._exit(0)
    os.close(sent)
    os.waitpid(process, 0)
    with os.fdopen(received, "rb") as file:
        return file.read().decode()


@pytest.mark.parametrize("what", ["folder", "file"])
def test_read_only(what):
    """Neither a read-only file nor one in a read-only folder is replaced, and the message names the file."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own are only for who runs it
        folder, path = Path(name), Path(name) / "model.zip"
        path.write_bytes(b"old")
        path.chmod(0o666 if what == "folder" else 0o444)
        folder.chmod(0o555 if what == "folder" else 0o777)
        message = message_of_a_user(path)
        folder.chmod(0o755)
        expected = "no file can be written beside it (Permission denied)" if what == "folder" else "the file is read-only"
        assert expected in message and str(path) in message
        assert path.read_bytes() == b"old" and names(folder) == ["model.zip"]


def test_a_device_or_pipe_stays_what_it_is(tmp_path):
    pipe, received = tmp_path / "pipe.zip", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
    reader.start()
    write_whole(pipe, "zip", new)
    reader.join()
    assert received == [b"new"] and stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_link_to_nothing_makes_what_it_points_to(tmp_path):
    link = tmp_path / "latest.zip"
    link.symlink_to(tmp_path / "disk" / "model.zip")
    write_whole(link, "zip", new)
    assert link.is_symlink() and (tmp_path / "disk" / "model.zip").read_bytes() == b"new"


def test_a_name_that_is_too_long_is_refused_before_anything_is_written(tmp_path):
    def write(file):
        raise AssertionError("it is written")

    with pytest.raises(OSError, match="File name too long"):
        write_whole(tmp_path / ("n" * 252), "zip", write)
    assert names(tmp_path) == []


def test_the_umask_of_the_process_is_left_alone(tmp_path, monkeypatch):
    """To look at it means to change it for a moment, for all threads."""

    def umask(mask):
        raise AssertionError("the umask was changed")

    monkeypatch.setattr(os, "umask", umask)
    write_whole(tmp_path / "model", "zip", new)


LIMITED = """
import resource, sys, signal
from tests.models import small_model
model = small_model("langevin", buffer_size=5000)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
for name, save in dict(model=model.save, policy=model.policy.save, buffer=model.save_replay_buffer).items():
    try:
        save(f"{sys.argv[1]}/{name}.bin")
    except OSError as error:
        print(error)
"""


def test_a_limit_of_the_operating_system(tmp_path):
    """No fake: writes fail in the middle, whatever libraries make of that."""
    for name in ("model", "policy", "buffer"):
        (tmp_path / f"{name}.bin").write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)],
        env=os.environ | dict(PYTHONPATH=str(ROOT)), capture_output=True, text=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stdout + done.stderr
    for name, line in zip(("model", "policy", "buffer"), lines, strict=True):
        assert "File too large" in line and f"{name}.bin" in line
        assert (tmp_path / f"{name}.bin").read_bytes() == b"old"
    assert names(tmp_path) == ["buffer.bin", "model.bin", "policy.bin"]
