"""The node agent as a whole: its end, its unit, and its page of the documentation."""

import asyncio
import re
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
