"""The compiler's process: what it may not do any more, and what the agent says when it fails."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from agent.dataplane import compile as compiling
from agent.dataplane.compile import INSTRUCTION, LOAD_64, MAP, compile_program, with_maps
from agent.errors import DataplaneError

TEXT = "int nothing(struct xdp_md *ctx) { return 2; }"
# The tries come after what they need is imported.
CONFINED = """
import ctypes, os, socket
from agent.dataplane.compiler import confine
libc = ctypes.CDLL(None, use_errno=True)
confine()
"""
SLEEPS = "import time\ntime.sleep(600)\n"


def confined(tried: str) -> str:
    """What a confined process prints that tries this."""
    command = [sys.executable, "-P", "-c", CONFINED + tried]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_alive(process: psutil.Process) -> bool:
    # Where these tests are process 1, nobody else takes leave of orphans.
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def refused(tried: str) -> bool:
    return confined(f"try:\n {tried}\nexcept PermissionError as e:\n print('no')") == "no"


@pytest.mark.parametrize(
    "tried",
    [
        "socket.socket()",
        "socket.socket(socket.AF_UNIX)",
        "socket.socket(socket.AF_NETLINK)",
        "os.execv('/bin/true', ['true'])",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "os.unshare(os.CLONE_NEWNET)",
        "os.setns(os.open('/proc/self/ns/net', 0))",
        "os.chroot('/')",
    ],
)
def test_it_reaches_no_network_and_starts_nothing(tried: str):
    assert refused(tried)


@pytest.mark.parametrize(
    "call", [425, 429, 438, 442], ids=["io_uring", "move_mount", "pidfd_getfd", "mount_setattr"]
)
def test_calls_that_python_does_not_know_are_refused_too(call: int):
    assert confined(f"libc.syscall({call}, 0, 0, 0); print(ctypes.get_errno())") == "1"


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="other hosts have no second numbers")
def test_the_second_numbers_of_the_same_calls_are_no_way_round():
    assert confined("libc.syscall(0x40000029, 2, 1, 0); print(ctypes.get_errno())") == "1"


def test_what_it_needs_is_left():
    assert confined("print(len(open('/proc/self/status').read()) > 0)") == "True"
    assert confined("a, b = os.pipe(); os.write(b, b'x'); print(os.read(a, 9))") == "b'x'"


@pytest.mark.skipif(os.geteuid() != 0, reason="root has capabilities to lose")
def test_it_keeps_the_capabilities_that_loading_needs_and_no_others():
    shown = "print([l.split()[1] for l in open('/proc/self/status') if l[:6] in {}])"
    found = confined(shown.format(("CapPrm", "CapEff", "NoNewP")))
    kept = f"{1 << 2 | 1 << 12 | 1 << 21 | 1 << 38 | 1 << 39:016x}"
    assert found == str([kept, kept, "1"])


@pytest.fixture
def own_bcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that the compiler's process imports as BCC."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    before = set(Path("/proc/self/fd").iterdir())
    yield tmp_path / "bcc.py"
    assert set(Path("/proc/self/fd").iterdir()) == before
    assert not any(is_alive(child) for child in psutil.Process().children())


def test_without_bcc_the_package_to_install_is_named(own_bcc: Path):
    own_bcc.write_text("raise ImportError\n")
    with pytest.raises(DataplaneError, match="BCC is not installed") as caught:
        compile_program(TEXT, "nothing", {})
    assert "python3-bpfcc" in caught.value.remedy


def test_a_compiler_that_crashes_is_an_error_and_not_the_agents_end(own_bcc: Path):
    own_bcc.write_text("import os\nos.abort()\n")
    with pytest.raises(DataplaneError, match="ended with signal SIGABRT and made no program"):
        compile_program(TEXT, "nothing", {})


def test_a_compiler_that_ends_in_another_way_is_an_error_too(
    own_bcc: Path, capfd: pytest.CaptureFixture[str]
):
    own_bcc.write_text("raise RuntimeError('a library is missing')\n")
    with pytest.raises(DataplaneError, match="ended with status 1"):
        compile_program(TEXT, "nothing", {})
    assert "a library is missing" in capfd.readouterr().err


def test_a_compiler_that_the_kernel_kills_names_memory(own_bcc: Path):
    own_bcc.write_text(SLEEPS)

    def kill() -> None:
        wait_until(lambda: any(psutil.Process().children()))
        psutil.Process().children()[0].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(DataplaneError, match="SIGKILL") as caught:
        compile_program(TEXT * 10_000, "nothing", {})
    killer.join()
    assert "memory" in caught.value.remedy


def test_a_compiler_that_never_answers_is_ended(own_bcc: Path, monkeypatch: pytest.MonkeyPatch):
    own_bcc.write_text(SLEEPS)
    monkeypatch.setattr(compiling, "_LONGEST_S", 0.2)
    with pytest.raises(DataplaneError, match=r"takes more than 0\.2 s"):
        compile_program(TEXT, "nothing", {})


ANSWERS = """
import os
class lib:
    bpf_num_tables = staticmethod(lambda module: 40)
    bpf_table_fd_id = staticmethod(lambda module, number: 2)
class BPF:
    module = 0
    def __init__(self, text, cflags):
        pass
    def load_func(self, function, kind):
        self.fd = 2
        return self
    def dump_func(self, function):
        return b""
"""


@pytest.mark.parametrize("spare", [0, 1, 3, 20])
def test_an_agent_that_has_too_few_descriptors_left_says_so(own_bcc: Path, spare: int):
    own_bcc.write_text(ANSWERS)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + spare, hard))
    try:
        with pytest.raises(DataplaneError, match="Too many open files"):
            compile_program(TEXT, "nothing", {})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_ctrl_c_is_for_the_agent_and_leaves_no_traceback(own_bcc: Path):
    """A terminal sends the signal to the whole group of the process in front."""
    group = own_bcc.with_name("group")
    own_bcc.write_text(
        f"import os\nopen({str(group)!r}, 'w').write(str(os.getpgrp()))\nos.abort()\n"
    )
    with pytest.raises(DataplaneError):
        compile_program(TEXT, "nothing", {})
    assert int(group.read_text()) != os.getpgrp()


def test_it_ends_with_the_agent(own_bcc: Path):
    begun = own_bcc.with_name("begun")
    own_bcc.write_text(f"open({str(begun)!r}, 'w').close()\n{SLEEPS}")
    run = (
        f"from agent.dataplane.compile import compile_program\ncompile_program({TEXT!r}, 'f', {{}})"
    )
    with subprocess.Popen([sys.executable, "-P", "-c", run], stderr=subprocess.DEVNULL) as agent:
        wait_until(begun.exists)
        (compiler,) = psutil.Process(agent.pid).children()
        agent.send_signal(signal.SIGKILL)
        wait_until(lambda: not is_alive(compiler))


def test_maps_are_named_by_this_processes_descriptors():
    def load(number: int, source: int) -> bytes:
        return INSTRUCTION.pack(LOAD_64, source << 4 | 1, 0, number) + bytes(8)

    def code(first: int, second: int) -> bytes:
        # The second place of a number may look like an instruction.
        number = INSTRUCTION.pack(LOAD_64, 2, 0, 7) + INSTRUCTION.pack(LOAD_64, MAP << 4, 0, 7)
        return load(first, MAP) + number + load(second, MAP) + load(7, 0)

    assert with_maps(code(7, 9), {7: 30, 9: 7}) == code(30, 7)
