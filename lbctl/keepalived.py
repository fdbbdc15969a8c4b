"""Converts a configuration of keepalived into one of ours, and names what has no counterpart.

Everything here is pure. ``lbctl.keepalived_conf`` reads the file.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from ipaddress import ip_address

from agent.errors import ConfigError
from agent.model import MAX_WEIGHT
from lbctl.converted import Converted, Document
from lbctl.keepalived_conf import Statement, wrong

MOST_ADDRESSES = 256  # of a range
_SCHEDULERS = {
    "rr": "round-robin", "wrr": "round-robin", "lc": "least-conn", "wlc": "least-conn",
    "sed": "least-conn", "nq": "least-conn", "sh": "source", "mh": "maglev",
}  # fmt: skip
_NEAREST = {"sed": "least-conn", "nq": "least-conn"}
_MODES = {"DR": "dsr", "NAT": "nat", "TUN": "ipip"}
# What needs no counterpart: it is so here anyway, or is only about keepalived itself.
_SILENT = frozenset({"global_defs", "state", "protocol", "ip_family", "alpha", "ops", "mh-port"})

# -- the conversion


def convert(statements: Sequence[Statement], interface: str | None) -> Converted:
    """Return what a file becomes. ``interface``: where clients' packets come in; None: as the
    first VRRP instance says. Raises ConfigError if that says nothing.
    """
    made = Converted()
    found: dict[str, list[Statement]] = {}
    for each in statements:
        _sort(each, found, made)
    version = _vrrp_version(found.get("global_defs", []))
    groups = _groups(found.get("vrrp_sync_group", []), made)
    scripts = {each.value: each for each in found.get("vrrp_script", [])}
    instances = [
        _instance(each, version, groups, scripts, made) for each in found.get("vrrp_instance", [])
    ]
    own = interface or next((str(one["interface"]) for one in instances if "interface" in one), "")
    if not own:
        raise ConfigError(
            "no vrrp_instance names an interface",
            where="the file",
            remedy="say where clients' packets come in: --interface NAME",
        )
    for one in instances:
        if one.get("interface") == own:
            del one["interface"]
    sets = {each.value: each for each in found.get("virtual_server_group", [])}
    services = [
        service
        for each in found.get("virtual_server", [])
        for service in _services(each, sets, made)
    ]
    made.document["interface"] = own
    if user := _script_user(found.get("global_defs", []), made):
        made.document["script_user"] = user
    if instances:
        made.document["failover"] = {"instances": instances}
    made.document["services"] = services
    made.notes.sort(key=lambda note: note.line)
    return made


def _sort(each: Statement, found: dict[str, list[Statement]], made: Converted) -> None:
    known = ("virtual_server", "virtual_server_group", "vrrp_instance", "vrrp_sync_group",
             "vrrp_script", "global_defs")  # fmt: skip
    if each.name in known:
        found.setdefault(each.name, []).append(each)
    elif each.name == "include":
        made.note(each, f"{each.value} is not read: convert it, too")
    elif each.name.startswith(("$", "@")):
        made.note(each, f"{each.name}: variables and conditions are not evaluated")
    else:
        made.note(each, f"{each.name} has no counterpart")


def _unknown(inside: Statement, known: frozenset[str], made: Converted) -> None:
    """Note the statements of a block that are neither converted nor without need for that."""
    for each in inside.inner or ():
        if each.name not in known | _SILENT:
            what = "notify scripts" if each.name.startswith("notify") else each.name
            made.note(each, f"{what}: no counterpart" if what == each.name else
                      f"{each.name}: nothing is run at a change; watch `lbctl events --follow -o "
                      "json`, or the metrics")  # fmt: skip


# -- virtual servers

_OF_SERVER = frozenset({
    "delay_loop", "lb_algo", "lvs_sched", "lb_kind", "lvs_method", "persistence_timeout",
    "persistence_granularity", "sorry_server", "real_server", "virtualhost",
})  # fmt: skip


def _services(
    server: Statement, sets: Mapping[str, Statement], made: Converted
) -> Iterator[Document]:
    """Yield the services of a virtual server: several for a group."""
    _unknown(server, _OF_SERVER, made)
    settings = _settings(server, made)
    match server.words[1:]:
        case ["fwmark", *_]:
            made.note(server, "fwmark: name the addresses and ports instead (a prefix, a range)")
        case ["group", name, *_]:
            group = sets.get(name)
            if group is None:
                made.note(server, f"there is no virtual_server_group {name}")
            for each in group.inner or () if group else ():
                if each.name == "fwmark":
                    made.note(each, "fwmark: name the addresses and ports instead")
                else:
                    for address in _range(each, made):
                        yield _service(address, each.value, settings)
        case [address, *port]:
            yield _service(address, port[0] if port else "0", settings)


def _service(address: str, port: str, settings: Document) -> Document:
    suffix = "-udp" if settings.get("protocol") == "udp" else ""
    where = "any" if port in ("", "0") else int(port) if port.isdecimal() else port
    name = f"{address.replace(':', '-').strip('-')}-{where}{suffix}".lower()
    return {"name": name, "vip": address, "port": where} | _ported(settings, where)


def _ported(settings: Document, port: object) -> Document:
    """Leave out the ports of backends that are the service's own, or that the mode cannot have."""
    backends = settings["backends"]
    assert isinstance(backends, list)  # noqa: S101 (we made it)
    keeps = settings.get("forward") == "nat"
    return settings | {
        "backends": [
            {k: v for k, v in each.items() if k != "port" or (keeps and v not in (port, 0))}
            for each in backends
        ]
    }


def _range(each: Statement, made: Converted) -> Iterator[str]:
    """Yield the addresses of a line of a group: one, or a range such as 192.0.2.3-10."""
    first, _, last = each.name.partition("-")
    if not last:
        yield first
        return
    head, separator, low = first.rpartition(":" if ":" in first else ".")
    base = 16 if separator == ":" else 10
    digits = re.compile("[0-9a-fA-F]{1,4}" if base == 16 else "[0-9]{1,3}")
    if not digits.fullmatch(last) or not digits.fullmatch(low or "0"):
        raise wrong(f"line {each.line}", f"{each.name} is not a range of addresses")
    span = range(int(low or "0", base), int(last, base) + 1)
    if len(span) > MOST_ADDRESSES:
        made.note(each, f"a range of more than {MOST_ADDRESSES} addresses: use a prefix")
        return
    yield from (f"{head}{separator}{n:x}" if base == 16 else f"{head}{separator}{n}" for n in span)


def _settings(server: Statement, made: Converted) -> Document:
    """Return everything of a service but its name, VIP and port."""
    result: Document = {}
    if (protocol := server.one("protocol")) and protocol.value.upper() != "TCP":
        result["protocol"] = "udp" if protocol.value.upper() == "UDP" else protocol.value.lower()
    if kind := server.one("lb_kind", "lvs_method"):
        result["forward"] = _MODES.get(kind.value.upper(), kind.value.lower())
        if kind.value.upper() == "TUN" and "gue" in kind.words[2:]:  # type gue port 6080
            result["forward"] = "gue"
    result |= _scheduler(server, made)
    reals = server.all("real_server")
    if health := _health(server, reals, result.get("protocol") == "udp", made):
        result["health"] = health
    result["backends"] = [*_backends(server, reals, made)]
    return result


def _scheduler(server: Statement, made: Converted) -> Document:
    result: Document = {}
    if algo := server.one("lb_algo", "lvs_sched"):
        if algo.value in _SCHEDULERS:
            result["scheduler"] = _SCHEDULERS[algo.value]
        else:
            made.note(algo, f"{algo.value} has no counterpart: the default, least-load, is used")
        if algo.value in _NEAREST:
            made.note(algo, f"{algo.value} becomes {_NEAREST[algo.value]}, the nearest")
    if persistence := server.one("persistence_timeout"):
        was = result.get("scheduler", "the scheduler")
        result["scheduler"] = "source"
        made.note(
            persistence,
            f"persistence_timeout: scheduler source instead of {was}: the client's address selects "
            "the server, without a time limit; for HTTP engines, least-load with affinity may be "
            "better",
        )
        if mask := server.one("persistence_granularity"):
            result["source_prefix"] = _bits(mask.value)
    return result


def _bits(mask: str) -> int:
    """Return the length of a mask such as 255.255.255.0, or of one that is written so."""
    if mask.isdecimal():
        return int(mask)
    try:
        return int(ip_address(mask)).bit_count()
    except ValueError:
        raise wrong("persistence_granularity", f"{mask!r} is not a mask") from None


def _backends(server: Statement, reals: Sequence[Statement], made: Converted) -> Iterator[Document]:
    weights = [_whole(real, "weight", 1) for real in reals]
    scale = 100 if max(weights, default=1) <= MAX_WEIGHT // 100 else 1
    known = frozenset({"weight", "inhibit_on_failure", *_CHECKS})
    for number, (real, weight) in enumerate(zip(reals, weights, strict=True), 1):
        _unknown(real, known, made)
        entry: Document = {"name": f"rs-{number}", "address": real.value}
        if len(real.words) > 2:
            entry["port"] = int(_read(real, real.words[2]))
        if (own := min(weight * scale, MAX_WEIGHT)) != 100:
            entry["weight"] = own
        yield entry
    if sorry := server.one("sorry_server"):
        entry = {"name": "sorry", "address": sorry.value, "backup": True}
        if len(sorry.words) > 2:
            entry["port"] = int(_read(sorry, sorry.words[2]))
        yield entry


def _value(inside: Statement, name: str, default: str) -> str:
    found = inside.one(name)
    return found.value if found and found.value else default


def _number(inside: Statement, name: str, default: float) -> float:
    found = inside.one(name)
    return default if found is None else _read(found, found.value)


def _whole(inside: Statement, name: str, default: int) -> int:
    return int(_number(inside, name, default))


def _read(at: Statement, words: str) -> float:
    """Return a number. Raises ConfigError if it is none."""
    if not re.fullmatch(r"-?\d{1,9}(\.\d{1,9})?", words, re.ASCII):
        raise wrong(f"line {at.line}", f"{at.name}: {words!r} is not a number")
    return float(words)


# -- health checks


def _http(check: Statement, made: Converted) -> Document:
    urls = check.all("url")
    result: Document = {"type": "https" if check.name == "SSL_GET" else "http"}
    if check.name == "SSL_GET":
        result["verify_tls"] = False
    if urls:
        url = urls[0]
        result["path"] = _value(url, "path", "/")
        if status := url.one("status_code"):
            codes = [word.strip(",") for word in status.words[1:]]
            expected = [int(code) if code.isdecimal() else code for code in codes]
            result["expect_status"] = expected[0] if len(expected) == 1 and isinstance(
                expected[0], str) else expected  # fmt: skip
        if digest := url.one("digest"):
            made.note(digest, "digest: the page's content is not compared; the status decides")
        if len(urls) > 1:
            made.note(urls[1], "only the first url is asked for")
    host = check.one("virtualhost") or (urls[0].one("virtualhost") if urls else None)
    if host:
        result["host"] = host.value
    return result


def _misc(check: Statement, _: Converted) -> Document:
    path = check.one("misc_path")
    return {"type": "exec", "command": _command(path.words[1:] if path else [])}


def _dns(check: Statement, _: Converted) -> Document:
    return {
        "type": "dns", "query": _value(check, "name", "."), "record": _value(check, "type", "SOA"),
    }  # fmt: skip


def _smtp(check: Statement, made: Converted) -> Document:
    made.note(check, "SMTP_CHECK: the server's greeting is waited for, nothing else")
    return {"type": "tcp", "expect": "220"}


_CHECKS: Mapping[str, Callable[[Statement, Converted], Document]] = {
    "TCP_CHECK": lambda _check, _made: {"type": "tcp"},
    "HTTP_GET": _http,
    "SSL_GET": _http,
    "MISC_CHECK": _misc,
    "DNS_CHECK": _dns,
    "SMTP_CHECK": _smtp,
    "PING_CHECK": lambda _check, _made: {"type": "ping"},
    "UDP_CHECK": lambda _check, _made: {"type": "udp"},
}


def _health(
    server: Statement, reals: Sequence[Statement], is_udp: bool, made: Converted
) -> Document:
    """Return the check of a service: that of its first real server."""
    checks = [check for real in reals for check in real.all(*_CHECKS)[:1]]
    if not checks:
        return {"type": "none"} if reals else {}
    first = checks[0]
    result = _CHECKS[first.name](first, made)
    interval = _number(server, "delay_loop", 60)
    result["interval"] = _seconds(interval)
    if port := first.one("connect_port"):
        result["port"] = int(_read(port, port.value))
    elif is_udp and result["type"] in ("tcp", "http", "https") and len(reals[0].words) > 2:
        result["port"] = int(_read(reals[0], reals[0].words[2]))
    limit = first.one("connect_timeout", "misc_timeout")
    if limit and result["type"] != "ping":
        result["timeout"] = _seconds(min(_read(limit, limit.value), interval))
    if retry := first.one("retry", "nb_get_retry"):
        result["fall"] = int(_read(retry, retry.value)) + 1
    for other in checks[1:]:
        if _shape(other) != _shape(first):
            made.note(other, "a service has one check: that of its first real server is used")
    if any(len(real.all(*_CHECKS)) > 1 for real in reals):
        made.note(first, "several checks of a server: the first one is used")
    return result


def _shape(statement: Statement) -> object:
    return statement.words, [_shape(each) for each in statement.inner or ()]


def _seconds(value: float) -> str:
    return f"{value:g}s" if value >= 1 else f"{value * 1000:g}ms"


# -- VRRP

_OF_INSTANCE = frozenset({
    "interface", "virtual_router_id", "priority", "advert_int", "version", "authentication",
    "virtual_ipaddress", "nopreempt", "preempt", "preempt_delay", "unicast_src_ip", "unicast_peer",
    "mcast_src_ip", "use_vmac", "track_interface", "track_script", "garp_master_delay",
    "garp_master_repeat", "garp_master_refresh", "accept", "no_accept",
})  # fmt: skip


def _vrrp_version(global_defs: Sequence[Statement]) -> int:
    found = [each.one("vrrp_version") for each in global_defs]
    return max((int(_read(each, each.value)) for each in found if each), default=2)


def _groups(found: Sequence[Statement], made: Converted) -> dict[str, str]:
    """Return the sync group of each instance that has one."""
    groups: dict[str, str] = {}
    for each in found:
        _unknown(each, frozenset({"group", "global_tracking"}), made)
        if group := each.one("group"):
            groups |= {name: _name(each.value) for line in group.inner or () for name in line.words}
    return groups


def _name(words: str) -> str:
    return re.sub(r"[^a-z0-9._-]", "-", words.lower()).lstrip("._-") or "unnamed"


def _instance(
    each: Statement,
    version: int,
    groups: Mapping[str, str],
    scripts: Mapping[str, Statement],
    made: Converted,
) -> Document:
    _unknown(each, _OF_INSTANCE, made)
    named = [line.name.partition("/")[0] for line in _lines(each, "virtual_ipaddress")]
    vips = list(dict.fromkeys(named))
    result: Document = {"name": _name(each.value), "vips": vips}
    if interface := each.one("interface"):
        result["interface"] = interface.value
    result["vrid"] = _whole(each, "virtual_router_id", 0)
    is_v6 = any(":" in vip for vip in vips)
    own = 3 if is_v6 else _whole(each, "version", version)
    if own != 3:
        result["version"] = own
    result["priority"] = _whole(each, "priority", 100)
    result["advert_interval"] = _seconds(_number(each, "advert_int", 1))
    if each.one("nopreempt"):
        result["preempt"] = False
    delay = each.one("preempt_delay")
    if delay and "preempt" in result:
        made.note(delay, "preempt_delay: means nothing with nopreempt")
    elif delay:
        result["preempt_delay"] = _seconds(_read(delay, delay.value))
    if each.one("no_accept"):
        result["accept"] = False
    if each.value in groups:
        result["group"] = groups[each.value]
    if peers := [line.name for line in _lines(each, "unicast_peer")]:
        result["peers"] = peers
    if source := each.one("unicast_src_ip", "mcast_src_ip"):
        result["source"] = source.value
    if each.one("use_vmac"):
        result["virtual_mac"] = True
    return (
        result | _authentication(each, own, made) | _announced(each) | _track(each, scripts, made)
    )


def _lines(inside: Statement, name: str) -> list[Statement]:
    return [line for block in inside.all(name) for line in block.inner or ()]


def _authentication(each: Statement, version: int, made: Converted) -> Document:
    block = each.one("authentication")
    if block is None:
        return {}
    if version != 2:
        made.note(
            block, "authentication: version 3 has none; `hmac` is for Steelyard on both sides"
        )
        return {}
    kind = "ah" if _value(block, "auth_type", "PASS").upper() == "AH" else "password"
    return {"authentication": kind, "password": _value(block, "auth_pass", "")[:8]}


def _announced(each: Statement) -> Document:
    names = {
        "garp_master_delay": "delay",
        "garp_master_repeat": "repeat",
        "garp_master_refresh": "refresh",
    }
    found: Document = {}
    for name, key in names.items():
        if given := each.one(name):
            number = _read(given, given.value)
            found[key] = int(number) if key == "repeat" else _seconds(number)
    return {"announcements": found} if found else {}


def _track(each: Statement, scripts: Mapping[str, Statement], made: Converted) -> Document:
    interfaces: list[Document] = []
    for line in _lines(each, "track_interface"):
        weight = _weight(line, 0)
        if weight > 0:
            made.note(line, "a positive weight of an interface: it is lost while the link is down")
        interfaces.append({"name": line.name} | ({"weight": abs(weight)} if weight else {}))
    known: list[Document] = []
    for line in _lines(each, "track_script"):
        script = scripts.get(line.name)
        if script is None:
            made.note(line, f"there is no vrrp_script {line.name}")
            continue
        if (made_of := _script(script, _weight(line, _whole(script, "weight", 0)))) is None:
            made.note(script, f"vrrp_script {line.name} names no script")
        else:
            known.append(made_of)
        if user := script.one("user"):
            made.note(user, "user: one `script_user` is for all commands")
    found: Document = {}
    if interfaces:
        found["interfaces"] = interfaces
    if known:
        found["scripts"] = known
    return {"track": found} if found else {}


def _script_user(definitions: Sequence[Statement], made: Converted) -> str:
    """Return the user that commands run as; empty: the file names none."""
    named = ""
    for line in (line for each in definitions for line in each.inner or ()):
        if line.name == "script_user":
            named = line.value
            if len(line.words) > 2:
                made.note(line, f"script_user: commands get the groups of {named}, and no other")
    return named


def _weight(line: Statement, default: int) -> int:
    words = line.words
    return int(_read(line, words[words.index("weight") + 1])) if "weight" in words[:-1] else default


def _command(given: Sequence[str]) -> list[str]:
    """Return a command as a list; what is found by a shell alone is given to a shell."""
    words = shlex.split(given[0]) if len(given) == 1 else list(given)
    if not words or words[0].startswith("/"):
        return words
    return ["/bin/sh", "-c", " ".join(given)]


def _script(script: Statement, weight: int) -> Document | None:
    """Return a tracked script; None if it has no command."""
    found = script.one("script")
    command = _command(found.words[1:]) if found else []
    if not command:
        return None
    interval = _number(script, "interval", 1)
    result: Document = {
        "name": _name(script.value),
        "command": command,
        "interval": _seconds(interval),
        "timeout": _seconds(min(_number(script, "timeout", interval), interval)),
    }
    for name in ("rise", "fall"):
        if given_count := script.one(name):
            result[name] = int(_read(given_count, given_count.value))
    return result | ({"weight": weight} if weight else {})
