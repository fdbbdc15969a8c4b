"""Whatever an operator may write, as strategies: configurations that pass every rule."""

from __future__ import annotations

import dataclasses
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path

from hypothesis import strategies as st

from agent.config.defaults import default_report_timeout, default_service
from agent.model import (
    MAX_PRIORITY,
    PERCENTILES,
    AdminState,
    Affinity,
    AffinityBy,
    Backend,
    CheckKind,
    Config,
    Detect,
    Discover,
    DownFlows,
    Etcd,
    Fleet,
    Forward,
    HealthCheck,
    Hook,
    KernelHeaders,
    ModelLoaded,
    ModelSource,
    Nat,
    NoBackend,
    NodeKind,
    NodeTelemetry,
    Objective,
    Outlier,
    Override,
    Protocol,
    Rebalance,
    RemoteApi,
    RoleNames,
    Scale,
    Scheduler,
    Service,
    ServiceKey,
    Suricata,
    SynProtection,
    Tables,
    Telemetry,
    TelemetryKind,
    Timeouts,
    Via,
    Zone,
)

# Names that YAML takes for something else are names all the same.
names = st.sampled_from(
    [
        "chat",
        "a",
        "b-1",
        "null",
        "true",
        "on",
        "1",
        "1.5",
        "1e5",
        "0x1f",
        "0o17",
        "2024-01-01",
        "no",
    ]
) | st.from_regex(r"[a-z0-9][a-z0-9._-]{0,10}", fullmatch=True)
idle = st.integers(4, 25_200).map(float) | st.floats(4, 25_200)
# Addresses and prefixes, some within others, two that begin with the same address.
vips = st.integers(1, 30).flatmap(
    lambda n: st.sampled_from(
        [(IPv4Address(f"10.0.0.{n}"), None), (IPv6Address(f"fd00::{n:x}"), None)]
    )
) | st.sampled_from(
    [
        (IPv4Address("10.0.0.0"), 24),
        (IPv4Address("10.0.0.16"), 28),
        (IPv4Address("192.0.2.0"), 24),
        (IPv6Address("fd00::"), 64),
        (IPv6Address("fd00::10"), 124),
    ]
)
spans = st.tuples(st.integers(1, 65535), st.integers(1, 65535)).filter(lambda t: t[0] != t[1])
ports = (st.integers(0, 65535) | st.integers(80, 83)).map(lambda port: (port, None)) | spans.map(
    lambda span: (min(span), max(span))
)
PLAIN = default_service("any", ServiceKey(IPv4Address("192.0.2.1"), 1, Protocol.TCP))
ZONES = ("east", "west", "null", "1.5")
KNOWN_ZONES = tuple(Zone(name, ()) for name in sorted(ZONES))
some_port = st.none() | st.integers(1, 65535)
report_intervals = st.integers(1, 3600).map(float) | st.floats(0.05, 3600)
expressions = st.sampled_from(
    [
        "my_running",
        'my_running{queue="main",zone!="x: y #"}',
        "max(a) + min(b, 2) * 0.5",
        "avg(c) / (d - 1)",
        "1e3",
    ]
)
statuses = st.tuples(st.integers(100, 599), st.integers(100, 599)).map(lambda t: (min(t), max(t)))


_payloads = st.text(max_size=20).filter(lambda text: not text.startswith("hex:")) | st.binary(
    max_size=20
).map(lambda data: f"hex:{data.hex()}")
_OF_KIND: dict[CheckKind, st.SearchStrategy[dict[str, object]]] = {
    CheckKind.TCP: st.just({}),
    CheckKind.COMPLETION: st.fixed_dictionaries(
        {
            "path": st.sampled_from(["/", "/v1/completions", "/v1/chat/completions"]),
            "model": st.none() | st.just("org/tiny-1"),
            "every_s": st.floats(0.1, 3600),
            "answer_within_s": st.floats(0.1, 3600),
            "host": st.none() | st.just("chat.example.com"),
            "tls": st.booleans(),
        }
    ),
    CheckKind.GRPC: st.fixed_dictionaries(
        {
            "grpc_service": st.sampled_from(["", "chat.Chat"]),
            "host": st.none() | st.just("chat.example.com"),
            "tls": st.booleans(),
        }
    ),
    CheckKind.UDP: st.fixed_dictionaries({"send": _payloads, "expect": st.none() | _payloads}),
    CheckKind.DNS: st.fixed_dictionaries(
        {
            "query": st.sampled_from([".", "example.com", "_dns.example.com."]),
            "record": st.sampled_from(["A", "SOA", "TXT"]),
        }
    ),
    CheckKind.PING: st.just({}),
    CheckKind.EXEC: st.fixed_dictionaries(
        {"command": st.lists(st.text(max_size=9), max_size=3).map(lambda w: ("/bin/check", *w))}
    ),
}


@st.composite
def checks(draw: st.DrawFn, key: ServiceKey) -> HealthCheck:
    kind = draw(st.sampled_from(CheckKind))
    interval_s = draw(st.integers(1, 3600).map(float) | st.floats(0.1, 3600))
    by_service = kind in (CheckKind.UDP, CheckKind.DNS)
    needs_port = kind not in (CheckKind.NONE, CheckKind.PING, CheckKind.EXEC) and (
        (key.protocol is Protocol.UDP and not by_service) or key.port == 0
    )
    ports = st.integers(1, 65535)
    check = HealthCheck(
        kind=kind,
        port=draw(ports if needs_port else st.none() | ports),
        interval_s=interval_s,
        timeout_s=draw(st.floats(0.01, min(interval_s, 2)) | st.just(min(interval_s, 1.0))),
        rise=draw(st.integers(1, 100)),
        fall=draw(st.integers(1, 100)),
        jitter=draw(st.floats(0, 1)),
        via=draw(st.sampled_from(Via)),
    )
    if kind in _OF_KIND:
        check = dataclasses.replace(check, **draw(_OF_KIND[kind]))
        return dataclasses.replace(check, verify_tls=draw(st.booleans())) if check.tls else check
    check = dataclasses.replace(
        check,
        method=draw(st.sampled_from(["GET", "HEAD"])),
        path=draw(st.from_regex(r"/[\x21-\x7e]{0,20}", fullmatch=True)),
        host=draw(st.none() | st.just("chat.example.com")),
        expect_status=draw(st.lists(statuses, min_size=1, max_size=3).map(tuple)),
    )
    if kind is CheckKind.HTTP:
        return check
    return dataclasses.replace(check, verify_tls=draw(st.booleans()))


def _own_port(key: ServiceKey, port: int | None) -> int | None:
    return port or (key.port if key.port_last is None else None)


@st.composite
def backends(
    draw: st.DrawFn, index: int, key: ServiceKey, forward: Forward, quic: int | None
) -> tuple[Backend, ...]:
    # With nat, one server answers for one service: each has servers of its own.
    block = index if forward is Forward.NAT else 99
    v4 = st.integers(1, 250).map(lambda n: IPv4Address(f"10.9.{block}.{n}"))
    v6 = st.integers(1, 250).map(lambda n: IPv6Address(f"fd09:{block}::{n:x}"))
    addresses = v4 | v6 if forward.is_tunnel else v4 if key.vip.version == 4 else v6
    many = key.port == 0 or key.port_last is not None
    own_ports: st.SearchStrategy[int | None] = st.none()
    if forward is Forward.FULLNAT or (forward is Forward.NAT and not many):
        own_ports = st.none() | st.sampled_from([80, 8000]) | st.integers(1, 65535)
    found = draw(
        st.lists(
            st.tuples(names, addresses, own_ports),
            max_size=6,
            unique_by=(lambda b: b[0], lambda b: (b[1], _own_port(key, b[2]))),
        )
    )
    ids: list[bytes | None] = [None] * len(found)
    if quic is not None or (key.protocol is Protocol.UDP and draw(st.booleans())):
        length = quic or draw(st.integers(1, 8))
        some_id = st.binary(min_size=length, max_size=length)
        ids = draw(st.lists(some_id, min_size=len(found), max_size=len(found), unique=True))
    return tuple(
        Backend(
            name=name,
            address=address,
            weight=draw(st.integers(0, 1000)),
            admin=draw(st.sampled_from(AdminState)),
            port=port,
            backup=draw(st.booleans()),
            quic_server_id=quic_id,
            priority=draw(st.integers(0, MAX_PRIORITY)),
            zone=draw(st.none() | st.sampled_from(ZONES)),
        )
        for (name, address, port), quic_id in zip(found, ids, strict=True)
    )


@st.composite
def telemetries(draw: st.DrawFn, needs_port: bool) -> Telemetry:
    kind = draw(st.sampled_from(TelemetryKind))
    interval_s = draw(report_intervals)
    expressed = kind is TelemetryKind.PROMETHEUS
    return Telemetry(
        kind=kind,
        port=draw(st.integers(1, 65535) if needs_port else some_port),
        path=draw(st.none() | st.sampled_from(["/metrics", "/a?b=c#d"])),
        tls=draw(st.booleans()),
        interval_s=interval_s,
        timeout_s=draw(st.just(default_report_timeout(interval_s)) | st.floats(0.01, 60)),
        running=draw(expressions) if expressed else None,
        waiting=draw(st.none() | expressions) if expressed else None,
        kv_usage=draw(st.none() | expressions) if expressed else None,
    )


nodes = st.builds(
    NodeTelemetry,
    st.sampled_from(NodeKind),
    some_port,
    st.sampled_from(["/metrics", "/gpus"]),
    report_intervals,
    st.floats(0.01, 60),
)


@st.composite
def models(draw: st.DrawFn, needs_port: bool) -> ModelLoaded | None:
    if draw(st.booleans()):
        return None
    return ModelLoaded(
        name=draw(st.sampled_from(["m", "null", "1.5", "org/Model-8B:latest", "a#b:c"])),
        source=draw(st.sampled_from(ModelSource)),
        port=draw(st.integers(1, 65535) if needs_port else some_port),
        interval_s=draw(st.integers(1, 3600).map(float) | st.floats(0.1, 3600)),
    )


rebalances = st.builds(
    Rebalance, st.floats(0, 1000) | st.integers(0, 1000).map(float), idle, st.floats(1, 100)
)


outliers = st.builds(
    Outlier,
    st.just(0.0) | st.floats(0, 3600),
    st.floats(0, 1),
    st.floats(2, 600),
    st.integers(1, 100),
    st.floats(0, 1),
)


@st.composite
def objectives(draw: st.DrawFn) -> tuple[Objective, ...]:
    within = st.integers(1, 120).map(float) | st.floats(0.001, 120)
    chosen = draw(st.sets(st.sampled_from(PERCENTILES)))
    return tuple(Objective(percentile, draw(within)) for percentile in sorted(chosen))


@st.composite
def scales(draw: st.DrawFn, waiting: bool, reports: bool) -> Scale:
    target = st.none() | st.integers(1, 2**31 - 1)
    fewest = draw(st.integers(0, 10_000))
    return Scale(
        connections=draw(target),
        waiting_bytes=draw(st.none() | st.integers(1, 2**40)) if waiting else None,
        requests=draw(target) if reports else None,
        queued=draw(target) if reports else None,
        min=fewest,
        max=draw(st.none() | st.integers(max(fewest, 1), 2**31 - 1)),
    )


def affinities(key: ServiceKey) -> st.SearchStrategy[Affinity]:
    bits = st.none() | st.integers(1, key.vip.max_prefixlen)
    return st.builds(
        Affinity, st.sampled_from(AffinityBy), bits, st.none() | st.integers(0, 1 << 24)
    )


@st.composite
def discoveries(draw: st.DrawFn) -> Discover:
    source: dict[str, object] = draw(
        st.sampled_from(
            [
                {},
                {"file": Path("/etc/gpu.yaml")},
                {"http": "https://inventory.example.org/gpu?rack=1"},
                {"dns": "_http._tcp.gpu.example.org"},
                {"kubernetes": "default/vllm", "port_name": "http"},
            ]
        )
    )
    paths = st.none() | st.just(Path("/etc/steelyard/x.pem"))
    fewest = draw(st.integers(0, 50))
    labels = draw(st.dictionaries(st.sampled_from(["model", "null", "a b"]), st.text(max_size=5)))
    return Discover(
        **source,
        interval_s=draw(st.integers(1, 3600).map(float) | st.floats(1, 3600)),
        timeout_s=draw(st.floats(0.1, 60)),
        port=draw(some_port),
        server=draw(st.sampled_from([None, ("127.0.0.1", 8600), ("::1", 53)])),
        ca_file=draw(paths),
        token_file=draw(paths),
        kubeconfig=draw(paths),
        match=tuple(sorted(labels.items())),
        min=fewest,
        max=draw(st.integers(fewest, 10_000)),
        most_removed=draw(st.floats(0, 1)),
        drain_s=draw(st.floats(0, 86_400)),
    )


@st.composite
def overrides(draw: st.DrawFn) -> tuple[Override, ...]:
    places = draw(
        st.sets(st.tuples(st.integers(1, 200).map(lambda n: f"10.77.0.{n}"), some_port), max_size=2)
    )
    return tuple(
        Override(
            IPv4Address(address),
            port,
            draw(st.none() | st.integers(0, 1000)),
            draw(st.none() | st.sampled_from(AdminState)),
        )
        for address, port in sorted(places, key=str)
    )


@st.composite
def services(draw: st.DrawFn, index: int, name: str, key: ServiceKey) -> Service:
    no_prefix = [forward for forward in Forward if forward is not Forward.NAT]
    forward = draw(st.sampled_from(list(Forward) if key.vip_bits is None else no_prefix))
    scheduler = draw(st.sampled_from(Scheduler))
    tcp, by_load = key.protocol is Protocol.TCP, scheduler is Scheduler.LEAST_LOAD
    quic = draw(st.none() | st.integers(1, 8)) if not tcp else None
    asked_elsewhere = key.port == 0
    waiting = draw(st.booleans()) if tcp else False
    protection = draw(st.sampled_from(SynProtection)) if tcp else SynProtection.OFF
    may_give = protection is not SynProtection.OFF and not forward.is_nat and key.vip_bits is None
    service = Service(
        name=name,
        key=key,
        forward=forward,
        scheduler=scheduler,
        timeouts=draw(st.builds(Timeouts, idle, idle, idle, idle)),
        down_flows=draw(st.sampled_from(DownFlows)),
        health=draw(checks(key)),
        backends=draw(backends(index, key, forward, quic)),
        draws=draw(st.integers(2, 8)) if by_load else PLAIN.draws,
        bytes_per_connection=draw(st.integers(1, 1_000_000))
        if by_load and tcp
        else PLAIN.bytes_per_connection,
        count_waiting=waiting,
        slow_start_s=draw(st.integers(0, 3600).map(float) | st.floats(0, 3600)),
        no_backend=draw(st.sampled_from(NoBackend)),
        panic=draw(st.floats(0, 1)),
        outlier=draw(outliers) if tcp else PLAIN.outlier,
        slo=draw(objectives()) if waiting else (),
        syn_protection=protection,
        syn_cookies=draw(st.booleans()) if may_give else False,
        detect=draw(st.sampled_from(Detect)) if tcp and forward.is_nat else Detect.LOG,
        quic_id_bytes=quic,
        telemetry=draw(telemetries(asked_elsewhere)),
        node=draw(nodes),
        model=draw(models(asked_elsewhere)),
        learn_speed=draw(st.booleans()) if by_load and tcp else PLAIN.learn_speed,
        rtt_per_connection_s=draw(st.just(0.0) | st.floats(0, 10)) if by_load else 0.0,
        discover=draw(discoveries()) if draw(st.booleans()) else Discover(),
        overrides=draw(overrides()),
    )
    silent = (TelemetryKind.NONE, TelemetryKind.AGENT_CHECK)
    reports = service.telemetry.kind not in silent
    service = dataclasses.replace(service, scale=draw(scales(waiting, reports)))
    if by_load and waiting and draw(st.booleans()):
        return dataclasses.replace(service, affinity=draw(affinities(key)))
    if waiting and scheduler is not Scheduler.SOURCE:
        service = dataclasses.replace(service, rebalance=draw(rebalances))
    if scheduler is not Scheduler.SOURCE:
        return service
    bits = st.integers(1, key.vip.max_prefixlen)
    bound = st.just(0.0) | st.floats(1, 100)
    return dataclasses.replace(
        service, source_bits=draw(st.none() | bits), source_bound=draw(bound)
    )


def _stand_together(keys: list[tuple[str, ServiceKey]]) -> list[tuple[str, ServiceKey]]:
    """Those that the packet path can tell apart from the ones before them."""
    kept: list[tuple[str, ServiceKey]] = []
    for name, key in keys:
        if not any(_collide(key, other) for _, other in kept):
            kept.append((name, key))
    return kept


def _collide(one: ServiceKey, other: ServiceKey) -> bool:
    if one.vip != other.vip:
        return False
    if one.vip_bits != other.vip_bits:
        return True
    if one.protocol is not other.protocol:
        return False
    spans = [range(key.port, (key.port_last or key.port) + 1) for key in (one, other)]
    both = all(key.port_last for key in (one, other))
    overlap = spans[0].start < spans[1].stop and spans[1].start < spans[0].stop
    return one.port == other.port or (both and overlap)


keys = st.builds(
    lambda vip, port, protocol: ServiceKey(vip[0], port[0], protocol, port[1], vip[1]),
    vips,
    ports,
    st.sampled_from(Protocol),
)
service_lists = (
    st.lists(st.tuples(names, keys), max_size=4, unique_by=lambda pair: pair[0])
    .map(_stand_together)
    .flatmap(
        lambda pairs: st.tuples(
            *(services(index, name, key) for index, (name, key) in enumerate(pairs))
        )
    )
)
prefixes = st.sampled_from(
    [
        ip_network(written)
        for written in (
            "0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.0.0/24", "10.1.0.7/32",
            "::/0", "2001:db8::/32", "2001:db8:1::/48", "2001:db8:1::7/128",
        )
    ]
)  # fmt: skip


@st.composite
def _zones(draw: st.DrawFn) -> tuple[Zone, ...]:
    """Of IPv4 and IPv6 clients, some zones without any; no prefix is of two."""
    owners = draw(st.dictionaries(prefixes, st.sampled_from(ZONES)))
    return tuple(
        Zone(name, tuple(prefix for prefix, owner in owners.items() if owner == name))
        for name in sorted(ZONES)
    )


zones = _zones()
_TLS = Etcd(("https://e1:2379",), *(Path(f"/etc/{name}") for name in ("ca", "cert", "key")))
fleets = st.just(Fleet()) | st.builds(
    Fleet,
    name=st.sampled_from(["prod", "no", "1"]),
    node=st.sampled_from(["", "lb1", "null"]),
    etcd=st.sampled_from(
        [
            Etcd(("http://127.0.0.1:2379", "http://[::1]:2379"), prefix="/a/b"),
            _TLS,
            dataclasses.replace(_TLS, user="yes", password_file=Path("/etc/p")),
        ]
    ),
    history=st.integers(64, 100_000),
    lease_s=st.integers(3, 3600).map(float),
    report_s=st.sampled_from([0.5, 1.0, 60.0]),
)


_pem = st.sampled_from([Path("/etc/a b.pem"), Path("/etc/yes")])
remote_apis = st.just(RemoteApi()) | st.builds(
    RemoteApi,
    listen=st.sampled_from([("192.0.2.9", 9443), ("2001:db8::9", 1)]),
    certificate=_pem,
    key_file=_pem,
    client_ca=_pem,
    crl_file=st.none() | _pem,
    user=st.sampled_from(["steelyard-api", "no"]),
    roles=st.builds(
        RoleNames,
        viewer=st.sampled_from([(), ("no", "Zoë"), ("1",)]),
        operator=st.sampled_from([(), ("null",)]),
        admin=st.just(("a: b #",)),
    ),
)
_groups = st.lists(st.sampled_from(["adm", "no", "ops"]), max_size=2, unique=True).map(tuple)
socket_roles = st.builds(RoleNames, viewer=_groups, operator=_groups, admin=_groups)
suricatas = st.just(Suricata()) | st.builds(
    Suricata,
    eve=st.just(Path("/var/log/suricata/a b: #.json")),
    block_severity=st.none() | st.integers(1, 255),
    block_signatures=st.sampled_from([(), (2024897, 1)]),
    log_signatures=st.sampled_from([(), (2**32 - 1,)]),
    block_for_s=st.integers(1, 30 * 86400).map(float),
    most_blocked=st.sampled_from([0.0, 0.05, 1.0]),
    proxies=st.sampled_from([(), (ip_network("10.0.0.20/32"), ip_network("fd00::/64"))]),
)
_configs = st.builds(
    Config,
    name=st.from_regex(r"[a-z0-9][a-z0-9-]{0,10}", fullmatch=True),
    interface=st.sampled_from(["eth0", "on", "1", "en.0", "wlan-ä"]),
    backend_interfaces=st.sampled_from([(), ("eth1",), ("null", "no", "eth2")]),
    hook=st.sampled_from(Hook),
    socket=st.sampled_from([Path("/run/steelyard/agent.sock"), Path("/run/a b/x: y #.sock")]),
    audit_required=st.booleans(),
    socket_group=st.none() | st.sampled_from(["adm", "no"]),
    state_dir=st.just(Path("/var/lib/steelyard")),
    metrics_listen=st.none() | st.sampled_from([("127.0.0.1", 9117), ("::1", 1), ("0.0.0.0", 80)]),
    manage_vips=st.booleans(),
    hash_seed=st.none() | st.integers(0, 2**32 - 1),
    tunnel_source_v4=st.none() | st.just(IPv4Address("10.0.0.2")),
    tunnel_source_v6=st.none() | st.just(IPv6Address("fd00::2")),
    gue_port=st.integers(1, 65535),
    companion_key_file=st.just(Path("/etc/steelyard/cookies.key")),
    companion_port=st.integers(1, 65535),
    nat=st.builds(
        Nat,
        sources_v4=st.lists(
            st.integers(1, 9).map(lambda n: IPv4Address(f"10.8.0.{n}")), max_size=8, unique=True
        ).map(tuple),
        sources_v6=st.lists(
            st.integers(1, 9).map(lambda n: IPv6Address(f"fd08::{n}")), max_size=8, unique=True
        ).map(tuple),
        first_port=st.integers(1024, 30_000),
        last_port=st.integers(30_001, 65_535),
    ),
    kernel_headers=st.sampled_from(KernelHeaders),
    tables=st.builds(
        Tables,
        flows=st.integers(10, 28).map(lambda n: 1 << n),
        services=st.integers(10, 65535),
        backends=st.integers(100, 65535),
        ring_slots=st.sampled_from([251, 65537]),
        zone_rings=st.integers(4 * len(ZONES), 4096),
    ),
    services=service_lists,
    zones=zones,
    fleet=fleets,
    api=remote_apis,
    suricata=suricatas,
)


def _with_roles(config: Config, roles: RoleNames) -> Config:
    """Roles and a group of the socket exclude each other."""
    return config if config.socket_group else dataclasses.replace(config, socket_roles=roles)


def _with_script_user(config: Config, user: str | None) -> Config:
    """One user runs the commands of all checks."""
    services = tuple(
        dataclasses.replace(
            each,
            health=dataclasses.replace(each.health, run_as=user if each.health.command else None),
        )
        for each in config.services
    )
    return dataclasses.replace(config, script_user=user, services=services)


configs = st.builds(
    _with_script_user,
    st.builds(_with_roles, _configs, socket_roles),
    st.sampled_from([None, "steelyard-script"]),
)
