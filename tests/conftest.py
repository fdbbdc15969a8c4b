"""What all tests share."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from tests.pairs import HOOKED, covering, turns

# The same examples on every host, and no bound on their time: 200 ms is hypothesis' default outside
# of a CI. `make soak` draws others, and more of them (examples.py).
settings.register_profile(
    "same", max_examples=20, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
settings.register_profile(
    "any", settings.get_profile("same"), max_examples=100, derandomize=False, print_blob=True
)
settings.load_profile("same")


def pytest_configure(config: pytest.Config) -> None:
    """A folder for the programs that this run compiles, and signals as a terminal delivers them.

    What one test has compiled, another one loads, also in another process; what an earlier run
    compiled is not used, so that each run compiles everything once.

    A shell starts what it runs in the background with SIGINT ignored, `nohup` with SIGHUP, and
    the processes that tests start would inherit that: no signal of a test would end them.

    Byte code is kept, whatever the caller's shell says, as by the Makefile: to compile its modules
    anew is a third of what a start of the agent costs, and of what it costs to find the tests.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if not hasattr(config, "workerinput"):
        os.environ["CACHE_DIRECTORY"] = tempfile.mkdtemp(prefix="steelyard-tests-")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a product that is marked ``pairs``, what no pair of values needs is for the soak."""
    products: dict[str, list[pytest.Function]] = {}
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker("pairs"):
            products.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for product in products.values():
        values = [
            [(name, repr(value)) for name, value in sorted(item.callspec.params.items())]
            for item in product
        ]
        for place in set(range(len(product))) - covering(values):
            product[place].add_marker("soak")
    _take_turns(items)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Find the tests without looking for garbage: what is made on the way stays.

    To look through 20,000 tests again and again was a third of what it costs to find them.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def _take_turns(items: list[pytest.Item]) -> None:
    """Run each case of a packet test for both hooks at one of them; the soak has both.

    The hooks share all of the walk over a packet, and where they differ, some cases of each test
    come by. What is marked ``pairs`` has chosen its cases by the hook already.
    """
    tests: dict[str, dict[str, list[pytest.Item]]] = {}
    for item in items:
        if (
            isinstance(item, pytest.Function)
            and "hooked" in item.fixturenames
            and not item.get_closest_marker("pairs")
        ):
            name, _, values = item.nodeid.partition("[")
            case = "-".join(part for part in values[:-1].split("-") if part not in HOOKED)
            tests.setdefault(name, {}).setdefault(case, []).append(item)
    for cases in tests.values():
        for case, turn in turns(cases, len(HOOKED)).items():
            if len(cases[case]) == len(HOOKED):
                for place in set(range(len(HOOKED))) - turn:
                    cases[case][place].add_marker("soak")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling:
    """The tests of a file run in one process, also with a mere `-n 2`: they share a lab's name,
    and the second process that builds it stops the agent of the first.

    In the order in which they are found: by the number of their tests, as xdist would have it, the
    few that take longest come last, and one process works while the others have nothing to do.
    """
    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ["CACHE_DIRECTORY"])
