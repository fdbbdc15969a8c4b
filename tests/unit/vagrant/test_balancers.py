"""When the pair counts as settled, from what the agents say."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from vagrant.smoke import balancers
from vagrant.smoke.balancers import View


def answers(role: str = "master", priority: int = 150, be2: str = "up") -> str:
    """What an agent says to ``QUESTION``, as far as it is read."""
    status: dict[str, Any] = {
        "agent": {"version": "1.2.3"},
        "dataplane": {"interface": "eth1", "attached": True, "hook": "native"},
    }
    router = {"role": role, "priority_configured": priority, "why": "because", "problems": []}
    failover = {
        "instances": [{**router, "name": f"web/{family}"} for family in ("ipv4", "ipv6")],
        "flow_sync": {"peers": [{"address": "10.77.0.12", "state": "connected"}]},
    }
    backends = [{"name": "be1", "state": "up"}, {"name": "be2", "state": be2}]
    service = {"name": "dsr", "vip": "10.77.1.100", "port": 80, "forward": "dsr"}
    six = {"name": "nat6", "vip": "fd77:0:0:1::100", "port": 82, "forward": "nat"}
    services = {"services": [{**one, "backends": backends} for one in (service, six)]}
    return "".join(json.dumps(part) + "\n" for part in (status, failover, services))


def pair(**changes: Any) -> dict[str, View | None]:
    """A pair in which nothing is wrong, but for changes of lb2."""
    second = balancers.parse(answers("backup", 100))
    return {
        "lb1": balancers.parse(answers()),
        "lb2": dataclasses.replace(second, **changes),
    }


def test_what_an_agent_says() -> None:
    view = balancers.parse(answers())
    assert (view.version, view.hook, view.interface, view.role) == (
        "1.2.3",
        "native",
        "eth1",
        "master",
    )
    four, six = view.services
    assert (four.target, four.family) == ("10.77.1.100:80", "ipv4")
    assert (six.target, six.family) == ("[fd77:0:0:1::100]:82", "ipv6")


@pytest.mark.parametrize("text", ["", "{}", "{}{}{}", "not JSON", answers() + "{}"])
def test_other_answers_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        balancers.parse(text)


def test_a_pair_in_which_nothing_is_wrong_is_settled() -> None:
    assert balancers.lacking(pair()) is None
    known = {name: view for name, view in pair().items() if view is not None}
    assert balancers.preferred(known) == "lb1"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"attached": False}, "lb2: the program is not attached"),
        ({"services": ()}, "lb2: no services"),
        ({"roles": {"web/ipv4": "master"}}, "lb2: master instead of backup (because)"),
        (
            {"roles": {"web/ipv4": "backup", "web/ipv6": "master"}},
            "lb2: backup, master instead of backup (because)",
        ),
        ({"roles": {}}, "lb2: none instead of backup (because)"),
        ({"problems": ("the VIPs differ",)}, "lb2: the VIPs differ"),
        ({"sync": {"10.77.0.11": "connecting"}}, "lb2: flow sync: 10.77.0.11 connecting"),
        ({"sync": {}}, "lb2: flow sync: no peers"),
    ],
)
def test_what_is_lacking_is_named(changes: dict[str, Any], why: str) -> None:
    assert balancers.lacking(pair(**changes)) == why


def test_a_backend_that_is_not_up_and_an_agent_that_is_away_are_named() -> None:
    down = balancers.parse(answers(be2="down"))
    found: dict[str, View | None] = {**pair(), "lb1": down}
    assert balancers.lacking(found) == "lb1: dsr/be2 is down, nat6/be2 is down"
    assert balancers.lacking({**pair(), "lb2": None}) == "lb2: its agent does not answer"


def test_the_states_of_a_backend_are_those_in_all_services() -> None:
    views = [balancers.parse(answers()), balancers.parse(answers(be2="down"))]
    assert balancers.states_of(views, "be2") == {"up", "down"}
    assert balancers.states_of(views, "be1") == {"up"}
