"""Where each setting of a service comes from."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from agent.config.edit import Edit, EditOp, apply_edits
from agent.config.layers import compose, written
from agent.config.load import parse
from agent.config.origins import Origin, origins
from agent.model import Target
from agent.state.sources import Placed

FILE = parse(
    """\
interface: eth0
defaults: {health: {interval: 5s}}
services:
  - name: chat
    vip: 10.0.0.10
    port: 80
    scheduler: source
    no_backend: reset
    discover: {file: /etc/gpu.yaml}
    backends: [{name: mine, address: 10.0.0.21, weight: 7}]
""",
    "agent.yaml",
)
FOUND = {"chat": (Placed(Target(ip_address("10.0.0.40"), 80, weight=30)),)}


def after(*edits: Edit) -> dict[tuple[str | None, str], tuple[object, Origin]]:
    running = compose(FILE, FOUND).config
    base = apply_edits(FILE, list(written(running, edits, FOUND)))
    (service,) = compose(base, FOUND).config.services
    found = origins(service, FILE.services[0])
    assert len({(each.backend, each.field) for each in found}) == len(found)
    return {(each.backend, each.field): (each.value, each.origin) for each in found}


def test_what_the_file_says_comes_from_the_file_and_the_rest_is_not_shown():
    found = after()
    own = {field: value for (backend, field), value in found.items() if backend is None}
    assert own == {
        "vip": ("10.0.0.10", Origin.FILE),
        "port": (80, Origin.FILE),
        "protocol": ("tcp", Origin.FILE),
        "scheduler": ("source", Origin.FILE),
        "no_backend": ("reset", Origin.FILE),
        "health.interval": ("5s", Origin.FILE),
        "discover.file": ("/etc/gpu.yaml", Origin.FILE),
    }
    assert found["mine", "weight"] == (7, Origin.FILE)
    assert found["10.0.0.40-80", "weight"] == (30, Origin.SOURCE)
    assert found["10.0.0.40-80", "state"] == ("active", Origin.SOURCE)


@pytest.mark.parametrize("no_backend", ["any", "drop"])
def test_a_change_at_run_time_is_told_even_if_it_goes_back_to_the_default(no_backend: str):
    found = after(Edit(EditOp.SERVICE_SET, "chat", values={"no_backend": no_backend}))
    assert found[None, "no_backend"] == (no_backend, Origin.RUNTIME)


def test_a_decision_about_a_discovered_backend_is_an_override():
    found = after(
        Edit(EditOp.BACKEND_SET, "chat", "10.0.0.40-80", {"state": "drain"}),
        Edit(EditOp.BACKEND_SET, "chat", "mine", {"weight": 9}),
        Edit(EditOp.BACKEND_ADD, "chat", "late", {"address": "10.0.0.22"}),
    )
    assert found["10.0.0.40-80", "state"] == ("drain", Origin.OVERRIDE)
    assert found["10.0.0.40-80", "weight"] == (30, Origin.SOURCE)
    assert found["mine", "weight"] == (9, Origin.RUNTIME)
    assert found["mine", "address"] == ("10.0.0.21", Origin.FILE)
    assert found["late", "address"] == ("10.0.0.22", Origin.RUNTIME)
    assert (None, "overrides") not in found


def test_a_service_that_the_file_does_not_have_comes_from_run_time():
    found = origins(FILE.services[0], None)
    assert {each.origin for each in found} == {Origin.RUNTIME}
    assert {"vip", "scheduler"} <= {each.field for each in found}
    assert "panic" not in {each.field for each in found}
