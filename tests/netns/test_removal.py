"""``lb-agent detach --all``, in a network and with a BPF file system of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agent.companion.run import PROTO as COMPANION_PROTO
from agent.failover.host.addresses import PROTO as FAILOVER_PROTO
from agent.network.vips import OUR_PROTO

pytestmark = pytest.mark.kernel

_AGENT = f"{sys.executable} -m agent.main"
# What several instances and helpers leave if nobody removes it, beside what is not Steelyard's.
_SET_UP = f"""\
mount -t bpf bpf /sys/fs/bpf
mount -t tmpfs tmpfs /run
ip link add eth0 type veth peer name eth1
ip link set eth0 up
ip link set eth1 up
ip addr add 192.0.2.1/32 dev eth0 proto {OUR_PROTO}
ip addr add 192.0.2.2/32 dev eth1 proto {FAILOVER_PROTO}
ip addr add 192.0.2.3/32 dev lo proto {COMPANION_PROTO}
ip addr add 198.51.100.1/32 dev eth0
nft add table inet steelyard-gone
nft add table inet other
{_AGENT} pass --interface eth1
mkdir -p /sys/fs/bpf/steelyard/lost/abi1
"""
_LOOK = "ip -o -4 addr; ip -o link show eth1; nft list tables; find /sys/fs/bpf -mindepth 1"


def inside(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["unshare", "--mount", "--net", "--propagation", "private", "sh", "-euc", script],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
    )


def test_detach_all_removes_what_is_ours_and_nothing_else() -> None:
    done = inside(f"{_SET_UP}\n{_LOOK}; echo ---; {_AGENT} detach --all; echo ---; {_LOOK}")
    assert done.returncode == 0, done.stderr
    before, told, after = done.stdout.split("---\n")
    ours = ("192.0.2.1/", "192.0.2.2/", "192.0.2.3/", "prog/xdp", "steelyard-gone", "abi1")
    others = ("198.51.100.1/", "table inet other")
    assert [what for what in (*ours, *others) if what not in before] == []
    assert [what for what in ours if what in after] == []
    assert [what for what in others if what not in after] == []
    assert [line for line in told.splitlines() if line.startswith("removed: ")] == [
        "removed: instance gone",
        "removed: instance lost",
        "removed: steelyard_pass on eth1",
    ]


def test_detach_all_removes_nothing_while_an_agent_or_a_failover_process_runs() -> None:
    wait = "until [ -e /run/held ]; do sleep 0.1; done"  # a lock's file is there before it is held
    for held in ("InstanceLocks('gone')", "FailoverLock()"):
        program = f"from agent.lock import *; import time; held = {held}"
        program += "; open('/run/held', 'w').close(); time.sleep(300)"
        holder = f'{sys.executable} -c "{program}" & holder=$!; {wait}'
        detach = f"{_AGENT} detach --all || true; {_LOOK}; kill $holder"
        done = inside(f"{_SET_UP}\n{holder}\n{detach}")
        assert "runs it, process" in done.stderr
        for what in ("192.0.2.1/", "prog/xdp", "steelyard-gone", "abi1"):
            assert what in done.stdout


def test_detach_all_says_that_there_is_nothing() -> None:
    done = inside(f"mount -t bpf bpf /sys/fs/bpf; {_AGENT} detach --all")
    assert (done.returncode, done.stdout) == (0, "nothing was attached\n"), done.stderr
