"""C, Python and the compiled program agree to the byte, and a disagreement is refused."""

from __future__ import annotations

import os
import shutil
import subprocess

import numpy as np
import pytest

from agent.dataplane import abi, attach, btf, libbpf, sources, tables
from agent.dataplane.compile import compile_program
from agent.dataplane.constants import sizes
from agent.dataplane.pins import pins_of
from agent.dataplane.program import Dataplane, possible_cpus
from agent.errors import AbiMismatchError
from agent.model import Config, Nat, Tables
from tests.abi import header
from tests.packet import harness

HEADERS = header.PATH.parent.parent / "kernel" / "include"
MIRRORED = (
    "FLOW_TAG_SHIFT", "FLOW_BACKEND_SHIFT", "FLOW_STATE_SHIFT", "FLOW_STAMP_MASK", "FLOW_WAYS",
    "RING_LINE_SLOTS", "BACKEND_F_ALIVE", "BACKEND_F_USABLE", "BACKEND_F_LOAD", "FLOW_STATES",
    "REASON_COUNT", "SERVICE_F_WAITING", "SERVICE_F_RESET", "SERVICE_F_PREFIX", "SERVICE_F_RANGES",
    "SERVICE_F_ANY_PORT", "SERVICE_F_NAT_SOURCE", "NAT_SOURCES", "LATENCY_BUCKETS", "FLOW_AWAITING",
    "FILTER_WORDS", "HOLD_MAX_NS", "HELD_FRAME", "LIMIT_RATES", "LIMIT_PERIODS", "LIMIT_BUCKETS",
    "SERVICE_LIMITS_NEW", "SERVICE_LIMITS_PACKETS", "SERVICE_LIMITS_HELD",
    "WAITING_FORGOTTEN_SHIFT", "HEAD_RANGES", "HEAD_SAMPLES",
)  # fmt: skip


def test_the_compiled_program_has_the_layout_of_the_mirror(compiled: Dataplane):
    assert abi.mismatches(compiled.program.layout) == []


@pytest.mark.parametrize("name", sorted(header.structs()))
def test_every_struct_of_the_header_is_mirrored_field_by_field(name: str):
    assert abi.STRUCTS[name] == header.structs()[name]


@pytest.mark.parametrize("name", sorted(header.enums()))
def test_every_enum_of_the_header_is_mirrored_value_by_value(name: str):
    assert abi.ENUMS[name] == header.enums()[name]


def test_the_mirror_has_nothing_that_the_header_lacks():
    assert set(abi.STRUCTS) == set(header.structs())
    assert set(abi.ENUMS) == set(header.enums())


@pytest.mark.parametrize("name", MIRRORED)
def test_constants_are_the_same(name: str):
    assert getattr(abi, name) == header.constants()[name]


def test_the_multipliers_of_the_filter_are_the_same():
    assert tuple(header.constants()[f"FILTER_MUL{n}"] for n in range(4)) == abi.FILTER_MULS


def test_the_abi_version_is_the_same_and_part_of_the_pin_path():
    assert header.constants()["STEELYARD_ABI"] == abi.ABI_VERSION
    assert pins_of("x").folder.name == f"abi{abi.ABI_VERSION}"


def test_the_first_drop_is_where_the_header_says():
    assert "#define REASON_DROP REASON_MALFORMED" in header.text()
    assert abi.FIRST_DROP is abi.Reason.MALFORMED


@pytest.mark.parametrize("name", sorted(abi.STRUCTS))
def test_layouts_have_no_hole(name: str):
    dtype = abi.STRUCTS[name]
    assert sum(dtype[field].itemsize for field in dtype.names) == dtype.itemsize


@pytest.mark.parametrize("name", ["flow_bucket", "flow_cold", "ring_line", "backend_counters"])
def test_rows_of_the_packet_path_are_one_cache_line(name: str):
    assert abi.STRUCTS[name].itemsize == 64


def test_a_backends_flags_and_interface_are_one_aligned_word():
    assert abi.BACKEND.fields["flags"][1] == 0
    assert abi.BACKEND.fields["ifindex"][1] == 4
    assert abi.BACKEND.fields["addr"][1] == 64, "the second line is not needed for dsr"


def test_pinned_tables_have_the_sizes_of_the_mirror(compiled: Dataplane):
    for name, shape in tables.shapes(compiled.size).items():
        fd = libbpf.object_get(compiled.pins.table(name))
        info = libbpf.map_info(fd)
        os.close(fd)
        assert (info.key_size, info.value_size) == (shape.key, shape.value), name
        assert (info.type, info.max_entries) == (shape.kind, shape.entries), name


# -- the header by itself


def compilers() -> list[list[str]]:
    found = [["gcc"]] if shutil.which("gcc") else []
    clang = next((c for c in ("clang", "clang-19", "clang-18") if shutil.which(c)), None)
    if clang:
        targets = ("x86_64-linux-gnu", "aarch64-linux-gnu", "bpfel")
        found += [[clang, f"--target={target}"] for target in targets]
    return found


@pytest.mark.parametrize("compiler", compilers(), ids=" ".join)
def test_the_header_compiles_alone_and_leaves_no_padding_to_the_compiler(compiler: list[str]):
    flags = ["-Wall", "-Wextra", "-Werror", "-Wpadded", "-nostdinc", f"-I{HEADERS}"]
    command = [*compiler, "-x", "c", "-fsyntax-only", *flags, str(header.PATH)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# -- refusals


def reversed_fields(dtype: np.dtype[np.void]) -> np.dtype[np.void]:
    return np.dtype([(name, dtype[name]) for name in reversed(dtype.names)])


@pytest.mark.parametrize(
    ("where", "name", "value", "says"),
    [
        ("STRUCTS", "service", reversed_fields(abi.SERVICE), "struct service: offsets"),
        ("STRUCTS", "backend", np.dtype((np.void, 64)), "struct backend: 128 bytes in C, 64"),
        ("STRUCTS", "novelty", abi.SETTINGS, "struct novelty is not in the program"),
        ("ENUMS", "reason", abi.ENUMS["reason"] | {"REASON_NOT_IP": 7}, "enum reason"),
        ("ENUMS", "flow_state", {}, "enum flow_state"),
        ("ENUMS", "novelty", {}, "enum novelty is not in the program"),
    ],
)
def test_a_mirror_that_disagrees_is_refused(
    monkeypatch: pytest.MonkeyPatch, compiled: Dataplane, where: str, name: str, value, says: str
):
    monkeypatch.setitem(getattr(abi, where), name, value)
    with pytest.raises(AbiMismatchError, match=says) as caught:
        abi.check(compiled.program.layout)
    assert "nothing was attached" in caught.value.remedy


def test_nothing_is_attached_of_a_program_with_another_layout(
    monkeypatch: pytest.MonkeyPatch, instance: str
):
    monkeypatch.setitem(abi.STRUCTS, "service", reversed_fields(abi.SERVICE))
    config = Config(instance, "lo", tables=harness.SMALL)
    with pytest.raises(AbiMismatchError, match="struct service: offsets"):
        harness.load(config, harness.all_features())
    assert not libbpf.xdp_query(attach.interface_index("lo")).id


def probe(text: str) -> btf.Btf:
    """The layouts of a sound program of its own with that copy of the header."""
    uses = "\n".join(
        f"BPF_ARRAY(table{n}, struct {name}, 1);" for n, name in enumerate(header.structs())
    )
    enums = "struct abi_enums { " + " ".join(f"enum {n} {n};" for n in header.enums()) + " };"
    rest = f"{uses}\n{enums}\nBPF_ARRAY(abi_enums, struct abi_enums, 1);\n"
    rest += "int probe(struct xdp_md *ctx) { return XDP_PASS; }\n"
    compiled = compile_program(text + rest, "probe", {})
    compiled.close()
    return compiled.layout


def test_a_program_with_the_header_as_it_is_is_taken():
    abi.check(probe(header.PATH.read_text()))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("__u32 flow_salt;", "__u16 flow_salt; __u16 extra;"),
        ("REASON_NOT_IP = 1", "REASON_NOT_IP = 0"),
        ("__u8 mac[6];", "__u8 mac[4]; __u8 more[2];"),
    ],
)
def test_a_changed_program_is_refused(old: str, new: str):
    text = header.PATH.read_text()
    assert old in text
    layout = probe(text.replace(old, new))
    with pytest.raises(AbiMismatchError):
        abi.check(layout)


OTHERS = (
    Tables(flows=131_072, services=16, backends=256, ring_slots=4099),
    Tables(flows=65_536, services=32, backends=256, ring_slots=4099),
    Tables(flows=65_536, services=16, backends=512, ring_slots=4099),
    Tables(flows=65_536, services=16, backends=256, ring_slots=65_537),
)


@pytest.mark.parametrize("other", OTHERS)
def test_tables_of_other_sizes_do_not_fit(compiled: Dataplane, other: Tables):
    assert tables.fits_pinned(compiled.pins, sizes(harness.SMALL, possible_cpus()))
    assert not tables.fits_pinned(compiled.pins, sizes(other, possible_cpus()))


@pytest.mark.soak
@pytest.mark.parametrize("other", OTHERS)
def test_tables_pinned_with_other_sizes_give_way_to_new_ones(instance: str, other: Tables):
    """Without a program that uses them nobody misses them."""
    harness.load(Config(instance, "lo", tables=harness.SMALL), (harness.service(),))
    harness.load(Config(instance, "lo", tables=other), (harness.service(),))
    assert tables.fits_pinned(pins_of(instance), sizes(other, possible_cpus()))
    assert not tables.fits_pinned(pins_of(instance), sizes(harness.SMALL, possible_cpus()))
    assert not pins_of(instance).of_other_versions()


def test_tables_of_other_ports_of_fullnat_do_not_fit(instance: str):
    """There are as many, but a slot is another port."""
    harness.load(Config(instance, "lo", tables=harness.SMALL), (harness.service(),))
    same, other = (
        sizes(harness.SMALL, possible_cpus(), Nat(first_port=first, last_port=first + 22_527))
        for first in (10_240, 10_241)
    )
    assert tables.fits_pinned(pins_of(instance), same)
    assert not tables.fits_pinned(pins_of(instance), other)


def test_a_table_with_another_value_does_not_fit(instance: str):
    folder = pins_of(instance)
    folder.folder.mkdir(parents=True)
    fd = libbpf.array_create("backends", 64, harness.SMALL.backends, libbpf.BPF_F_MMAPABLE)
    libbpf.object_pin(fd, folder.table("backends"))
    os.close(fd)
    assert not tables.fits_pinned(folder, sizes(harness.SMALL, possible_cpus()))


def test_only_btf_is_taken_for_btf():
    with pytest.raises(ValueError, match="not BTF"):
        btf.parse(bytes(32))


def test_our_sources_are_joined_once_each():
    text = sources.joined("balancer.c")
    assert '#include "' not in text
    assert text.count("#define STEELYARD_ABI_H") == 1
