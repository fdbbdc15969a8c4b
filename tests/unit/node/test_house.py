"""The node agent as a whole: its end, its unit, and its page of the documentation."""

import asyncio
import re
import socket
import threading
import time
from pathlib import Path

import pytest

from agent.errors import SteelyardError
from agent.node.page import render
from agent.node.reading import Driver, Gpu, GpuReading, HostReading, NodeReading
from agent.node.run import Node, serve
from agent.node.sampler import Sampler
from agent.node.settings import Check, Settings
from agent.notify import Notifier

ROOT = Path(__file__).parents[3]
DOCS = (ROOT / "docs" / "node.md").read_text(encoding="utf-8")


def read_once(reading):
    sampler = Sampler("x", lambda: reading, 1.0)
    sampler.sample()
    return sampler


def test_a_driver_that_was_replaced_ends_the_process_so_that_it_starts_anew():
    gpus = read_once(GpuReading(Driver.UNREADABLE, "mismatch", replaced=True))
    node = Node([gpus], read_once(HostReading(None, 1, 2, ())))
    settings = Settings("127.0.0.1", 0, (Check(0),), 0.1)

    async def run():
        async with asyncio.timeout(120):
            await serve(settings, node, asyncio.Event(), Notifier())

    with pytest.raises(ExceptionGroup) as raised:
        asyncio.run(run())
    (error,) = raised.value.exceptions
    assert isinstance(error, SteelyardError)
    assert "another NVIDIA driver" in str(error)


def test_it_is_ready_once_the_host_was_read_although_the_gpus_driver_hangs(tmp_path):
    """systemd and whoever waits for it believe READY: the first page has the host on it."""
    begun, go = threading.Event(), threading.Event()

    def read():
        begun.set()
        go.wait(60)
        return HostReading(None, 1, 2, ())

    node = Node([Sampler("gpus", lambda: time.sleep(3600), 1.0)], Sampler("host", read, 1.0))
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(tmp_path / "notify"))
    manager.setblocking(False)
    stop = asyncio.Event()

    async def told(what):
        while what not in await asyncio.get_running_loop().sock_recv(manager, 4096):
            pass

    async def run():
        node.start()
        async with asyncio.timeout(120), asyncio.TaskGroup() as group:
            notifier = Notifier(str(tmp_path / "notify"))
            group.create_task(serve(Settings("127.0.0.1", 0, (), 0.1), node, stop, notifier))
            await asyncio.to_thread(begun.wait, 60)
            await asyncio.sleep(0.1)
            with pytest.raises(BlockingIOError):
                manager.recv(4096)
            go.set()
            await told(b"READY=1")
            assert node.now().host is not None
            stop.set()

    with manager:
        asyncio.run(run())
    node.stop()


def test_the_documentation_has_every_metric_and_no_other():
    host = HostReading(0.5, 1, 2, ())
    node = NodeReading(GpuReading(Driver.UP, "", (Gpu("0", "GPU-a"),)), 0.0, {}, host)
    served = re.findall(r"^# TYPE (\w+) ", render(node).decode(), re.MULTILINE)
    told = re.findall(r"^\| `(steelyard_node_\w+)`", DOCS, re.MULTILINE)
    assert sorted(told) == sorted(served)


def test_the_unit_gives_no_privileges_and_always_comes_back():
    unit = (ROOT / "deploy" / "lb-agent-node.service").read_text(encoding="utf-8")
    settings = dict(
        line.split("=", 1) for line in unit.splitlines() if "=" in line and line[0].isalpha()
    )
    assert settings["ExecStart"] == "/usr/local/bin/lb-agent node"
    assert (settings["Type"], settings["Restart"]) == ("notify", "always")
    assert (settings["DynamicUser"], settings["CapabilityBoundingSet"]) == ("yes", "")
    assert not {"PrivateDevices", "ProcSubset"} & set(settings)
