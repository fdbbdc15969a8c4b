"""A start of the agent with tables of another ABI, layout or size: no request fails, no connection
breaks, no flow moves.
"""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.dataplane import abi
from agent.model import Scheduler
from lbctl.lab import build, processes
from tests.netns.site import Site, assert_unharmed, site, wait_until

NAME = "st-carry"
PINS = Path(f"/sys/fs/bpf/steelyard/{NAME}-lb1")
ROOT = Path(__file__).resolve().parent.parent.parent
OTHER_ABI = 2
HELD = 20  # connections
SLOTS = 262_144


@pytest.fixture(scope="module")
def lab() -> Iterator[Site]:
    with site(name=NAME, backends=3, scheduler=Scheduler.ROUND_ROBIN) as built:
        yield built


def flow_backends(lab: Site) -> dict[tuple[str, int], str]:
    flows = lab.get("/v1/flows", limit="10000", state="established")["flows"]
    return {(flow["client"], flow["client_port"]): flow["backend"] for flow in flows}


def moved(before: dict[tuple[str, int], str], after: dict[tuple[str, int], str]) -> set[object]:
    return {flow for flow, backend in before.items() if after.get(flow, backend) != backend}


@pytest.mark.soak
def test_other_table_sizes_cost_no_request_and_no_flow(lab: Site) -> None:
    """Not even where the agent is killed on the way."""
    with lab.load(rate=300, keep_alive=HELD) as load:
        wait_until("connections", lambda: len(flow_backends(lab)) >= HELD)
        before = flow_backends(lab)
        lab.write_config(lab.config() | {"tables": {"flows": SLOTS, "backends": 512}})
        lab.stop_agent(signal.SIGTERM)
        build.start_agent(lab.lab, lab.balancer)
        wait_until("new tables beside the old", lambda: len(list(PINS.iterdir())) == 2)
        lab.stop_agent(signal.SIGKILL)
        lab.start_agent()
        load.wait()
        after = flow_backends(lab)
    assert_unharmed(load)
    assert before.keys() & after.keys()
    assert not moved(before, after)
    assert lab.get("/v1/status")["dataplane"]["flow_table"]["slots"] == SLOTS
    assert [entry.name for entry in PINS.iterdir()] == [f"abi{abi.ABI_VERSION}"]


START, PAD = '        ("start", "u8"),\n', '        ("pad", "u1", (16,)),\n'
ID, SALT = '        ("id", "u4"),\n', '        ("flow_salt", "u4"),\n'
COLD = "FLOW_COLD = np.dtype(\n    [\n"
CHANGES = {
    "bpf/include/abi.h": (
        (f"STEELYARD_ABI {abi.ABI_VERSION}", f"STEELYARD_ABI {OTHER_ABI}"),
        ("\t__u64 start; /* jiffies */\n", ""),
        ("struct flow_cold {\n", "struct flow_cold {\n\t__u64 start;\n"),
        ("\t__u32 id;\n\t__u32 flow_salt;", "\t__u32 flow_salt;\n\t__u32 id;"),
    ),
    "agent/dataplane/abi.py": (
        (f"ABI_VERSION = {abi.ABI_VERSION}\n", f"ABI_VERSION = {OTHER_ABI}\n"),
        (START + PAD, PAD),
        (COLD, COLD + START),
        (ID + SALT, SALT + ID),
    ),
}


def older(folder: Path) -> Path:
    """An agent of another ABI: another number, and fields in other places."""
    for name in ("agent", "bpf"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name, changes in CHANGES.items():
        for old, new in changes:
            _replace(folder / name, old, new)
    return folder


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, (path.name, old)
    path.write_text(text.replace(old, new))


def test_another_abi_costs_no_request_and_no_flow(lab: Site, tmp_path: Path) -> None:
    source = older(tmp_path)
    lab.stop_agent(signal.SIGTERM)
    lab.agent("detach", "--config", str(lab.lab.config_path(lab.balancer)))
    command = [
        "env",
        "PYTHONSAFEPATH=1",
        f"PYTHONPATH={source}",
        sys.executable,
        "-m",
        "agent.main",
    ]
    command += ["run", "--config", str(lab.lab.config_path(lab.balancer))]
    node = lab.balancer
    processes.start(lab.lab.run_dir, node.name, node.namespace, command)
    # Nobody has compiled this one before.
    wait_until("the other agent answers", lab._answers, timeout_s=240.0)
    assert [entry.name for entry in PINS.iterdir()] == [f"abi{OTHER_ABI}"]
    with lab.load(rate=300, keep_alive=HELD) as load:
        wait_until("connections", lambda: len(flow_backends(lab)) >= HELD)
        before = flow_backends(lab)
        lab.stop_agent(signal.SIGTERM)
        lab.start_agent()
        load.wait()
        after = flow_backends(lab)
    assert_unharmed(load)
    assert before.keys() & after.keys()
    assert not moved(before, after)
    assert [entry.name for entry in PINS.iterdir()] == [f"abi{abi.ABI_VERSION}"]
