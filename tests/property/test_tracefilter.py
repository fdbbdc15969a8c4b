"""Filters and their text: nothing is lost on the way there and back, and no text is a surprise."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from agent.api import filters
from agent.api.filters import And, Filter, Name, Network, Not, Or, PortRange, Proto
from agent.api.tracefilter import FilterError, parse
from agent.state.events import DROP_REASONS, Event, EventKind

ENDS = st.sampled_from([None, *filters.ENDS])
PORTS = st.integers(1, 65_535)
ADDRESSES = st.sampled_from(["192.0.2.1", "192.0.2.200", "198.51.100.1", "2001:db8::1", "fd00::1"])
NAMES = st.sampled_from(["web", "chat", "b1", "b-2.x", "tcp", "port"])

TESTS = st.one_of(
    st.builds(
        lambda address, drop, end: Network(
            ip_network(f"{address}/{max(0, ip_network(address).prefixlen - drop)}", strict=False),
            end,
        ),
        ADDRESSES,
        st.integers(0, 128),
        ENDS,
    ),
    st.builds(
        lambda one, other, end: PortRange(min(one, other), max(one, other), end), PORTS, PORTS, ENDS
    ),
    st.builds(Proto, st.sampled_from([*filters.PROTOCOLS, *filters.FAMILIES])),
    st.builds(Name, st.just("service"), NAMES),
    st.builds(Name, st.just("backend"), NAMES | st.builds("{}/{}".format, NAMES, NAMES)),
    st.builds(Name, st.just("reason"), st.sampled_from(DROP_REASONS)),
)
FILTERS = st.recursive(
    TESTS,
    lambda inner: st.one_of(
        st.builds(Not, inner), st.builds(And, inner, inner), st.builds(Or, inner, inner)
    ),
    max_leaves=12,
)


@st.composite
def events(draw: st.DrawFn) -> Event:
    version = draw(st.sampled_from([4, 6]))
    address = ADDRESSES.map(ip_address).filter(lambda a: a.version == version)
    port = st.none() | st.sampled_from([80, 443, 40_000]) | PORTS
    return Event(
        at=0.0,
        kind=draw(st.sampled_from(EventKind)),
        protocol=draw(st.sampled_from([1, 6, 17, 58])),
        client=draw(address),
        client_port=draw(port),
        vip=draw(address),
        port=draw(port),
        length=60,
        service=draw(st.none() | NAMES),
        backend=draw(st.none() | NAMES),
        reason=draw(st.none() | st.sampled_from(DROP_REASONS)),
    )


def expected(wanted: Filter, event: Event) -> bool:
    """What the words say, written down once more."""
    reply = event.kind is EventKind.REPLY
    client, vip = (event.client, event.client_port), (event.vip, event.port)
    ends = {"src": vip if reply else client, "dst": client if reply else vip}
    match wanted:
        case Not(inner):
            return not expected(inner, event)
        case And(left, right):
            return all([expected(left, event), expected(right, event)])
        case Or(left, right):
            return any([expected(left, event), expected(right, event)])
        case Network(network, end):
            chosen = [ends[end]] if end else list(ends.values())
            return any(
                a.version == network.version
                and int(a) >> (network.max_prefixlen - network.prefixlen)
                == int(network.network_address) >> (network.max_prefixlen - network.prefixlen)
                for a, _ in chosen
            )
        case PortRange(first, last, end):
            chosen = [ends[end]] if end else list(ends.values())
            return any(p in range(first, last + 1) for _, p in chosen)
        case Proto(word):
            numbers = {"tcp": 6, "udp": 17, "icmp": 1, "icmp6": 58}
            family = {"ip": 4, "ip6": 6}
            return numbers.get(word) == event.protocol or family.get(word) == event.vip.version
        case Name("service", name):
            return name == event.service
        case Name("backend", name):
            return name in (event.backend, f"{event.service}/{event.backend}")
        case Name("reason", name):
            return name == event.reason
    raise AssertionError(wanted)


@given(FILTERS)
def test_the_text_of_a_filter_means_the_filter(wanted: Filter) -> None:
    assert parse(str(wanted)) == wanted


@given(FILTERS, events())
def test_a_filter_lets_through_what_its_words_say(wanted: Filter, event: Event) -> None:
    assert wanted.matches(event) == expected(wanted, event)


@given(FILTERS, events())
def test_the_one_service_of_a_filter_is_that_of_all_that_it_lets_through(
    wanted: Filter, event: Event
) -> None:
    service = filters.only_service(wanted)
    if service is not None and wanted.matches(event):
        assert event.service == service


KEYWORDS = (*filters.ENDS, *filters.NAMES, "host", "net", "port", "portrange", "tcp", "ip6")
SIGNS = ("and", "or", "not", "(", ")", "!", "&&", "||", "|")
VALUES = ("80", "8-9", "10.0.0.1", "10.0.0.0/8", "::1", "web", "no-flow", "\u00b2", "%")
WORDS = st.sampled_from((*KEYWORDS, *SIGNS, *VALUES))


@given(st.lists(WORDS, max_size=12).map(" ".join) | st.text(max_size=30))
def test_any_text_is_a_filter_or_an_error_that_points_into_it(text: str) -> None:
    try:
        wanted = parse(text)
    except FilterError as error:
        wrong = error
    else:
        assert parse(str(wanted)) == wanted
        return
    assert 0 <= wrong.start <= wrong.end <= len(text)
    assert wrong.message
    assert wrong.remedy
