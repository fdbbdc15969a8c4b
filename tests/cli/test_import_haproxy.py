"""``lbctl import``: configurations of HAProxy, converted, with an account of every line."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from ipaddress import ip_address
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from agent.config.document import write_yaml
from agent.config.load import parse
from agent.errors import ConfigError
from agent.model import CheckKind, Forward, Scheduler, TelemetryKind
from lbctl.converted import Converted
from lbctl.haproxy.binds import Site
from lbctl.haproxy.convert import convert
from lbctl.haproxy.grammar import Line
from lbctl.haproxy.grammar import parse as read
from lbctl.haproxy.ledger import Ledger

FIXTURES = sorted((Path(__file__).parent / "haproxy").glob("*.cfg"))
SITE = Site("eth0", (ip_address("192.0.2.1"), ip_address("2001:db8::1")))
COMPLETE = {"databases.cfg", "engines.cfg", "kubernetes.cfg"}
LISTEN = "listen x\nbind 192.0.2.10:80\n"


def made_of(text: str, site: Site = SITE) -> Converted:
    return convert(Ledger(read(text, "x.cfg")), site)


def loaded(text: str, site: Site = SITE):
    made = made_of(text, site)
    return parse(write_yaml(made.document), "x"), made


def told(made: Converted) -> list[tuple[int, str]]:
    return [(note.line, note.text.partition(":")[0]) for note in made.notes if note.line]


def fixture(name: str):
    (path,) = [each for each in FIXTURES if each.name == name]
    return loaded(path.read_text())


def words(line: str) -> tuple[str, ...]:
    (found,) = read(line, "x.cfg")
    return found.words


# -- the fixtures


@pytest.mark.skipif(not shutil.which("haproxy"), reason="haproxy is not installed")
@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.name)
def test_the_fixtures_are_configurations_of_haproxy(path: Path, tmp_path: Path) -> None:
    certificate, key = tmp_path / "site.pem", tmp_path / "key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x", "-days", "1",
         "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    certificate.write_text(certificate.read_text() + key.read_text())
    copy = tmp_path / path.name
    copy.write_text(path.read_text().replace("/etc/haproxy/site.pem", str(certificate)))
    done = subprocess.run(
        ["haproxy", "-c", "-f", copy], env=os.environ | {"LAN": "10.0.0"}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.name)
def test_a_fixture_becomes_a_configuration_that_the_agent_takes(run, path: Path) -> None:
    site = ("-i", "eth0", "--vip", "192.0.2.1", "--vip", "2001:db8::1")
    done = run("import", str(path), *site)
    assert done.code == int(path.name not in COMPLETE), done.err
    assert "to be changed" not in done.err
    assert parse(done.out, "x").services


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.name)
def test_every_line_of_a_fixture_is_accounted_for_by_name(path: Path) -> None:
    ledger = Ledger(read(path.read_text(), path.name))
    made = convert(ledger, SITE)
    assert all(ledger.knows(line) for line in ledger.lines)
    unexplained = (": not known here", ": nothing that is converted uses it")
    assert not [note for note in made.notes if note.text.endswith(unexplained)]


def test_engines_with_agents_on_two_addresses() -> None:
    config, made = fixture("engines.cfg")
    first, second = config.services
    assert [str(each.key.vip) for each in config.services] == ["192.0.2.10", "192.0.2.11"]
    assert (first.forward, first.scheduler) == (Forward.FULLNAT, Scheduler.LEAST_CONN)
    assert [(b.name, b.weight, b.port, b.backup, b.admin.value) for b in first.backends] == [
        ("gpu-1", 200, None, False, "active"), ("gpu-2", 100, None, False, "active"),
        ("gpu-3", 100, 8001, False, "maintenance"), ("cpu-1", 100, None, True, "active"),
    ]  # fmt: skip
    check = first.health
    assert (check.kind, check.method, check.path, check.host, check.expect_status) == (
        CheckKind.HTTP, "GET", "/health", "llm.example.com", ((200, 200),),
    )  # fmt: skip
    assert (check.interval_s, check.timeout_s, check.rise, check.fall) == (2.0, 0.9, 2, 3)
    assert (first.telemetry.kind, first.telemetry.port, first.telemetry.interval_s) == (
        TelemetryKind.AGENT_CHECK, 9119, 5.0,
    )  # fmt: skip
    assert (first.slow_start_s, first.reset_after_s) == (30.0, 0.0)
    assert first.timeouts.established_s == 1800
    assert second.backends == first.backends
    assert told(made) == [(23, "listen stats"), (31, "maxconn")]
    assert [note.text.partition(":")[0] for note in made.notes if not note.line] == [
        "forward", "13 lines concern only HAProxy itself, and nothing has to be done about it",
    ]  # fmt: skip


def test_databases_with_checks_that_talk() -> None:
    config, made = fixture("databases.cfg")
    redis, postgres, galera, binary, ldap = config.services
    assert (redis.health.send, redis.health.expect) == ("PING\r\n", "+PONG")
    assert redis.scheduler is Scheduler.ROUND_ROBIN
    assert redis.timeouts.established_s == 7 * 3600
    assert (postgres.scheduler, postgres.source_bound) == (Scheduler.SOURCE, 1.5)
    assert (postgres.health.port, postgres.health.path) == (8008, "/primary")
    assert [b.backup for b in galera.backends] == [False, True, True]
    assert str(binary.key) == "tcp://[2001:db8::10]:7000-7003"
    assert (binary.scheduler, binary.draws) == (Scheduler.LEAST_LOAD, 2)
    assert [str(b.address) for b in binary.backends] == ["2001:db8::21", "2001:db8::22"]
    assert (binary.health.send, binary.health.expect) == ("PING\r\n", "+PONG")
    assert (ldap.scheduler, ldap.source_bound) == (Scheduler.SOURCE, 0)
    assert [b.port for b in ldap.backends] == [None, 1389]
    assert told(made) == [
        (12, "timeout"), (20, "a check sends once and waits for one answer"),
        (21, "a check sends once and waits for one answer"),
        (22, "a check sends once and waits for one answer"),
        (23, "a check sends once and waits for one answer"), (35, "maxconn"), (36, "maxconn"),
        (40, "first"), (41, "mysql-check"), (44, "backup"), (58, "stick"), (59, "ldap-check"),
        (60, "send-proxy"), (61, "a service has one check"),
    ]  # fmt: skip


def test_the_control_plane_of_kubernetes() -> None:
    config, _ = fixture("kubernetes.cfg")
    api, *ingress = config.services
    assert (str(api.key), api.health.kind, api.health.verify_tls) == (
        "tcp://192.0.2.1:6443", CheckKind.HTTPS, False,
    )  # fmt: skip
    assert [str(each.key) for each in ingress] == ["tcp://192.0.2.1:80", "tcp://[2001:db8::1]:80"]
    source = ingress[0].discover
    assert source is not None
    assert (source.dns, source.port, source.max, source.server) == (
        "nodes.example.com", 30080, 20, ("192.0.2.53", 53),
    )  # fmt: skip


def test_a_proxy_of_layer_7_is_told_what_it_loses() -> None:
    config, made = fixture("web.cfg")
    (public,) = config.services
    assert [b.name for b in public.backends] == ["web-1", "web-2"]
    lost = {line for line, _ in told(made)}
    assert lost == {7, 10, *range(18, 29), 31, 36, 37, *range(39, 46), 47, 50, 53, 56}
    assert not made.is_complete


def test_quotes_escapes_variables_conditions_and_named_defaults() -> None:
    config, made = fixture("language.cfg")
    first, second = config.services
    assert first.name == "my-proxy"
    assert first.health.send == 'a "word" and #\r\nit is $5\\n'
    assert first.health.expect == "#ok"
    assert (second.forward, second.timeouts.established_s) == (Forward.NAT, 7 * 3600)
    assert config.interface == "eth0"
    assert told(made) == [
        (12, "timeout"), (23, "$LAN"), (27, "source … usesrc"), (30, "listen disabled"),
        (35, "conditions are not evaluated"),
    ]  # fmt: skip


# -- the language


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("a  b\tc # d", ("a", "b", "c")),
        ("a#b", ("a",)),
        ("'a b'\"c d\"e", ("a bc de",)),
        (r"a\ b \#c \"d \'e \\f", ("a b", "#c", '"d', "'e", "\\f")),
        (r"\n\r\t\x41", ("\n\r\tA",)),
        (r"'\n' \q \$ $x", (r"\n", r"\q", r"\$", "$x")),
        (r'"\$x it' + "'s\"", ("$x it's",)),
        ('""', ("",)),
        ("a\r", ("a",)),
        ("a\\", ("a\\",)),
    ],
)
def test_words(line: str, found: tuple[str, ...]) -> None:
    assert words(line) == found


def test_variables_are_named() -> None:
    (line,) = read('x "$A.${B_1}${C-10.0.0.1}" "${D[*]}" "${.LINE}"', "x.cfg")
    assert line.variables == ("A", "B_1", "C", "D", ".LINE")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("\na 'b", "x.cfg:2: a quote is not closed"),
        ('a "b', "x.cfg:1: a quote is not closed"),
        (r"a \x4", "\\x is not followed"),
        ('a "$1"', "a $ in double quotes"),
        ('a "${B"', "the brace of ${B is not closed"),
    ],
)
def test_lines_that_haproxy_refuses(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        made_of(text)
    assert says in str(refused.value)


# -- what becomes a service


@pytest.mark.parametrize(
    ("bind", "keys"),
    [
        ("192.0.2.10:80", ["tcp://192.0.2.10:80"]),
        ("192.0.2.10:80,192.0.2.11:81", ["tcp://192.0.2.10:80", "tcp://192.0.2.11:81"]),
        ("192.0.2.10:80-90", ["tcp://192.0.2.10:80-90"]),
        ("*:80", ["tcp://192.0.2.1:80"]),
        (":80", ["tcp://192.0.2.1:80"]),
        ("ipv4@:80", ["tcp://192.0.2.1:80"]),
        (":::80 v6only", ["tcp://[2001:db8::1]:80"]),
        ("ipv6@2001:db8::7:80", ["tcp://[2001:db8::7]:80"]),
    ],
)
def test_where_a_proxy_listens(bind: str, keys: list[str]) -> None:
    servers = "server a 10.0.0.1:80\n" if "192" in keys[0] else "server a [2001:db8::9]:80\n"
    config, _ = loaded(f"listen x\nbind {bind}\n{servers}")
    assert [str(each.key) for each in config.services] == keys


@pytest.mark.parametrize(
    ("bind", "says"),
    [
        ("192.0.2.10:443 ssl crt /x.pem", "TLS ends at HAProxy"),
        ("/run/x.sock", "a socket of this host"),
        ("unix@x", "a socket of this host"),
        ("fd@3", "a file descriptor"),
        ("quic4@:443 ssl crt x", "TLS ends at HAProxy"),
        ("quic4@192.0.2.1:443", "QUIC ends at HAProxy"),
        ("www.example.com:80", "is a name"),
        ("127.0.0.1:80", "the loopback interface"),
        ("192.0.2.10", "it has no port"),
        ("192.0.2.10:99999", "is not a number"),
        ("fe80::1%eth0:80", "a link-local address"),
        ("huh@192.0.2.1:80", "huh@ is not known"),
    ],
)
def test_listening_that_cannot_be_a_service(bind: str, says: str) -> None:
    made = made_of(f"listen x\nbind {bind}\nserver a 10.0.0.1:80\n")
    assert made.document["services"] == []
    assert says in next(note.text for note in made.notes if note.line == 2)
    assert not made.is_complete


def test_without_vip_a_proxy_that_listens_everywhere_is_named() -> None:
    made = made_of("listen x\nbind :80\nserver a 10.0.0.1:80\n", Site())
    assert [note.line for note in made.notes] == [0, 2]
    assert "--interface" in made.notes[0].text
    assert "--vip" in made.notes[1].text


def test_the_interface_of_a_bind_line() -> None:
    text = "listen x\nbind 192.0.2.10:80 interface eth7\nserver a 10.0.0.1:80\n"
    assert made_of(text, Site()).document["interface"] == "eth7"


@pytest.mark.parametrize(
    ("balance", "scheduler", "says"),
    [
        ("", Scheduler.ROUND_ROBIN, ""),
        ("balance static-rr", Scheduler.ROUND_ROBIN, ""),
        ("balance leastconn", Scheduler.LEAST_CONN, ""),
        ("balance source", Scheduler.SOURCE, ""),
        ("balance hash src", Scheduler.SOURCE, ""),
        ("balance random", Scheduler.LEAST_LOAD, ""),
        ("balance random(1)", Scheduler.MAGLEV, ""),
        ("balance random(20)", Scheduler.LEAST_LOAD, "at most 8"),
        ("balance first", Scheduler.LEAST_LOAD, "first:"),
        ("balance hdr(x-user)", Scheduler.LEAST_LOAD, "hdr(x-user):"),
        ("balance leastconn\nstick on src", Scheduler.SOURCE, "instead of least-conn"),
        ("stick match src,ipmask(24)\nstick store-request src", Scheduler.SOURCE, "stick:"),
        ("stick on req.cook(x)", Scheduler.ROUND_ROBIN, "only be known by its address"),
        ("stick on src if local", Scheduler.ROUND_ROBIN, "conditions"),
    ],
)
def test_how_a_server_is_chosen(balance: str, scheduler: Scheduler, says: str) -> None:
    config, made = loaded(f"{LISTEN}{balance}\nserver a 10.0.0.1:80\nserver b 10.0.0.2:80\n")
    assert config.services[0].scheduler is scheduler
    noted = " ".join(note.text for note in made.notes if note.line)
    assert says in noted
    assert bool(says) == bool(noted)


@pytest.mark.parametrize(
    ("server", "says"),
    [
        ("10.0.0.1:80 ssl", "speaks TLS to this server"),
        ("0.0.0.0:80", "the client connected to"),
        ("127.0.0.1:80", "loopback interface"),
        ("localhost:80", "loopback interface"),
        ("/run/x.sock", "a socket of this host"),
        ("10.0.0.1:http", "is not a port"),
        ("10.0.0.1:80 socks4 10.0.0.2:1080", "through a proxy"),
        ("2001:db8::1:80", "translates between IPv4 and IPv6"),
        ("www.example.com:80", "one name that is asked for"),
    ],
)
def test_servers_that_packets_cannot_be_sent_to(server: str, says: str) -> None:
    config, made = loaded(f"{LISTEN}server a {server}\nserver b 10.0.0.2:80\n")
    assert [b.name for b in config.services[0].backends] == ["b"]
    assert says in next(note.text for note in made.notes if note.line == 3)
    assert not made.is_complete


def test_one_name_becomes_the_source_of_servers() -> None:
    config, made = loaded(f"{LISTEN}server a www.example.com:8080 check\n")
    source = config.services[0].discover
    assert source is not None
    assert (source.dns, source.port) == ("www.example.com", 8080)
    assert told(made) == [(3, "www.example.com")]


def test_parameters_of_default_server_hold_until_they_are_taken_back() -> None:
    config, _ = loaded(
        f"{LISTEN}default-server check inter 5s weight 20 backup\n"
        "server a 10.0.0.1:80 no-backup\nserver b 10.0.0.2:80 weight 40\nserver b 10.0.0.2:80\n"
    )
    (service,) = config.services
    assert [(b.name, b.weight, b.backup) for b in service.backends] == [
        ("a", 20, False), ("b", 40, True),
    ]  # fmt: skip
    assert (service.health.kind, service.health.interval_s) == (CheckKind.TCP, 5.0)


def test_a_backend_s_own_rules_take_the_place_of_its_defaults() -> None:
    config, _ = loaded(
        "defaults\noption httpchk GET /a\nhttp-check expect status 204\n"
        f"{LISTEN}http-check expect status 200-299\nserver a 10.0.0.1:80 check\n"
        "defaults\nlisten y\nbind 192.0.2.10:81\nserver a 10.0.0.1:80 check\n"
    )
    first, second = config.services
    assert (first.health.path, first.health.expect_status) == ("/a", ((200, 299),))
    assert second.health.kind is CheckKind.TCP


@pytest.mark.parametrize(
    ("option", "kind", "path", "host"),
    [
        ("option httpchk", "OPTIONS", "/", ""),
        ("option httpchk /x", "OPTIONS", "/x", ""),
        (r"option httpchk HEAD /x HTTP/1.1\r\nHost:\ a.example", "HEAD", "/x", "a.example"),
    ],
)
def test_http_checks(option: str, kind: str, path: str, host: str) -> None:
    config, _ = loaded(f"{LISTEN}{option}\nserver a 10.0.0.1:80 check\n")
    check = config.services[0].health
    assert (check.method, check.path, check.host or "") == (kind, path, host)


def test_the_first_of_two_use_backend_without_a_condition_wins() -> None:
    config, made = loaded(
        "frontend x\nbind 192.0.2.10:80\nuse_backend a if TRUE\nuse_backend b\n"
        "default_backend a\nbackend a\nserver s 10.0.0.1:80\nbackend b\nserver t 10.0.0.2:80\n"
    )
    assert [b.name for b in config.services[0].backends] == ["t"]
    assert told(made) == [(3, "use_backend"), (6, "backend a")]


def test_a_file_is_recognised_by_its_content(run, tmp_path: Path) -> None:
    path = tmp_path / "some.conf"
    path.write_text(f"{LISTEN}server a 10.0.0.1:80\n")
    done = run("import", str(path), "-i", "eth0")
    assert done.code == 0
    assert [each["name"] for each in yaml.safe_load(done.out)["services"]] == ["x"]
    assert "fullnat, because" in done.err


# -- properties

VOCABULARY = st.sampled_from(
    ["global", "defaults", "frontend x", "backend x", "listen y", "listen y from z", "defaults z",
     "resolvers r", "peers p", "bind :80", "bind 192.0.2.10:80-90 ssl", "bind",
     "bind x:1 interface", "mode http", "mode tcp", "mode log", "server a 10.0.0.1:80 check",
     "server a", "server",
     'server b "${X}:80" check', "server c host:+1 backup weight 300", "server d [2001:db8::1]",
     "server-template t 1-3 _x._tcp.example.com resolvers r", "default-server inter 1 port x",
     "nameserver n 10.0.0.1:53", "default_backend x", "use_backend x", "use_backend x if y",
     "balance random(3)", "balance", "hash-type map-based", "hash-balance-factor 120",
     "stick on src", "stick", "stick-table type ip size 1", "option httpchk \\xff", "option",
     "option tcp-check", "http-check send hdr", "http-check expect ! status 2",
     "tcp-check send \\xff\\x00", "tcp-check expect string hex:", "tcp-check send-binary zz",
     "tcp-check connect port 99999", "timeout check 1d", "timeout client", "timeout tunnel 9h",
     "no option httpchk", "default", "no", ".if x", ".else", ".endif", ".notice x", "disabled",
     "source 0.0.0.0 usesrc client", "acl a src 1", "http-request deny", "huh", "stats uri /",
     "server e 10.0.0.9:1 agent-check agent-port 1 slowstart x", "server f 10.0.0.1:80 source 1",
     "external-check command /x", "persist", "server g \\xff.example:1", "listen \\xff\\xfe"]
)  # fmt: skip


def _holds(lines: list[Line]) -> None:
    ledger = Ledger(lines)
    made = convert(ledger, SITE)
    assert [line for line in lines if not ledger.knows(line)] == []
    with contextlib.suppress(ConfigError):
        parse(write_yaml(made.document), "x")


@given(st.lists(VOCABULARY, max_size=30))
def test_every_line_is_converted_named_or_counted(lines: list[str]) -> None:
    with contextlib.suppress(ConfigError):
        _holds(read("\n".join(lines), "x.cfg"))


@given(st.text())
def test_any_text_is_converted_or_refused(text: str) -> None:
    with contextlib.suppress(ConfigError):
        _holds(read(text, "x.cfg"))
