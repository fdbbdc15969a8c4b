"""With nat, two services are refused exactly if one packet could be the answer of both."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.config.load import build
from agent.errors import ConfigError
from tests.examples import examples

SOME_PORTS = range(78, 86)
_ports = st.sampled_from(["any", 80, 81, 82, "79-81", "82-85"])
_services = st.fixed_dictionaries(
    {
        "vip": st.sampled_from(["10.0.0.1", "10.0.0.2"]),
        "port": _ports,
        "own": st.none() | st.sampled_from([80, 81]),
    }
)


class _Nowhere:
    def place(self, path: tuple[str | int, ...]) -> tuple[str, str]:
        return "", ".".join(str(part) for part in path)


def _document(*services: dict[str, object]) -> dict[str, object]:
    return {
        "interface": "eth0",
        "services": [
            {
                "name": f"s{n}",
                "vip": service["vip"],
                "port": service["port"],
                "forward": "nat",
                "health": {"type": "none"},
                "backends": [{"name": "one", "address": "10.1.0.1", "port": service["own"]}],
            }
            for n, service in enumerate(services)
        ],
    }


def _span(port: object) -> range:
    if port == "any":
        return SOME_PORTS
    first, _, last = str(port).partition("-")
    return range(int(first), int(last or first) + 1)


def _answers(service: dict[str, object], other: dict[str, object]) -> set[object]:
    """The source ports of the server's answers to this service."""
    mine = set(_span(service["port"]))
    if service["vip"] == other["vip"] and len(_span(other["port"])) < len(mine):
        mine -= set(_span(other["port"]))  # the narrower service gets these
    return {service["own"] or port for port in mine}


@settings(max_examples=examples(300), deadline=None)
@given(_services, _services)
def test_two_services_share_a_server_if_their_answers_differ(
    one: dict[str, object], other: dict[str, object]
) -> None:
    messages = []
    try:
        build(_document(one, other), _Nowhere())
    except ConfigError as error:
        messages = [problem.message for problem in error.problems]
    if any("told apart" not in message for message in messages):
        return  # refused for another reason
    # A table that holds one entry for every port of a server has no room for two of them.
    both_wide = len(_span(one["port"])) > 1 and len(_span(other["port"])) > 1
    same = _answers(one, other) & _answers(other, one)
    assert bool(messages) == bool(both_wide or same)
