"""``lbctl import``: real configurations of keepalived, converted."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from agent.config.load import parse
from agent.errors import ConfigError
from agent.failover.model import Authentication
from agent.model import CheckKind, Forward, Protocol, Scheduler
from lbctl import keepalived, keepalived_conf
from lbctl.converted import Converted

SAMPLES = Path("/usr/share/doc/keepalived/samples")
# Whose results a person has to change: a VIP that is also a real server's address.
TO_BE_CHANGED = {"keepalived.conf.virtual_server_group"}
VRRP = """\
vrrp_instance VI_1 {
    interface eth0
    virtual_router_id 51
    priority 150
    advert_int 1
    authentication {
        auth_type PASS
        auth_pass secret
    }
    virtual_ipaddress { 192.0.2.10/24 dev eth0 }
}
"""
WEB = """\
virtual_server 192.0.2.10 80 {
    delay_loop 6
    lb_algo wlc   ! the least
    lb_kind DR
    protocol TCP
    sorry_server 192.0.2.30 80
    real_server 192.0.2.21 80 {
        weight 3
        HTTP_GET
        {
            url { path "/health"
                  status_code 200 }
            connect_timeout 3
            retry 2
        }
    }
    real_server 192.0.2.22 80 {
        weight 1
        HTTP_GET {
            url {
                path "/health"
                status_code 200
            }
            connect_timeout 3
            retry 2
        }
    }
}
"""


BAD_RANGE = """\
virtual_server_group G {
    x-3 80
}
virtual_server group G {
}
vrrp_instance A {
    interface eth0
}
"""


def convert(text: str, interface: str | None = None) -> Converted:
    return keepalived.convert(keepalived_conf.parse(text, "x.conf"), interface)


def loaded(text: str, interface: str | None = None):
    made = convert(text, interface)
    return parse(yaml.safe_dump(made.document, sort_keys=False), "x"), made.notes


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="keepalived's documentation is not installed")
def test_keepalived_s_own_samples_are_converted(run) -> None:
    found = sorted(SAMPLES.glob("keepalived.conf.*"))
    assert len(found) > 15
    for path in found:
        done = run("import", str(path), "-i", "eth0", "--from", "keepalived")
        assert done.code == int(path.name in TO_BE_CHANGED), f"{path}: {done.err}"
        assert yaml.safe_load(done.out)["interface"] == "eth0"
        assert done.out.endswith("\n")


def test_a_web_service_and_its_vrrp_instance() -> None:
    config, notes = loaded(VRRP + WEB)
    assert not notes
    assert config.interface == "eth0"
    (web,) = config.services
    assert (str(web.key), web.forward, web.scheduler) == (
        "tcp://192.0.2.10:80", Forward.DSR, Scheduler.LEAST_CONN,
    )  # fmt: skip
    assert [(b.name, b.weight, b.backup) for b in web.backends] == [
        ("rs-1", 300, False), ("rs-2", 100, False), ("sorry", 100, True),
    ]  # fmt: skip
    check = web.health
    assert (check.kind, check.path, check.interval_s, check.timeout_s, check.fall) == (
        CheckKind.HTTP, "/health", 6.0, 3.0, 3,
    )  # fmt: skip
    (instance,) = config.failover.instances
    assert (instance.vrid, instance.version, instance.priority) == (51, 2, 150)
    assert instance.interval_s == 1.0
    assert (instance.authentication, instance.password) == (Authentication.PASSWORD, "secret")


def test_what_is_different_or_missing_is_named_with_its_line() -> None:
    text = (
        WEB.replace("lb_kind DR", "lb_kind DR\n    persistence_timeout 50\n    quorum 2")
        .replace("lb_algo wlc", "lb_algo sed")
        .replace("retry 2", "retry 5", 1)
    )
    config, notes = loaded(f"include /etc/more.conf\n{text}", "eth1")
    told = [(note.line, note.text.partition(":")[0]) for note in notes]
    assert told == [
        (1, "/etc/more.conf is not read"), (4, "sed becomes least-conn, the nearest"),
        (6, "persistence_timeout"), (7, "quorum"),
        (22, "a service has one check"),
    ]  # fmt: skip
    assert config.services[0].scheduler is Scheduler.SOURCE


@pytest.mark.parametrize(
    ("given_", "kind"),
    [
        ("TCP_CHECK { connect_port 8080 }", CheckKind.TCP),
        ("SSL_GET { url { path / } }", CheckKind.HTTPS),
        ('MISC_CHECK { misc_path "/usr/bin/check -a 1" }', CheckKind.EXEC),
        ("DNS_CHECK { name example.org type A }", CheckKind.DNS),
        ("PING_CHECK", CheckKind.PING),
        ("UDP_CHECK", CheckKind.UDP),
        ("SMTP_CHECK { retry 1 }", CheckKind.TCP),
        ("", CheckKind.NONE),
    ],
)
def test_checks(given_: str, kind: CheckKind) -> None:
    statement = given_.replace(" { ", " {\n").replace(" } ", "\n}\n").replace(" }", "\n}")
    statement = statement.replace(" type A", "\ntype A")
    head = (
        "virtual_server 192.0.2.10 53 {\nprotocol UDP\nlb_kind NAT\nreal_server 10.0.0.1 5353 {\n"
    )
    text = f"{head}{statement}\n}}\n}}\n"
    config, _ = loaded(text, "eth0")
    (service,) = config.services
    assert service.key.protocol is Protocol.UDP
    assert service.health.kind is kind
    assert service.backends[0].port == 5353


def test_groups_ranges_marks_and_tunnels() -> None:
    text = """\
virtual_server_group G {
    192.0.2.10-12 80
    2001:db8::a-c 80
    fwmark 5
}
virtual_server group G {
    lvs_method TUN type gue port 6080
    lvs_sched mh
    real_server 10.0.0.1 80 {
    }
}
virtual_server fwmark 7 {
    real_server 10.0.0.1 80 { weight 1 }
}
virtual_server group H { lb_algo rr }
"""
    config, notes = loaded(text, "eth0")
    assert [str(service.key.vip) for service in config.services] == [
        "192.0.2.10", "192.0.2.11", "192.0.2.12", "2001:db8::a", "2001:db8::b", "2001:db8::c",
    ]  # fmt: skip
    assert {(s.forward, s.scheduler) for s in config.services} == {(Forward.GUE, Scheduler.MAGLEV)}
    assert [(note.line, note.text.partition(":")[0]) for note in notes] == [
        (4, "fwmark"), (12, "fwmark"), (15, "there is no virtual_server_group H"),
    ]  # fmt: skip


def test_scripts_run_as_the_user_that_the_file_names() -> None:
    text = """\
global_defs { script_user keepalived_script adm }
vrrp_script chk {
    script "/bin/true"
    user other
}
vrrp_instance A {
    interface eth0
    virtual_router_id 7
    track_script { chk }
    virtual_ipaddress { 192.0.2.10 }
}
"""
    config, notes = loaded(text, "eth0")
    (instance,) = config.failover.instances
    assert config.script_user == "keepalived_script"
    assert [each.run_as for each in instance.track.scripts] == ["keepalived_script"]
    assert [(note.line, note.text.partition(":")[0]) for note in notes] == [
        (1, "script_user"), (4, "user"),
    ]  # fmt: skip


def test_vrrp_in_full() -> None:
    text = """\
global_defs { vrrp_version 3 }
vrrp_script chk {
    script "killall -0 nginx"
    interval 2
    weight -20
}
vrrp_sync_group both {
    group { A B }
}
vrrp_instance A {
    state BACKUP
    interface eth1
    virtual_router_id 7
    nopreempt
    preempt_delay 30
    unicast_src_ip 192.0.2.1
    unicast_peer { 192.0.2.2 }
    garp_master_delay 3
    track_interface { eth2 }
    track_script { chk }
    virtual_ipaddress { 192.0.2.10 }
    notify_master /bin/x
}
vrrp_instance B {
    interface eth0
    virtual_router_id 8
    virtual_ipaddress { 2001:db8::10/128 }
}
"""
    config, notes = loaded(text, "eth0")
    first, second = config.failover.instances
    assert (first.group, second.group) == ("both", "both")
    assert (first.interface, first.version, first.preempt, first.preempt_delay_s) == (
        "eth1", 3, False, 0.0,
    )  # fmt: skip
    assert [str(peer) for peer in first.peers] == ["192.0.2.2"]
    assert [each.name for each in first.track.interfaces] == ["eth2"]
    (script,) = first.track.scripts
    assert (script.command, script.weight) == (("/bin/sh", "-c", "killall -0 nginx"), -20)
    assert [note.line for note in notes] == [15, 22]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("virtual_server 192.0.2.10 80 {", "x.conf:1: the braces of virtual_server are not closed"),
        ("a {\n}\n}\n", "x.conf:3: a brace is closed that was not opened"),
        ('a "b\n', "x.conf:1: a quote is not closed"),
        (VRRP.replace("priority 150", "priority high"), "line 4: priority: 'high' is not a number"),
        (BAD_RANGE, "line 2: x-3 is not a range of addresses"),
        ("virtual_server 192.0.2.10 80 {\n}\n", "no vrrp_instance names an interface"),
    ],
)
def test_files_that_are_broken(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        convert(text)
    assert says in str(refused.value)


def test_a_file_that_is_not_there(run) -> None:
    done = run("import", "/nowhere/keepalived.conf")
    assert done.code == 1
    assert "cannot be read" in done.err
    assert "--config" not in done.err  # that names the agent's own file


def test_a_file_of_another_program_is_refused(run, tmp_path: Path) -> None:
    path = tmp_path / "nginx.conf"
    path.write_text("http {\n}\n")
    done = run("import", str(path))
    assert done.code == 1
    assert "no section of keepalived's or HAProxy's configuration" in done.err


WORDS = st.sampled_from(
    ["virtual_server", "real_server", "vrrp_instance", "192.0.2.1", "80", "{", "}", "\n", "weight",
     "x", "virtual_ipaddress", "TCP_CHECK", "HTTP_GET", "url", "delay_loop", "lb_kind", "!", '"',
     "vrrp_script", "track_script", "retry", "persistence_granularity", "group", "fwmark", "3-"]
)  # fmt: skip


@given(st.lists(WORDS, max_size=40))
def test_whatever_a_file_holds_it_is_converted_or_refused(words: list[str]) -> None:
    with contextlib.suppress(ConfigError):
        convert(" ".join(words), "eth0")
