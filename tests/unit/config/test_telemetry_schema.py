"""What a service says of load and locality: read, merged with the defaults, refused with words."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from agent.config.document import write_yaml
from agent.config.edit import Edit, EditOp, apply_edit
from agent.config.load import parse
from agent.config.load_rules import check
from agent.config.render import document
from agent.errors import ConfigError
from agent.model import (
    Affinity,
    AffinityBy,
    ModelLoaded,
    ModelSource,
    NodeKind,
    NodeTelemetry,
    Objective,
    Outlier,
    Rebalance,
    Scale,
    Telemetry,
    TelemetryKind,
    Zone,
)
from tests.unit.config.documents import backend, load, problems, service

VLLM = {"type": "vllm"}
STATS = {"type": "prometheus", "running": 'my_running{queue="main"}', "path": "/stats"}


def test_everything_becomes_the_model() -> None:
    config = load(
        service(
            telemetry={**STATS, "waiting": "w", "kv_usage": "max(kv)", "tls": True, "port": 9000,
                       "interval": "100ms", "timeout": "50ms"},
            node={"type": "dcgm", "port": 9401, "path": "/gpus", "interval": "5s", "timeout": 1},
            model={"name": "org/model:7b", "source": "ollama", "port": 11434, "interval": "10s"},
            learn_speed=False,
            rtt_per_connection="2ms",
            rebalance={"rate": 2.5, "idle": "1m", "skew": 2},
            backends=[backend(1, zone="east", priority=3)],
        ),
        zones={"west": [], "east": ["10.1.0.0/16", "2001:db8:1::/48", "192.0.2.7"]},
        tables={"zone_rings": 3},
    )  # fmt: skip
    (chat,) = config.services
    assert chat.telemetry == Telemetry(
        TelemetryKind.PROMETHEUS, 9000, "/stats", True, 0.1, 0.05, 'my_running{queue="main"}',
        "w", "max(kv)",
    )  # fmt: skip
    assert chat.node == NodeTelemetry(NodeKind.DCGM, 9401, "/gpus", 5.0, 1.0)
    assert chat.model == ModelLoaded("org/model:7b", ModelSource.OLLAMA, 11434, 10.0)
    assert (chat.learn_speed, chat.rtt_per_connection_s) == (False, 0.002)
    assert chat.rebalance == Rebalance(2.5, 60.0, 2.0)
    assert (chat.backends[0].zone, chat.backends[0].priority) == ("east", 3)
    clients = ("10.1.0.0/16", "2001:db8:1::/48", "192.0.2.7/32")
    assert config.zones == (Zone("east", tuple(map(ip_network, clients))), Zone("west", ()))
    assert config.tables.zone_rings == 3


def test_a_report_may_take_twice_its_interval_but_no_more_than_a_second() -> None:
    for interval, timeout_s in (("100ms", 0.2), ("2s", 1.0)):
        (chat,) = load(service(telemetry={**VLLM, "interval": interval})).services
        assert chat.telemetry.timeout_s == timeout_s


def test_a_timeout_that_another_interval_would_have_is_written() -> None:
    config = load(service(telemetry={**VLLM, "interval": "1s", "timeout": "400ms"}))
    assert parse(write_yaml(document(config)), "f") == config


def test_a_model_without_keys_is_none() -> None:
    (chat,) = load(service(model={"name": None, "port": None})).services
    assert chat.model is None


# -- defaults


def inherited(defaults: dict[str, object], **own: object) -> Telemetry:
    (chat,) = load(service(telemetry=own), defaults={"telemetry": defaults}).services
    return chat.telemetry


def test_defaults_are_merged_key_by_key() -> None:
    found = inherited({**VLLM, "port": 8000, "interval": "1s"}, interval="500ms", path="/m")
    assert (found.kind, found.port) == (TelemetryKind.VLLM, 8000)
    assert (found.interval_s, found.path) == (0.5, "/m")
    given = {"node": {"type": "dcgm", "interval": "9s"}, "rebalance": {"rate": 3}}
    own = service(node={"port": 9401}, rebalance={"idle": "10s"})
    (chat,) = load(own, defaults=given).services
    assert (chat.node.kind, chat.node.port, chat.node.interval_s) == (NodeKind.DCGM, 9401, 9.0)
    assert (chat.rebalance.rate_per_s, chat.rebalance.idle_s) == (3.0, 10.0)


def test_defaults_without_a_type_hold_for_every_type() -> None:
    assert inherited({"port": 8000}, type="vllm").port == 8000


def test_another_type_leaves_all_but_the_times_behind() -> None:
    found = inherited({**STATS, "port": 9000, "interval": "1s", "timeout": "20ms"}, type="vllm")
    assert found == Telemetry(TelemetryKind.VLLM, interval_s=1.0, timeout_s=0.02)
    own = service(node={"type": "node-agent"})
    (chat,) = load(own, defaults={"node": {"type": "dcgm", "port": 9401, "path": "/g"}}).services
    assert chat.node == NodeTelemetry(NodeKind.NODE_AGENT)


def test_what_is_changed_at_run_time_leaves_the_rest_as_it_is() -> None:
    model = {"name": "m", "port": 8001}
    before = load(service(telemetry={**VLLM, "port": 8000}, model=model))
    values = {"telemetry": {"interval": "1s"}, "model": {"source": "triton"}}
    (chat,) = apply_edit(before, Edit(EditOp.SERVICE_SET, "chat", values=values)).services
    assert (chat.telemetry.port, chat.telemetry.interval_s) == (8000, 1.0)
    assert chat.model == ModelLoaded("m", ModelSource.TRITON, 8001)
    gone = apply_edit(before, Edit(EditOp.SERVICE_SET, "chat", values={"model": None}))
    assert gone.services[0].model is None
    assert parse(write_yaml(document(gone)), "f") == gone


# -- what is refused


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"telemetry": {"type": "vlm"}}, "telemetry.type: 'vlm' is not known"),
        ({"telemetry": {"type": "prometheus"}}, "type prometheus needs an expression"),
        ({"telemetry": {**VLLM, "running": "x"}}, "running means nothing for type vllm"),
        ({"telemetry": {**VLLM, "interval": "1ms"}}, "interval: '1ms' is "),
        ({"telemetry": {**VLLM, "path": "metrics"}}, "path: 'metrics' is "),
        ({"node": {"type": "nvml"}}, "node.type: 'nvml' is "),
        ({"model": {"source": "openai"}}, "model.name: is missing"),
        ({"model": {"name": "a b"}}, "'a b' is not a model's name"),
        ({"model": {"name": "x" * 257}}, "is too long for a model's name"),
        ({"rebalance": {"rate": -1}}, "rate: -1 is out of range"),
        ({"rebalance": {"rate": "fast"}}, "rate: 'fast' is not a number"),
        ({"rebalance": {"skew": 0.5}}, "skew: 0.5 is out of range"),
        ({"rtt_per_connection": "11s"}, "rtt_per_connection: '11s' is "),
        ({"telemetry": "vllm"}, "telemetry: 'vllm' is not a mapping"),
    ],
)  # fmt: skip
def test_what_is_wrong_by_itself(values: dict[str, object], words: str) -> None:
    (found,) = problems(service(**values))
    assert words in found


def test_learned_speed_is_for_least_load_of_tcp() -> None:
    udp, other = {"protocol": "udp", "health": {"type": "none"}}, {"scheduler": "maglev"}
    for changed in (udp, other):
        for key, value in (("learn_speed", True), ("rtt_per_connection", "1ms")):
            if changed is udp and key == "rtt_per_connection":
                continue
            (found,) = problems(service(**changed, **{key: value}))
            assert f"{key}: means nothing" in found


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("my_running{", "at the end: the name of a label"),
        ("", "at the end"),
        ("a +", "at the end"),
        ("nope(a)", "nope"),
        ("a b", "'b'"),
    ],
)
def test_a_wrong_expression_says_where(written: str, words: str) -> None:
    (found,) = problems(service(telemetry={"type": "prometheus", "running": written}))
    assert found.startswith("services[0].telemetry.running: ")
    assert words in found.removeprefix("services[0].telemetry.running: ")


def test_a_service_for_any_port_says_where_its_servers_are_asked() -> None:
    asked = service(port="any", telemetry=VLLM, model={"name": "m"}, health={"type": "none"})
    places = {text.partition(":")[0] for text in problems(asked)}
    assert places == {"services[0].telemetry", "services[0].model"}
    ports = {"telemetry": {**VLLM, "port": 8000}, "model": {"name": "m", "port": 8000}}
    assert load(asked | ports).services
    assert load(asked | {"health": {"type": "http", "port": 8000}}).services
    own = {"forward": "fullnat", "backends": [backend(1, port=8000)]}
    assert load(asked | own).services
    assert load(asked | {"telemetry": {"type": "none"}, "model": None}).services


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"protocol": "udp", "health": {"type": "none"}}, "means nothing for a udp service"),
        ({"count_waiting": False}, "needs count_waiting"),
        ({"scheduler": "source"}, "means nothing for scheduler source"),
        ({"affinity": {"by": "source"}}, "means nothing with affinity"),
    ],
)
def test_connections_are_reset_where_it_helps(changes: dict[str, object], words: str) -> None:
    (found,) = problems(service(**changes, rebalance={"rate": 1}))
    assert found.startswith(f"services[0].rebalance.rate: {words}")
    assert load(service(**changes, rebalance={"rate": 0})).services


# -- affinity


@pytest.mark.parametrize(
    ("given", "escape"),
    [({}, None), ({"escape": "auto"}, None), ({"escape": 20_000}, 20_000),
     ({"escape": "64KiB"}, 65_536), ({"escape": 0}, 0), ({"escape": "16MiB"}, 1 << 24)],
)  # fmt: skip
def test_homes_become_the_model_and_are_written(given: dict[str, object], escape: int | None):
    config = load(service(affinity={"by": "source", "prefix": 24, **given}))
    assert config.services[0].affinity == Affinity(AffinityBy.SOURCE, 24, escape)
    assert parse(write_yaml(document(config)), "f") == config


def test_clients_have_no_homes_unless_they_are_wanted():
    (chat,) = load(service(), defaults={"affinity": {"escape": "1MiB"}}).services
    assert not chat.affinity.is_any
    (chat,) = load(service(affinity={"by": "source"}),
                   defaults={"affinity": {"escape": "1MiB"}}).services  # fmt: skip
    assert chat.affinity == Affinity(AffinityBy.SOURCE, None, 1 << 20)


@pytest.mark.parametrize(
    ("values", "place", "words"),
    [
        ({"affinity": {"by": "cookie"}}, "affinity.by", "'cookie' is not known"),
        ({"affinity": {"by": "source", "prefix": 64}}, "affinity.prefix",
         "clients of an IPv4 VIP have addresses of 32 bits, not 64"),
        ({"affinity": {"by": "source", "escape": "20 tokens"}}, "affinity.escape",
         "'20 tokens' is neither auto nor a number of bytes"),
        ({"affinity": {"by": "source", "escape": "17MiB"}}, "affinity.escape",
         "'17MiB' is out of range"),
        ({"affinity": {"by": "source", "escape": True}}, "affinity.escape", "true is neither"),
        ({"affinity": {"by": "source"}, "count_waiting": False}, "affinity.by",
         "needs count_waiting"),
        ({"affinity": {"by": "source"}, "scheduler": "maglev"}, "affinity",
         "means nothing for scheduler maglev"),
        ({"affinity": {"by": "source"}, "protocol": "udp", "health": {"type": "none"}},
         "affinity", "means nothing for a udp service"),
    ],
)  # fmt: skip
def test_homes_that_cannot_be(values: dict[str, object], place: str, words: str):
    (found,) = problems(service(**values))
    assert found.startswith(f"services[0].{place}: {words}")


def test_another_scheduler_leaves_homes_behind():
    before = load(service(affinity={"by": "source"}))
    edit = Edit(EditOp.SERVICE_SET, "chat", values={"scheduler": "maglev"})
    assert not apply_edit(before, edit).services[0].affinity.is_any


# -- outliers


@pytest.mark.parametrize(
    ("given", "outlier"),
    [({}, Outlier()), ({"eject": "0s"}, Outlier(0.0)),
     ({"eject": "1m", "threshold": "25%", "window": "10s", "requests": 5, "max_ejected": 0.5},
      Outlier(60.0, 0.25, 10.0, 5, 0.5)),
     ({"threshold": "12.5%"}, Outlier(threshold=0.125)),
     ({"threshold": 1}, Outlier(threshold=1.0))],
)  # fmt: skip
def test_outliers_and_panic_become_the_model_and_are_written(given, outlier: Outlier):
    config = load(service(outlier=given, panic="50%"))
    assert (config.services[0].outlier, config.services[0].panic) == (outlier, 0.5)
    assert parse(write_yaml(document(config)), "f") == config


@pytest.mark.parametrize(
    ("values", "place", "words"),
    [
        ({"outlier": {"threshold": "half"}}, "outlier.threshold", "'half' is not a share"),
        ({"outlier": {"threshold": "101%"}}, "outlier.threshold", "'101%' is not a share"),
        ({"panic": 50}, "panic", "50 is not a share"),
        ({"panic": True}, "panic", "true is not a share"),
        ({"outlier": {"window": "1s"}}, "outlier.window", "'1s' is out of range"),
        ({"outlier": {"requests": 0}}, "outlier.requests", "0 is out of range"),
        ({"outlier": {"eject": "soon"}}, "outlier.eject", "'soon' is not a duration"),
        ({"outlier": {"eject": "1m"}, "protocol": "udp", "health": {"type": "none"}},
         "outlier", "means nothing for a udp service"),
    ],
)  # fmt: skip
def test_outliers_that_cannot_be(values: dict[str, object], place: str, words: str):
    (found,) = problems(service(**values))
    assert found.startswith(f"services[0].{place}: {words}")


# -- zones


def test_a_zone_that_is_not_there_is_named_with_those_that_are() -> None:
    own = service(backends=[backend(1, zone="east"), backend(2, zone="estuary")])
    (found,) = problems(own, zones={"east": [], "west": []})
    assert found.startswith("services[0].backends[1].zone: there is no zone 'estuary'")
    with pytest.raises(ConfigError, match="known: east, west; or add it"):
        load(own, zones={"east": [], "west": []})
    with pytest.raises(ConfigError, match=r"add it with the prefixes"):
        load(own)


@pytest.mark.parametrize(
    ("zones", "words"),
    [
        (["east"], "is not a mapping"),
        ({"East": []}, "'East' is not a zone's name"),
        ({"east": "10.0.0.0/8"}, "is not a list"),
        ({"east": ["10.0.0.0/33"]}, "'10.0.0.0/33' is not a prefix"),
        ({"east": ["10.0.0.1/8"]}, "10.0.0.1/8 is an address inside of 10.0.0.0/8"),
        ({"east": ["10.0.0.0/8"], "west": ["10.0.0.0/8"]}, "10.0.0.0/8 is in east and in west"),
        ({"east": ["10.0.0.0/8", "10.0.0.0/8"]}, "10.0.0.0/8"),
    ],
)
def test_zones_that_cannot_be(zones: object, words: str) -> None:
    (found,) = problems(zones=zones)
    assert found.startswith("zones")
    assert words in found


def test_a_prefix_may_lie_within_that_of_another_zone() -> None:
    config = load(zones={"east": ["10.0.0.0/8", "::/0"], "west": ["10.1.0.0/16", "0.0.0.0/0"]})
    assert len(config.zones) == 2


def test_rings_of_zones_must_fit() -> None:
    own = [
        service(name=f"s{n}", port=n, backends=[backend(1, zone="a"), backend(2, zone="b"),
                                                backend(3, zone="a")])
        for n in (1, 2)
    ]  # fmt: skip
    zones = {"a": [], "b": []}
    (found,) = problems(*own, zones=zones, tables={"zone_rings": 3})
    assert found == "tables.zone_rings: 4 rings for zones do not fit into 3"
    assert load(*own, zones=zones, tables={"zone_rings": 4})


def test_problems_name_their_line() -> None:
    own = "name: a, vip: 10.0.0.1, port: 1"
    asked = "\n    type: prometheus,\n    running: 'x{'"
    text = f"interface: eth0\nservices:\n- {{{own}, telemetry: {{{asked}}}}}\n"
    with pytest.raises(ConfigError) as caught:
        parse(text, "agent.yaml")
    (problem,) = caught.value.problems
    assert problem.where == "agent.yaml:5"
    assert problem.remedy.startswith("write a metric with its labels")


def test_nothing_is_checked_of_what_could_not_be_read() -> None:
    assert list(check([], None)) == []


# -- objectives


@pytest.mark.parametrize(
    ("given", "slo"),
    [({}, ()), ({"first_byte_p95": "2s"}, (Objective(95, 2.0),)), ({"first_byte_p95": 0}, ()),
     ({"first_byte_p99": 5, "first_byte_p50": "500ms"}, (Objective(50, 0.5), Objective(99, 5.0)))],
)  # fmt: skip
def test_objectives_become_the_model_and_are_written(given, slo: tuple[Objective, ...]):
    config = load(service(slo=given))
    assert config.services[0].slo == slo
    assert parse(write_yaml(document(config)), "f") == config


@pytest.mark.parametrize(
    ("values", "place", "words"),
    [
        ({"slo": {"first_byte_p95": "3m"}}, "slo.first_byte_p95", "'3m' is out of range"),
        ({"slo": {"first_byte_p96": "3s"}}, "slo.first_byte_p96", "unknown key"),
        ({"slo": {"first_byte_p95": "2s"}, "count_waiting": False}, "slo", "needs count_waiting"),
        ({"slo": {"first_byte_p95": "2s"}, "protocol": "udp", "health": {"type": "none"}},
         "slo", "means nothing for a udp service"),
    ],
)  # fmt: skip
def test_objectives_that_cannot_be(values: dict[str, object], place: str, words: str):
    found = [each for each in problems(service(**values)) if each.startswith("services[0].slo")]
    assert [each for each in found if place in each and words in each], found


# -- scaling


@pytest.mark.parametrize(
    ("given", "scale"),
    [({}, Scale()), ({"connections": 64, "max": 20}, Scale(connections=64, max=20)),
     ({"waiting_bytes": "200kB", "min": 0}, Scale(waiting_bytes=200_000, min=0)),
     ({"requests": 32, "queued": 2, "waiting_bytes": "1MiB"}, Scale(None, 1 << 20, 32, 2)),
     ({"connections": "none", "max": "none"}, Scale())],
)  # fmt: skip
def test_targets_become_the_model_and_are_written(given, scale: Scale):
    config = load(service(scale=given, telemetry=VLLM))
    assert config.services[0].scale == scale
    assert parse(write_yaml(document(config)), "f") == config


def test_targets_are_inherited_one_by_one():
    (chat,) = load(
        service(scale={"connections": 8, "max": "none"}),
        defaults={"scale": {"connections": 64, "min": 2, "max": 9}},
    ).services
    assert chat.scale == Scale(connections=8, min=2)


def test_a_udp_service_can_have_a_target_for_its_flows():
    given = {"protocol": "udp", "health": {"type": "none"}, "scale": {"connections": 9}}
    assert load(service(**given)).services[0].scale == Scale(connections=9)


@pytest.mark.parametrize(
    ("values", "place", "words"),
    [
        ({"scale": {"connections": 0}}, "connections", "0 is out of range"),
        ({"scale": {"waiting_bytes": "much"}}, "waiting_bytes", "'much' is not a number of bytes"),
        ({"scale": {"latency": 3}}, "latency", "unknown key"),
        ({"scale": {"min": -1}}, "min", "-1 is out of range"),
        ({"scale": {"min": 5, "max": 4}}, "scale", "min is 5 and max is 4"),
        ({"scale": {"waiting_bytes": 9}, "count_waiting": False}, "waiting_bytes",
         "needs count_waiting"),
        ({"scale": {"waiting_bytes": 9}, "protocol": "udp", "health": {"type": "none"}},
         "waiting_bytes", "means nothing for a udp service"),
        ({"scale": {"requests": 9}}, "requests", "needs telemetry"),
        ({"scale": {"queued": 9}, "telemetry": {"type": "agent-check"}}, "queued",
         "needs telemetry"),
    ],
)  # fmt: skip
def test_targets_that_cannot_be(values: dict[str, object], place: str, words: str):
    found = [each for each in problems(service(**values)) if each.startswith("services[0].scale")]
    assert len(found) == 1, found
    assert place in found[0]
    assert words in found[0]
