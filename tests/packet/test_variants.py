"""The program is compiled for what is configured: every variant loads and does its part."""

from __future__ import annotations

import os
import random
from dataclasses import fields, replace
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

# none, each alone, all
VARIANTS = [
    Features(),
    *(Features(**{field.name: True}) for field in fields(Features)),
    ALL_FEATURES,
]


def combinations(count: int) -> list[Features]:
    """Some of the 262,144, always the same ones: of any three features every way is likely in."""
    draw = random.Random(2)
    names = [field.name for field in fields(Features)]
    return [Features(**{n: draw.random() < 0.5 for n in names}) for _ in range(count)]


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
            deny=("some",) if features.guard else (),
            limits=Limits(new_flows=Rate(1000, 1)) if features.limits else Limits(),
        )
        for n in range(max(len(keys), len(forwards), len(schedulers)))
    )  # fmt: skip
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
    for needing in services_for(features):
        key = needing.key
        member = backend("a", "10.1.2.3" if key.vip.version == 4 else "fd00::21")
        rig.serve(replace(needing, name="web", backends=(member,)))
        port = key.port_last or key.port or 81
        vip = str(key.vip if key.vip_bits is None else key.vip + 200)
        frame = tcp if key.protocol is Protocol.TCP else udp
        assert rig.verdict(frame(vip=vip, port=port)) == Verdict.TX
        assert rig.counts("a").packets == 1
        assert rig.verdict(udp(vip=vip, port=80)) == Verdict.PASS


@pytest.mark.parametrize(
    ("hook", "features"),
    [
        pytest.param(
            hook,
            features,
            id=f"{name}-{'+'.join(features.names)}",
            marks=pytest.mark.soak if number >= usually else (),
        )
        for hook, name, usually in ((Hook.AUTO, "xdp", 6), (Hook.TC, "tc", 0))
        for number, features in enumerate(combinations(16))
    ],
)
def test_any_combination_of_features_is_small_enough_for_the_verifier(
    instance: str, features: Features, hook: Hook
):
    """It follows every path, so that it can refuse one program and take a larger one."""
    config = Config(instance, "lo", hook=hook, tables=harness.SMALL)
    program = harness.load(config, services_for(features), sync=features.sync).program
    assert program.info.verified_insns < 900_000, "of a million; leave room for other compilers"


@pytest.mark.parametrize(
    ("hook", "features"),
    [
        *((Hook.AUTO, Features(**{way: True})) for way in ("ipip", "gue", "nat", "fullnat")),
        (Hook.TC, Features(ipv6=True, nat=True)),
        (Hook.TC, Features(ipv6=True, nat=True, waiting=True)),
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
    assert program.info.verified_insns < 900_000


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


@pytest.mark.parametrize("flows", [8, 1 << 20])
@pytest.mark.parametrize("ring_slots", [2, 65_537])
def test_tables_of_the_least_and_the_usual_size_work(instance: str, flows: int, ring_slots: int):
    config = Config(instance, "lo", tables=Tables(flows, 4, 8, ring_slots))
    rig = Rig(harness.load(config, harness.all_features()))
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


@pytest.mark.parametrize("arch", ["x86", "arm64"])
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
        ALL_FEATURES,
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
