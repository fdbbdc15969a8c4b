"""Decides what a value may be: the types of the schema, each with its check, error and remedy.

Every type carries a ``Kind``, the text with which the reference describes it.
"""

from __future__ import annotations

import difflib
import enum
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Never

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from agent.config.durations import format_duration, parse_duration
from agent.model import MAX_PRIORITY, MAX_WEIGHT, RATE_PERIODS, Rate

# sun_path holds 108 bytes, one of them the final NUL.
_MAX_SOCKET_PATH = 107
_MAX_NAME = 64
MAX_GROUPS = 32  # with one role on the API's socket
MAX_SIGNATURES = 1024  # of Suricata, in one list
_MAX_PAYLOAD = 1200  # bytes; a datagram of this size fits every path

type StatusRanges = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """The text with which the reference describes a type."""

    text: str


def refuse(message: str, remedy: str) -> Never:
    """Refuse a value. ``agent.config.load`` finds both texts in the context of pydantic's error."""
    # The template is constant, so that braces in the value are not taken for fields.
    context = {"message": message, "remedy": remedy}
    raise PydanticCustomError("steelyard", "{message}", context)


def suggestion(word: object, known: Iterable[str]) -> str:
    """Return a hint such as ``did you mean 'weight'? ``, or an empty text."""
    close = difflib.get_close_matches(str(word).lower(), list(known), n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'? " if close else ""


def shown(value: object) -> str:
    """Return a value as errors quote it: short, and with quotes if it is text."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case dict():
            return "a mapping"
        case list():
            return "a list"
    words = repr(value) if isinstance(value, str) else str(value)
    return words if len(words) <= 60 else f"{words[:57]}…"


def whole(low: int, high: int) -> Callable[[object], int]:
    """Return a check for a whole number from ``low`` to ``high``."""

    def check(value: object) -> int:
        remedy = f"give a whole number from {low} to {high}"
        if isinstance(value, bool) or not isinstance(value, int):
            refuse(f"{shown(value)} is not a whole number", remedy)
        if not low <= value <= high:
            refuse(f"{shown(value)} is out of range", remedy)
        return value

    return check


def _share(value: object) -> float:
    match = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]+)?) ?%", value) if isinstance(value, str) else None
    share = float(match[1]) / 100 if match else value
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        refuse(f"{shown(value)} is not a share", "give a number from 0 to 1, such as 0.1, or 10%")
    return float(share)


def _number(low: float, high: float) -> Callable[[object], float]:
    def check(value: object) -> float:
        remedy = f"give a number from {low:g} to {high:g}"
        if isinstance(value, bool) or not isinstance(value, int | float):
            refuse(f"{shown(value)} is not a number", remedy)
        if not low <= value <= high:
            refuse(f"{shown(value)} is out of range", remedy)
        return float(value)

    return check


def _bound(value: object) -> float:
    remedy = "give a number from 1 to 100, such as 1.25, or 0 for no bound"
    if isinstance(value, bool) or not isinstance(value, int | float):
        refuse(f"{shown(value)} is not a number", remedy)
    if value != 0 and not 1 <= value <= 100:
        refuse(f"{shown(value)} is out of range", remedy)
    return float(value)


def duration(low_s: float, high_s: float) -> Callable[[object], float]:
    """Return a check for a duration from ``low_s`` to ``high_s`` seconds."""

    def check(value: object) -> float:
        bounds = f"from {format_duration(low_s)} to {format_duration(high_s)}"
        seconds = parse_duration(value)
        if seconds is None:
            remedy = f"give seconds, or a text such as 500ms, 2s, 15m or 1h, {bounds}"
            refuse(f"{shown(value)} is not a duration", remedy)
        if not low_s <= seconds <= high_s:
            refuse(f"{shown(value)} is out of range", f"give a duration {bounds}")
        return seconds

    return check


def _severity(value: object) -> int | None:
    return None if value in (None, "none") else whole(1, 255)(value)


def _signatures(value: object) -> tuple[int, ...]:
    if not isinstance(value, list):
        refuse(f"{shown(value)} is not a list", "write a list of signature ids: [2024897, 2034567]")
    if len(value) > MAX_SIGNATURES:
        refuse(f"{len(value)} signatures are too many", f"give at most {MAX_SIGNATURES}")
    found = tuple(map(whole(1, 2**32 - 1), value))
    if len(set(found)) < len(found):
        twice = next(each for each in found if found.count(each) > 1)
        refuse(f"{twice} is given twice", "remove one of the two")
    return found


def _rate(value: object) -> Rate | None:
    units = {unit: period_s for period_s, unit in RATE_PERIODS.items()}
    remedy = "give a number per second, minute or hour, such as 50/s, 600/m or 10000/h, or none"
    if value in (None, "none"):
        return None
    match = re.fullmatch(r"([0-9]{1,10})/([smh])", value) if isinstance(value, str) else None
    if match is None:
        refuse(f"{shown(value)} is not a rate", remedy)
    rate = Rate(int(match[1]), units[match[2]])
    if not 1 <= rate.events <= 1_000_000 * rate.period_s:
        refuse(f"{shown(value)} is out of range", "give 1 or more, up to 1000000/s, or none")
    return rate


_UNITS = {"": 1, "kB": 1000, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def _most(value: object) -> int | None:
    if value in (None, "none"):
        return None
    return whole(1, 2**31 - 1)(value)


def most_bytes(value: object) -> int | None:
    """Return a number of bytes, written with or without a unit; None: `none`."""
    remedy = "give bytes, or a text such as 512KiB or 8MiB, from 1 byte to 1024GiB, or none"
    if value in (None, "none"):
        return None
    match = re.fullmatch(r"([0-9]{1,13}) ?([kKMGiB]{0,3})", str(value))
    if isinstance(value, bool) or match is None or match[2] not in _UNITS:
        refuse(f"{shown(value)} is not a number of bytes", remedy)
    size = int(match[1]) * _UNITS[match[2]]
    if not 1 <= size <= 2**40:
        refuse(f"{shown(value)} is out of range", remedy)
    return size


def _escape(value: object) -> int | None:
    if value in (None, "auto"):
        return None
    remedy = "give auto, or bytes up to 16MiB, such as 20000 or 64KiB"
    match = re.fullmatch(r"([0-9]{1,9}) ?([kKMiB]{0,3})", str(value))
    if isinstance(value, bool) or match is None or match[2] not in _UNITS:
        refuse(f"{shown(value)} is neither auto nor a number of bytes", remedy)
    size = int(match[1]) * _UNITS[match[2]]
    if size > 1 << 24:
        refuse(f"{shown(value)} is out of range", remedy)
    return size


def _payload(value: object) -> str:
    given = text(value)
    size = len(given.encode())
    if given.startswith("hex:"):
        digits = given[4:]
        if re.fullmatch(r"(?:[0-9A-Fa-f]{2})*", digits) is None:
            refuse(
                f"{shown(value)} is not hexadecimal",
                "give two digits for each byte, as in hex:00ff",
            )
        size = len(digits) // 2
    if size > _MAX_PAYLOAD:
        refuse(f"{shown(value)} is too long", f"give at most {_MAX_PAYLOAD} bytes")
    return given


def text(value: object) -> str:
    """Return the value if it is text, and refuse it otherwise."""
    if not isinstance(value, str):
        refuse(f"{shown(value)} is not text", f"put it in quotes: '{value}'")
    return value


def matching(pattern: str, what: str, remedy: str, longest: int) -> Callable[[object], str]:
    """Return a check for text that matches ``pattern`` and has at most ``longest`` characters."""
    compiled = re.compile(pattern, re.ASCII)

    def check(value: object) -> str:
        given = text(value)
        if len(given) > longest:
            refuse(f"{shown(given)} is too long for {what}", f"use at most {longest} characters")
        if compiled.fullmatch(given) is None:
            refuse(f"{shown(given)} is not {what}", remedy)
        return given

    return check


def _choice[E: enum.Enum](choices: type[E]) -> Callable[[object], E]:
    words = [str(choice.value) for choice in choices]

    def check(value: object) -> E:
        if isinstance(value, str) and value in words:
            return choices(value)
        refuse(
            f"{shown(value)} is not known",
            f"{suggestion(value, words)}choose one of: {', '.join(words)}",
        )

    return check


def choice[E: enum.Enum](choices: type[E]) -> tuple[BeforeValidator, Kind]:
    """Return the metadata of a field that holds one of an enum's values."""
    words = " \\| ".join(f"`{choice.value}`" for choice in choices)
    return BeforeValidator(_choice(choices)), Kind(words)


def _absolute(value: object) -> Path:
    given = text(value)
    if not given.startswith("/") or "\0" in given:
        refuse(f"{shown(given)} is not an absolute path", "start it with /")
    return Path(given)


def _socket_path(value: object) -> Path:
    path = _absolute(value)
    if len(str(path).encode(errors="replace")) > _MAX_SOCKET_PATH:
        remedy = f"use at most {_MAX_SOCKET_PATH} bytes, such as /run/steelyard/agent.sock"
        refuse(f"{shown(str(path))} is too long for a Unix socket", remedy)
    return path


def _quic_id(value: object) -> bytes:
    remedy = 'give 1 to 8 bytes as hexadecimal digits in quotes, such as "c0ffee01"'
    if not isinstance(value, str):
        refuse(f"{shown(value)} is not text", remedy)
    if re.fullmatch(r"(?:[0-9a-fA-F]{2}){1,8}", value) is None:
        refuse(f"{shown(value)} is not a server id", remedy)
    return bytes.fromhex(value)


def _power_of_two(low: int, high: int) -> Callable[[object], int]:
    integer = whole(low, high)

    def check(value: object) -> int:
        number = integer(value)
        if number & (number - 1):
            below = 1 << (number.bit_length() - 1)
            refuse(f"{number} is not a power of two", f"the nearest are {below} and {below * 2}")
        return number

    return check


def _prime(low: int, high: int) -> Callable[[object], int]:
    integer = whole(low, high)

    def check(value: object) -> int:
        number = integer(value)
        if not _is_prime(number):
            below = next(n for n in range(number, 1, -1) if _is_prime(n))
            above = next(n for n in range(number, 2 * number) if _is_prime(n))
            refuse(f"{number} is not prime", f"the nearest are {below} and {above}")
        return number

    return check


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % n for n in range(2, int(number**0.5) + 1))


def _status_ranges(value: object) -> StatusRanges:
    items: list[object]
    if isinstance(value, str):
        items = [part.strip() for part in value.split(",")]
    else:
        items = list(value) if isinstance(value, list) else [value]
    remedy = "give statuses from 100 to 599: 200, 200-399, or a list of those"
    if not items:
        refuse("no status is expected", remedy)
    ranges = []
    for item in items:
        match = re.fullmatch(r"([0-9]{3})(?:-([0-9]{3}))?", str(item))
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 100 <= low <= high <= 599:
            refuse(f"{shown(item)} is not an HTTP status or a range of statuses", remedy)
        ranges.append((low, high))
    return tuple(ranges)


Weight = Annotated[
    int, BeforeValidator(whole(0, MAX_WEIGHT)), Kind(f"whole number, 0 to {MAX_WEIGHT}")
]
Priority = Annotated[
    int, BeforeValidator(whole(0, MAX_PRIORITY)), Kind(f"whole number, 0 to {MAX_PRIORITY}")
]
ZoneRings = Annotated[int, BeforeValidator(whole(0, 4096)), Kind("whole number, 0 to 4096")]
NatBlocks = Annotated[int, BeforeValidator(whole(1, 65_535)), Kind("whole number, 1 to 65535")]
GuardNodes = Annotated[
    int, BeforeValidator(whole(4097, 2**24)), Kind("whole number, 4097 to 16777216")
]
NewFlows = Annotated[
    Rate | None, BeforeValidator(_rate), Kind("rate, such as `50/s`, `600/m`, `10000/h`; `none`")
]
MostFlows = Annotated[int | None, BeforeValidator(_most), Kind("whole number from 1; `none`")]
FewestBackends = Annotated[int, BeforeValidator(whole(0, 10_000)), Kind("whole number, 0 to 10000")]
MostBytes = Annotated[
    int | None, BeforeValidator(most_bytes), Kind("bytes, such as `512KiB`, `8MiB`; `none`")
]
Escape = Annotated[
    int | None, BeforeValidator(_escape), Kind("`auto`, or bytes, such as `20000`, `64KiB`")
]
Count = Annotated[int, BeforeValidator(whole(1, 100)), Kind("whole number, 1 to 100")]
Severity = Annotated[
    int | None, BeforeValidator(_severity), Kind("whole number, 1 to 255, or `none`")
]
Signatures = Annotated[tuple[int, ...], BeforeValidator(_signatures), Kind("list of signature ids")]
BlockTime = Annotated[float, BeforeValidator(duration(1, 30 * 86400)), Kind("duration, 1s to 30d")]
Seed = Annotated[int, BeforeValidator(whole(0, 2**32 - 1)), Kind("whole number, 0 to 4294967295")]
TableSize = Annotated[int, BeforeValidator(whole(2, 65_535)), Kind("whole number, 2 to 65535")]
FlowSlots = Annotated[
    int,
    BeforeValidator(_power_of_two(1024, 2**28)),
    Kind("power of two, 1024 to 268435456"),
]
RingSlots = Annotated[int, BeforeValidator(_prime(251, 1_048_573)), Kind("prime, 251 to 1048573")]
Share = Annotated[float, BeforeValidator(_share), Kind("number, 0 to 1, or percent, such as `50%`")]
Draws = Annotated[int, BeforeValidator(whole(2, 8)), Kind("whole number, 2 to 8")]
RequestBytes = Annotated[
    int, BeforeValidator(whole(1, 1_000_000)), Kind("whole number, 1 to 1000000")
]
PrefixBits = Annotated[
    int, BeforeValidator(whole(1, 128)), Kind("whole number, 1 to 32 (IPv6: to 128)")
]
Bound = Annotated[float, BeforeValidator(_bound), Kind("number, 1 to 100, or 0")]
QuicIdBytes = Annotated[int, BeforeValidator(whole(1, 8)), Kind("whole number, 1 to 8")]
QuicId = Annotated[bytes, BeforeValidator(_quic_id), Kind("text: 1 to 8 bytes in hexadecimal")]
SlowStart = Annotated[float, BeforeValidator(duration(0, 3600)), Kind("duration, 0s to 1h")]
ResetAfter = Annotated[float, BeforeValidator(duration(0, 3600)), Kind("duration, 0s to 1h")]
Ejection = Annotated[float, BeforeValidator(duration(0, 3600)), Kind("duration, 0s to 1h")]
FirstByte = Annotated[float, BeforeValidator(duration(0, 120)), Kind("duration, 0s to 2m")]
OutlierWindow = Annotated[float, BeforeValidator(duration(2, 600)), Kind("duration, 2s to 10m")]
IdleTime = Annotated[float, BeforeValidator(duration(4, 7 * 3600)), Kind("duration, 4s to 7h")]
Interval = Annotated[float, BeforeValidator(duration(0.1, 3600)), Kind("duration, 100ms to 1h")]
ReportInterval = Annotated[
    float, BeforeValidator(duration(0.05, 3600)), Kind("duration, 50ms to 1h")
]
ReportTimeout = Annotated[float, BeforeValidator(duration(0.01, 60)), Kind("duration, 10ms to 1m")]
RoundTrip = Annotated[float, BeforeValidator(duration(0, 10)), Kind("duration, 0s to 10s")]
ResetRate = Annotated[float, BeforeValidator(_number(0, 1000)), Kind("number, 0 to 1000")]
Skew = Annotated[float, BeforeValidator(_number(1, 100)), Kind("number, 1 to 100")]
CheckTimeout = Annotated[
    float, BeforeValidator(duration(0.01, 3600)), Kind("duration, 10ms to 1h, at most `interval`")
]
AbsolutePath = Annotated[Path, BeforeValidator(_absolute), Kind("absolute path")]
SocketPath = Annotated[Path, BeforeValidator(_socket_path), Kind("absolute path")]
Statuses = Annotated[
    StatusRanges, BeforeValidator(_status_ranges), Kind("status, range, or a list of those")
]
InstanceName = Annotated[
    str,
    BeforeValidator(
        matching(
            r"[a-z0-9][a-z0-9-]*",
            "an instance name",
            "use lower-case letters, digits and -, such as edge-1",
            32,
        )
    ),
    Kind("text: `a-z`, `0-9`, `-`"),
]
Name = Annotated[
    str,
    BeforeValidator(
        matching(
            r"[a-z0-9][a-z0-9._-]*",
            "a name",
            "use lower-case letters, digits, and . _ - after the first, such as gpu-1",
            _MAX_NAME,
        )
    ),
    Kind("text: `a-z`, `0-9`, `.`, `_`, `-`"),
]
_group_name = matching(
    r"[A-Za-z_][A-Za-z0-9_.-]*\$?",
    "a group name",
    "give a group of /etc/group, such as adm",
    32,
)


def _group_names(value: object) -> tuple[str, ...]:
    given = value if isinstance(value, list) else [value]
    if len(given) > MAX_GROUPS:
        refuse(f"{len(given)} groups are too many", f"give at most {MAX_GROUPS}")
    return tuple(dict.fromkeys(_group_name(each) for each in given))


GroupName = Annotated[str, BeforeValidator(_group_name), Kind("text")]
GroupNames = Annotated[
    tuple[str, ...], BeforeValidator(_group_names), Kind("a group, or a list of groups")
]
UserName = Annotated[
    str,
    BeforeValidator(
        matching(r"[A-Za-z_][A-Za-z0-9_.-]*\$?", "a user name", "give a user of this host", 32)
    ),
    Kind("text"),
]
# Text that goes into a request must not be able to end its line and start another one.
Method = Annotated[
    str,
    BeforeValidator(
        matching(r"[A-Z]+", "an HTTP method", "use capital letters, such as GET or HEAD", 16)
    ),
    Kind("text, such as `GET`, `HEAD`"),
]
RequestPath = Annotated[
    str,
    BeforeValidator(
        matching(
            r"/[\x21-\x7e]*",
            "a request path",
            "start it with /, and write spaces and other special characters as %20",
            1024,
        )
    ),
    Kind("text, starts with `/`"),
]
ModelName = Annotated[
    str,
    BeforeValidator(
        matching(
            r"[\x21-\x7e]+",
            "a model's name",
            "write it as the server lists it, such as meta-llama/Llama-3.1-8B-Instruct",
            256,
        )
    ),
    Kind("text"),
]
Payload = Annotated[
    str, BeforeValidator(_payload), Kind("text, or `hex:` and digits, up to 1200 bytes")
]
GrpcService = Annotated[
    str,
    BeforeValidator(
        matching(r"[A-Za-z0-9_.]*", "a gRPC service", "give a name such as package.Service", 255)
    ),
    Kind("text"),
]
DnsName = Annotated[
    str,
    BeforeValidator(
        matching(
            r"\.|(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}\.?",
            "a domain name",
            "give a name such as example.com, or . for the root",
            253,
        )
    ),
    Kind("domain name"),
]
DnsRecord = Annotated[
    str,
    BeforeValidator(
        matching(
            "A|AAAA|CNAME|MX|NS|PTR|SOA|SRV|TXT",
            "a record type",
            "give A, AAAA, CNAME, MX, NS, PTR, SOA, SRV or TXT",
            8,
        )
    ),
    Kind("record type, such as `A`, `SOA`"),
]
Expression = Annotated[str, BeforeValidator(text), Kind("expression")]
HostName = Annotated[
    str,
    BeforeValidator(
        matching(
            r"[A-Za-z0-9.:_\[\]-]+", "a host name", "give a name such as chat.example.com", 255
        )
    ),
    Kind("host name"),
]
