"""A program that another one has replaced gives back what it held."""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path

import pytest

from agent.dataplane.compile import Origin
from agent.dataplane.program import remove_instance
from agent.model import Config, Forward, Hook, Tables
from tests.packet.harness import close, load, service

pytestmark = pytest.mark.usefixtures("network")

# Each needs what none before it needed.
MORE = ({"name": "b", "vip": "2001:db8::1", "forward": Forward.NAT},)


def held() -> Counter[str]:
    """The descriptors of this process, by what they are of."""
    found: Counter[str] = Counter()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the folder itself
            found[str(link.readlink()).partition(":[")[0]] += 1
    return found


@pytest.mark.soak
def test_descriptors_do_not_grow_with_swaps(
    instance: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path))
    swaps(instance, Origin.COMPILED)
    assert remove_instance(instance)
    swaps(instance, Origin.KEPT)


def swaps(instance: str, origin: Origin) -> None:
    config = Config(instance, "here", hook=Hook.NATIVE, tables=Tables(1024, 16, 32, 101))
    services = (service(),)
    dataplane = load(config, services)
    dataplane.attach()
    before = held()
    for fields in MORE:
        services += (service(**fields),)
        assert dataplane.ensure_features(services)
        assert dataplane.program.origin is origin
        dataplane.release_replaced()
        assert dataplane.is_attached()
    assert held() - before == Counter()
    close(dataplane)
    assert dataplane.is_attached(), "the kernel has it"
    assert held() < before
