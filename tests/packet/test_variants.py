"""The program is compiled for what is configured: every variant loads and does its part."""

from __future__ import annotations

import os
import platform
import random
from dataclasses import asdict, fields, replace
from ipaddress import IPv4Address, IPv6Address

import pytest

from agent.dataplane import libbpf, pins, sources
from agent.dataplane.abi import FLOW_EMBRYONIC_WAYS
from agent.dataplane.constants import (
    ALL_FEATURES,
    Clock,
    Features,
    HashKeys,
    definitions,
    needed_features,
    sizes,
)
from agent.dataplane.program import Dataplane
from agent.errors import DataplaneError
from agent.model import (
    Affinity,
    AffinityBy,
    Config,
    Forward,
    Hook,
    Limits,
    NoBackend,
    Protocol,
    Rate,
    Scheduler,
    Service,
    ServiceKey,
    SynProtection,
    Tables,
)
from tests.packet import harness
from tests.packet.frames import VIP4, VIP6, tcp, udp
from tests.packet.harness import Rig, Verdict, backend, service
from tests.pairs import covering

LEAST_ROOM = 900_000  # instructions of a million; the rest is for other compilers
ARCHES = {"x86_64": "x86", "aarch64": "arm64"}  # as BCC names them
OURS = ARCHES.get(platform.machine())
NAMES = [field.name for field in fields(Features)]


def whole(features: Features) -> Features:
    """With what one of them is nothing without."""
    return replace(
        features,
        challenge=features.challenge or features.cookies,
        least_load=features.least_load or features.affinity,
        waiting=features.waiting or features.affinity,
    )


def combinations(count: int) -> list[Features]:
    """Some of the million, always the same ones."""
    draw = random.Random(2)
    return [whole(Features(**{n: draw.random() < 0.5 for n in NAMES})) for _ in range(count)]


# Of any two features every way is in one of these.
DRAWN = combinations(200)
PAIRS = [DRAWN[n] for n in sorted(covering([list(asdict(each).items()) for each in DRAWN]))]
# None, all, mixed, each alone. To compile one takes seconds: the soak has all of them, and is for
# whoever changes bpf/. The tests in namespaces compile some thirty others.
VARIANTS = [
    Features(),
    ALL_FEATURES,
    *PAIRS[:1],
    *(pytest.param(each, marks=pytest.mark.soak) for each in PAIRS[1:]),
    *(pytest.param(whole(Features(**{name: True})), marks=pytest.mark.soak) for name in NAMES),
]


def services_for(features: Features) -> tuple[Service, ...]:
    """Services that need exactly these features, but that for flow sync."""
    vip = IPv4Address(VIP4)
    forwards = [f for f in Forward if getattr(features, f.value, False)] or [Forward.DSR]
    schedulers = [s for s in Scheduler if getattr(features, s.value.replace("-", "_"), False)] or [
        Scheduler.MAGLEV
    ]
    keys = [
        ServiceKey(vip, 0 if features.any_port else 80, Protocol.TCP),
        *([ServiceKey(vip, 90, Protocol.TCP, port_last=99)] if features.ranges else ()),
        *([ServiceKey(IPv4Address("198.18.0.0"), 80, Protocol.TCP, vip_bits=24)]
          if features.prefix else ()),
        *([ServiceKey(IPv6Address(VIP6), 80, Protocol.TCP)] if features.ipv6 else ()),
    ]  # fmt: skip
    near = (backend("near", zone="east"),) if features.zones else ()
    services = tuple(
        Service(
            f"s{n}", keys[n % len(keys)], forwards[n % len(forwards)],
            schedulers[n % len(schedulers)], backends=near, count_waiting=features.waiting,
            no_backend=NoBackend.RESET if features.reset else NoBackend.DROP,
            syn_protection=SynProtection.AUTO if features.challenge else SynProtection.OFF,
            syn_cookies=features.cookies,
            deny=("some",) if features.guard else (),
            limits=Limits(new_flows=Rate(1000, 1)) if features.limits else Limits(),
            affinity=Affinity(AffinityBy.SOURCE) if features.affinity else Affinity(),
        )
        for n in range(max(len(keys), len(forwards), len(schedulers)))
    )  # fmt: skip
    if features.hold:
        late = ServiceKey(vip, 450, Protocol.TCP)
        services += (replace(services[0], name="late", key=late, no_backend=NoBackend.HOLD),)
    if features.quic:
        services += (Service("quic", ServiceKey(vip, 443, Protocol.UDP), quic_id_bytes=4),)
    assert needed_features(services, sync=features.sync) == features
    return services


def loaded(instance: str, features: Features) -> Rig:
    config = Config(instance, "lo", tables=harness.SMALL)
    return Rig(harness.load(config, services_for(features), sync=features.sync))


@pytest.mark.parametrize("features", VARIANTS, ids=lambda f: "+".join(f.names))
def test_every_variant_loads_and_balances_what_it_was_made_for(instance: str, features: Features):
    rig = loaded(instance, features)
    assert rig.dataplane.features == features
    assert rig.dataplane.program.info.verified_insns < LEAST_ROOM
    for needing in services_for(features):
        key = needing.key
        member = backend("a", "10.1.2.3" if key.vip.version == 4 else "fd00::21")
        rig.reset()  # some have the key of one before them
        rig.serve(replace(needing, name="web", backends=(member,)))
        port = key.port_last or key.port or 81
        vip = str(key.vip if key.vip_bits is None else key.vip + 200)
        frame = tcp if key.protocol is Protocol.TCP else udp
        assert rig.verdict(frame(vip=vip, port=port)) == Verdict.TX
        assert rig.counts("a").packets == 1
        assert rig.verdict(udp(vip=vip, port=80)) == Verdict.PASS


@pytest.mark.soak
@pytest.mark.parametrize("hook", [Hook.AUTO, Hook.TC])
@pytest.mark.parametrize("features", combinations(16), ids=lambda f: "+".join(f.names))
def test_any_combination_of_features_is_small_enough_for_the_verifier(
    instance: str, features: Features, hook: Hook
):
    """It follows every path, so that it can refuse one program and take a larger one. Of any three
    features every way is likely in these.
    """
    config = Config(instance, "lo", hook=hook, tables=harness.SMALL)
    program = harness.load(config, services_for(features), sync=features.sync).program
    assert program.info.verified_insns < LEAST_ROOM


@pytest.mark.parametrize(
    ("hook", "features"),
    [
        pytest.param(Hook.AUTO, Features(nat=True), marks=pytest.mark.soak),
        pytest.param(Hook.TC, Features(ipv6=True, nat=True, waiting=True), marks=pytest.mark.soak),
        pytest.param(Hook.AUTO, Features(gue=True), marks=pytest.mark.soak),
        pytest.param(Hook.AUTO, Features(ipip=True), marks=pytest.mark.soak),
        pytest.param(Hook.AUTO, Features(fullnat=True), marks=pytest.mark.soak),
        pytest.param(Hook.TC, Features(ipv6=True, nat=True), marks=pytest.mark.soak),
    ],
    ids=lambda value: "+".join(value.names) if isinstance(value, Features) else None,
)
def test_least_conn_is_small_enough_with_each_way_of_forwarding(
    instance: str, hook: Hook, features: Features
):
    """Each of these was refused once, while larger ones were taken."""
    config = Config(instance, "lo", hook=hook, tables=harness.SMALL)
    wanted = features | Features(least_conn=True, waiting=hook is Hook.AUTO)
    program = harness.load(config, services_for(wanted), sync=False).program
    assert program.info.verified_insns < LEAST_ROOM


def test_a_program_without_ipv6_passes_it_untouched(instance: str):
    rig = loaded(instance, Features())
    rig.serve(service(backend("a"), vip=VIP6))
    done = rig.send(tcp(vip=VIP6))
    assert (done.verdict, done.data) == (Verdict.PASS, tcp(vip=VIP6))
    assert rig.reasons() == {"not-ip": 1}


def test_a_program_without_ipip_forwards_no_packet_in_another_way(instance: str):
    rig = loaded(instance, Features())
    rig.serve(service(backend("a"), forward=Forward.IPIP))
    assert rig.verdict(tcp()) == Verdict.DROP
    assert rig.service_counts().drops["internal"] == 1


def test_what_is_not_compiled_in_costs_nothing(instance: str, rig: Rig):
    small = loaded(instance, Features()).dataplane.program.info
    assert small.instructions < 0.9 * rig.dataplane.program.info.instructions


@pytest.mark.parametrize(
    ("flows", "ring_slots"),
    [
        (8, 2),
        # The labs have the usual ones.
        pytest.param(1 << 20, 65_537, marks=pytest.mark.soak),
        pytest.param(8, 65_537, marks=pytest.mark.soak),
        pytest.param(1 << 20, 2, marks=pytest.mark.soak),
    ],
)
def test_tables_of_the_least_and_the_usual_size_work(instance: str, flows: int, ring_slots: int):
    config = Config(instance, "lo", tables=Tables(flows, 4, 8, ring_slots))
    rig = Rig(harness.load(config, services_for(Features())))
    rig.config = config
    rig.serve(service(backend("a"), backend("b")))
    found = {rig.backend_of(tcp("S", client_port=port)) for port in range(1000, 1200)}
    assert found == {"a", "b"}
    assert (rig.tables.flows != 0).sum() == (FLOW_EMBRYONIC_WAYS if flows == 8 else 200)


def test_a_program_that_does_not_compile_says_so(capfd: pytest.CaptureFixture[str]):
    from agent.dataplane.compile import compile_program

    with pytest.raises(DataplaneError, match="does not compile or load") as caught:
        compile_program("int broken(struct xdp_md *ctx) { return nothing; }", "broken", {})
    assert "doctor" in caught.value.remedy
    assert "nothing" in capfd.readouterr().err


def test_the_verifier_refuses_are_errors_too(capfd: pytest.CaptureFixture[str]):
    from agent.dataplane.compile import compile_program

    wild = "int wild(struct xdp_md *ctx) { return *(char *)(long)ctx->data; }"
    with pytest.raises(DataplaneError, match="does not compile or load"):
        compile_program(wild, "wild", {})
    capfd.readouterr()


@pytest.mark.parametrize(
    "arch",
    # That of this host is what all other tests compile for.
    [
        pytest.param(arch, marks=pytest.mark.soak if arch == OURS else ())
        for arch in ARCHES.values()
    ],
)
@pytest.mark.parametrize("program", ["balancer", "decap"])
def test_the_programs_compile_for_both_architectures(
    monkeypatch: pytest.MonkeyPatch, instance: str, arch: str, program: str
):
    """With the shipped headers; the target is BPF either way, what differs is the prelude."""
    from bcc import BPF

    folder = pins.pins_of(instance).folder
    folder.mkdir(parents=True)
    constants = definitions(
        folder,
        sizes(harness.SMALL, os.cpu_count() or 1),
        Features(),  # what is not needed is read by the compiler all the same
        HashKeys(1, 3, 5),
        Clock(250, 10),
        6080,
    )
    monkeypatch.setenv("ARCH", arch)
    monkeypatch.setenv("BCC_KERNEL_SOURCE", str(sources.header_tree()))
    constants["LB_DECAP_FROM"] = "1"
    flags = ["-Wall", "-Werror", *(f"-D{name}={value}" for name, value in constants.items())]
    if arch == "arm64":
        flags.append("-fcf-protection=none")  # of the x86 that compiles it
    handle = BPF(text=sources.joined(f"{program}.c").encode(), cflags=flags)
    fd = handle.load_func(program.encode(), BPF.XDP).fd
    assert libbpf.program_info(fd).name == program


def test_the_same_settings_and_keys_are_found_again(instance: str):
    first = loaded(instance, Features()).dataplane
    config = Config(instance, "lo", tables=harness.SMALL)
    again: Dataplane = harness.load(config, services_for(Features()), sync=False)
    assert (again.keys, again.clock) == (first.keys, first.clock)
    assert again.program.info.tag == first.program.info.tag
