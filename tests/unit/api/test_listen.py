"""The socket is taken only from the dead."""

import errno
import fcntl
import os
import socket
import stat
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent.api import listen as listen_module
from agent.api.listen import listen_tcp, listen_unix
from agent.errors import ListenError


def dead_socket(path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def test_socket_and_its_folder_are_made(tmp_path):
    path = tmp_path / "run" / "steelyard" / "agent.sock"
    listener = listen_unix(path, None)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    listener.close()
    assert not path.exists()


def test_strict_umask_does_not_lock_the_group_out(socket_path):
    before = os.umask(0o077)
    try:
        listener = listen_unix(socket_path, None)
    finally:
        os.umask(before)
    assert stat.S_IMODE(socket_path.stat().st_mode) == 0o660
    listener.close()


def test_socket_belongs_to_the_group(socket_path):
    gid = os.getgid() if os.geteuid() else 12345
    listener = listen_unix(socket_path, gid)
    assert socket_path.stat().st_gid == gid
    listener.close()


def let_in(path, groups, members):
    """Whether a process of no other user's, that is in ``members``, may connect."""
    listener = listen_unix(path, None, groups)
    try:
        code = (
            "import os, socket, sys; path, *gids = sys.argv[1:];"
            "os.setgroups([int(gid) for gid in gids]); os.setgid(54321); os.setuid(54321);"
            "socket.socket(socket.AF_UNIX).connect(path)"
        )
        words = [sys.executable, "-S", "-c", code, str(path), *map(str, members)]
        done = subprocess.run(words, check=False, capture_output=True, text=True)
        assert done.returncode == 0 or "Permission denied" in done.stderr, done.stderr
        return done.returncode == 0
    finally:
        listener.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")
@pytest.mark.parametrize(
    ("groups", "members", "enters"),
    [
        ((), (), False),
        ((), (12345,), False),
        ((12345, 12346), (12346,), True),
        ((12345, 12346), (7, 12345), True),
        ((12345, 12346), (12347,), False),
        ((12345,), (), False),
    ],
)
def test_only_the_groups_with_a_role_can_connect(groups, members, enters):
    with tempfile.TemporaryDirectory() as folder:  # which others may search
        path = Path(folder) / "run" / "agent.sock"
        Path(folder).chmod(0o755)
        before = os.umask(0o077)
        try:
            assert let_in(path, groups, members) is enters
        finally:
            os.umask(before)


def test_a_socket_with_groups_is_open_for_nobody_else(socket_path):
    listener = listen_unix(socket_path, None, (12345,))
    mode = stat.S_IMODE(socket_path.stat().st_mode)
    assert mode & 0o007 == 0
    assert os.getxattr(socket_path, "system.posix_acl_access")
    listen_module.let_in(socket_path, ())
    assert "system.posix_acl_access" not in os.listxattr(socket_path)
    assert stat.S_IMODE(socket_path.stat().st_mode) == 0o660
    listen_module.let_in(socket_path, ())
    listener.close()


def test_a_file_system_without_acls_is_named(socket_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", refuse)
    with pytest.raises(ListenError, match="cannot make") as caught:
        listen_unix(socket_path, None, (12345,))
    assert "ACLs" in caught.value.remedy
    assert not socket_path.exists()


def test_socket_of_a_dead_agent_is_replaced(socket_path):
    dead_socket(socket_path)
    listener = listen_unix(socket_path, None)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(socket_path))
    listener.close()


def test_socket_of_a_live_agent_is_left_alone(socket_path):
    first = listen_unix(socket_path, None)
    before = socket_path.stat().st_ino
    with pytest.raises(ListenError, match="another agent answers on") as caught:
        listen_unix(socket_path, None)
    assert caught.value.where == str(socket_path)
    assert "stop that agent" in caught.value.remedy
    assert socket_path.stat().st_ino == before
    first.close()


def test_agent_too_busy_to_answer_is_alive(socket_path):
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(str(socket_path))
        busy.listen(0)
        clients = [socket.socket(socket.AF_UNIX) for _ in range(2)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex(str(socket_path))
        with pytest.raises(ListenError, match="another agent answers on"):
            listen_unix(socket_path, None)
        for client in clients:
            client.close()


@pytest.mark.parametrize("make", ["file", "folder", "link"])
def test_what_is_not_a_socket_is_left_alone(socket_path, make):
    if make == "file":
        socket_path.write_text("precious")
    elif make == "folder":
        socket_path.mkdir()
    else:
        socket_path.symlink_to("elsewhere")
    with pytest.raises(ListenError, match="not a socket"):
        listen_unix(socket_path, None)
    assert socket_path.is_symlink() or socket_path.exists()


def test_path_too_long_for_a_socket_says_so(tmp_path):
    with pytest.raises(ListenError, match="107 bytes") as caught:
        listen_unix(tmp_path / ("x" * 110), None)
    assert "shorter" in caught.value.remedy


def test_folder_that_cannot_be_made_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ListenError, match="cannot make the API's socket") as caught:
        listen_unix(tmp_path / "file" / "agent.sock", None)
    assert caught.value.remedy


def test_closing_leaves_another_agents_socket(socket_path):
    first = listen_unix(socket_path, None)
    socket_path.unlink()
    second = listen_unix(socket_path, None)
    first.close()
    assert socket_path.exists()
    second.close()


def test_closing_twice_is_harmless(socket_path):
    listener = listen_unix(socket_path, None)
    listener.close()
    listener.close()


def test_two_agents_starting_at_once_do_not_both_take_it(socket_path, monkeypatch):
    monkeypatch.setattr("agent.api.listen._LOCK_PATIENCE_S", 0.05)
    dead_socket(socket_path)
    fd = os.open(socket_path.parent, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with pytest.raises(ListenError, match="another agent has been starting"):
            listen_unix(socket_path, None)
    finally:
        os.close(fd)
    assert socket_path.exists()


def test_metrics_address_of_each_family():
    for host in ("127.0.0.1", "::1"):
        with listen_tcp((host, 0)) as sock:
            assert sock.getsockname()[0] == host


def test_metrics_address_in_use_says_which():
    with listen_tcp(("127.0.0.1", 0)) as first:
        address = first.getsockname()
        with pytest.raises(ListenError) as caught:
            listen_tcp(address)
    assert caught.value.where == f"127.0.0.1:{address[1]}"


def test_metrics_address_that_is_not_ours():
    with pytest.raises(ListenError) as caught:
        listen_tcp(("2001:db8::1", 9117))
    assert caught.value.where == "[2001:db8::1]:9117"


def test_agents_that_start_together_wait_for_each_other(tmp_path):
    paths = [tmp_path / f"{number}.sock" for number in range(20)]
    with ThreadPoolExecutor(20) as pool:
        listeners = list(pool.map(lambda path: listen_unix(path, None), paths))
    for listener in listeners:
        listener.close()
