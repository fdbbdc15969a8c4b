"""Settings of services and backends: what each means, and what has no use for it."""

from __future__ import annotations

import pytest

from agent.model import NoBackend, Scheduler
from tests.unit.config.documents import backend, load, problems, service


def test_everything_around_scheduling_becomes_the_model() -> None:
    first, second = load(
        service(
            forward="fullnat",
            draws=2,
            bytes_per_connection=400,
            count_waiting=False,
            slow_start="30s",
            no_backend="reset",
            backends=[
                backend(1, port=8000),
                backend(2, address="10.0.1.1", port=8001, backup=True),
            ],
        ),
        service(name="b", port=81, scheduler="source", source_prefix=24, source_bound=0),
    ).services
    assert (first.scheduler, first.draws, first.bytes_per_connection) == (
        Scheduler.LEAST_LOAD, 2, 400,
    )  # fmt: skip
    assert (first.count_waiting, first.slow_start_s) == (False, 30)
    assert first.no_backend is NoBackend.RESET
    assert [(b.port, b.backup) for b in first.backends] == [(8000, False), (8001, True)]
    assert (second.scheduler, second.source_bits, second.source_bound) == (Scheduler.SOURCE, 24, 0)


def test_quic_server_ids_are_bytes() -> None:
    (quic,) = load(
        service(
            protocol="udp",
            quic_server_id_bytes=4,
            backends=[
                backend(1, quic_server_id="C0FFEE01"),
                backend(2, quic_server_id="00000002"),
            ],
        )
    ).services
    assert quic.quic_id_bytes == 4
    assert [b.quic_server_id for b in quic.backends] == [b"\xc0\xff\xee\x01", b"\0\0\0\x02"]


def test_quic_server_ids_may_be_there_before_they_are_used() -> None:
    (quic,) = load(service(protocol="udp", backends=[backend(1, quic_server_id="01")])).services
    assert quic.quic_id_bytes is None


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (None, "0002", "backends[0].quic_server_id: is missing"),
        ("01", "0002", "backends[0].quic_server_id: 01 has 1 bytes, and quic_server_id_bytes is 2"),
        ("0002", "0002", "backends[1].quic_server_id: 0002 already belongs to another backend"),
        ("000g", "0002", "backends[0].quic_server_id: '000g' is not a server id"),
        (1234, "0002", "backends[0].quic_server_id: 1234 is not text"),
    ],
)
def test_quic_server_ids_name_one_backend_each(first: object, second: str, message: str) -> None:
    backends = [backend(1, quic_server_id=first), backend(2, quic_server_id=second)]
    found = problems(service(protocol="udp", quic_server_id_bytes=2, backends=backends))
    assert found[0].startswith(f"services[0].{message}")


def test_tcp_has_no_quic_server_ids() -> None:
    (found,) = problems(service(backends=[backend(1, quic_server_id="01")]))
    assert found == "services[0].backends[0].quic_server_id: means nothing for a tcp service"


def test_what_the_scheduler_or_protocol_has_no_use_for_is_not_inherited() -> None:
    config = load(
        service(),
        service(name="b", port=81, scheduler="maglev"),
        service(name="c", port=82, protocol="udp"),
        defaults={"draws": 6, "bytes_per_connection": 500, "count_waiting": False},
    )
    found = [(s.draws, s.bytes_per_connection, s.count_waiting) for s in config.services]
    assert found == [(6, 500, False), (8, 250, False), (6, 250, False)]


def test_a_setting_that_the_default_scheduler_has_no_use_for_is_one_of_the_defaults() -> None:
    messages = problems(service(), defaults={"scheduler": "maglev", "draws": 3})
    assert messages == ["defaults.draws: means nothing for scheduler maglev"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"draws": 9}, "draws: 9 is out of range"),
        ({"bytes_per_connection": 0}, "bytes_per_connection: 0 is out of range"),
        ({"count_waiting": 1.5}, "count_waiting: 1.5 is neither true nor false"),
        ({"slow_start": "2h"}, "slow_start: '2h' is out of range"),
        ({"no_backend": "rst"}, "no_backend: 'rst' is not known"),
        (
            {"scheduler": "source", "source_bound": 0.5},
            "source_bound: 0.5 is out of range",
        ),
        (
            {"scheduler": "source", "source_prefix": 33},
            "source_prefix: clients of an IPv4 VIP have addresses of 32 bits",
        ),
        (
            {"scheduler": "maglev", "draws": 3},
            "draws: means nothing for scheduler maglev",
        ),
        ({"source_bound": 2}, "source_bound: means nothing for scheduler least-load"),
        (
            {"protocol": "udp", "count_waiting": False},
            "count_waiting: means nothing for a udp service",
        ),
        ({"quic_server_id_bytes": 4}, "quic_server_id_bytes: means nothing for a tcp"),
    ],
)
def test_a_setting_that_is_wrong_or_means_nothing_is_refused(
    values: dict[str, object], message: str
) -> None:
    (found,) = problems(service(**values))
    assert found.startswith(f"services[0].{message}")
