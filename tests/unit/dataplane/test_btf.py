"""BTF made by hand, read back."""

import struct

import pytest

from agent.dataplane import abi, btf
from agent.dataplane.btf import Btf, StructLayout
from agent.errors import AbiMismatchError


def blob(types: bytes, names: bytes) -> bytes:
    return (
        struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(names))
        + types
        + names
    )


NAMES = b"\0int\0pair\0first\0second\0colour\0RED\0BLUE\0"


def at(name: bytes) -> int:
    return NAMES.index(b"\0" + name + b"\0") + 1


def kind(number: int, vlen: int = 0, flag: int = 0) -> int:
    return flag << 31 | number << 24 | vlen


INT = struct.pack("=IIII", at(b"int"), kind(1), 4, 32)
MEMBERS = struct.pack("=IIIIII", at(b"first"), 1, 0, at(b"second"), 1, 32)
PAIR = struct.pack("=III", at(b"pair"), kind(4, 2), 8) + MEMBERS
PAIR_FLAGGED = struct.pack("=III", at(b"pair"), kind(4, 2, 1), 8) + struct.pack(
    "=IIIIII", at(b"first"), 1, 32 << 24, at(b"second"), 1, 32 << 24 | 32
)
COLOUR = struct.pack("=III", at(b"colour"), kind(6, 2), 4) + struct.pack(
    "=IiIi", at(b"RED"), -1, at(b"BLUE"), 5
)
SKIPPED = b"".join(
    struct.pack("=III", 0, kind(number, vlen), 0) + bytes(size)
    for number, vlen, size in (
        (2, 0, 0), (3, 0, 12), (5, 2, 24), (7, 0, 0), (8, 0, 0), (12, 0, 0), (13, 3, 24),
        (14, 0, 4), (15, 2, 24), (16, 0, 0), (17, 0, 4), (19, 2, 24),
    )
)  # fmt: skip


@pytest.mark.parametrize("pair", [PAIR, PAIR_FLAGGED])
def test_structs_and_enums_are_found_among_everything_else(pair: bytes):
    found = btf.parse(blob(INT + SKIPPED + pair + SKIPPED + COLOUR, NAMES))
    assert found.structs["pair"] == StructLayout(8, {"first": 0, "second": 4})
    assert found.structs["pair"].sizes == {"first": 4, "second": 4}
    assert found.enums == {"colour": {"RED": -1, "BLUE": 5}}


def test_functions_have_the_numbers_of_their_types():
    function = struct.pack("=III", at(b"first"), kind(12), 1)
    assert btf.parse(blob(INT + PAIR + function, NAMES)).functions == {"first": 3}


def test_other_bytes_are_refused():
    with pytest.raises(ValueError, match="not BTF"):
        btf.parse(b"\x9f\xeb" + bytes(22) if struct.pack("=H", 1) == b"\0\1" else bytes(24))


def agreeing() -> Btf:
    return Btf(
        {
            name: StructLayout(dtype.itemsize, {f: dtype.fields[f][1] for f in dtype.names})
            for name, dtype in abi.STRUCTS.items()
        },
        {name: dict(values) for name, values in abi.ENUMS.items()},
        {},
    )


def test_what_agrees_is_accepted():
    assert abi.mismatches(agreeing()) == []
    abi.check(agreeing())


def test_every_disagreement_is_told():
    other = agreeing()
    other.structs["backend"] = StructLayout(64, {})
    del other.structs["service"]
    other.enums["reason"]["REASON_NOT_IP"] = 9
    del other.enums["forward"]
    with pytest.raises(AbiMismatchError) as caught:
        abi.check(other)
    for part in (
        "struct backend: 64 bytes",
        "struct service is not",
        "enum reason",
        "enum forward",
    ):
        assert part in str(caught.value)
