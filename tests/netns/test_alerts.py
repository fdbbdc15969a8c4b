"""Alerts of a real Suricata on a balancer's interface, about real and forged requests."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.model import Forward, Hook
from lbctl.lab import netns
from tests.netns.site import Site, site, wait_until
from tests.netns.test_threats import address_of, answers, guard

ANY_PACKET, REQUEST, WARM, NO_SUCH = 1000001, 1000002, 1000003, 1000004
RULES = f"""
alert tcp any any -> any 80 (msg:"evil in a packet"; content:"evil"; priority:1; sid:{ANY_PACKET};)
alert http any any -> any any (msg:"passwords asked for"; http.uri; content:"/etc/passwd"; \
priority:2; sid:{REQUEST};)
alert http any any -> any any (msg:"warm"; http.uri; content:"/warm"; priority:9; sid:{WARM};)
"""
# Flow logs, too: the agent must find the alerts among other events.
SETTINGS = """\
%YAML 1.1
---
vars: {address-groups: {HOME_NET: any, EXTERNAL_NET: any}}
default-rule-path: FOLDER
rule-files: [test.rules]
default-log-dir: FOLDER
outputs:
  - eve-log:
      enabled: yes
      filetype: regular
      filename: eve.json
      xff: {enabled: yes, mode: extra-data, deployment: reverse, header: X-Forwarded-For}
      types: [{alert: {tagged-packets: no}}, flow]
af-packet: [{interface: eth0, cluster-id: 99, cluster-type: cluster_flow}]
app-layer: {protocols: {http: {enabled: yes}}}
logging: {default-log-level: notice, outputs: [{console: {enabled: yes}}]}
"""
# An open connection whose request is not over yet, and packets with its addresses and ports but
# with wrong numbers, and others that belong to no connection.
FORGED = """
import socket, struct, sys
vip, ports = sys.argv[1], [int(each) for each in sys.argv[3:]]
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
asks = b"GET /etc/passwd?evil HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n"
ends = socket.inet_aton(sys.argv[2]), socket.inet_aton(vip)
for port in ports:
    head = struct.pack("!BBHHHBBH4s4s", 69, 0, 40 + len(asks), 1, 0, 64, 6, 0, *ends)
    tcp = struct.pack("!HHIIBBHH", port, 80, 12345, 6789, 0x50, 0x18, 64240, 0)
    pseudo = b"".join(ends) + struct.pack("!HH", 6, 20 + len(asks))
    words = pseudo + tcp + b"\\0\\0" + asks + b"\\0" * (len(asks) % 2)
    total = sum(struct.unpack(f"!{len(words) // 2}H", words))
    total = (total & 0xFFFF) + (total >> 16)
    check = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    segment = tcp[:16] + struct.pack("!HH", check, 0) + asks
    raw.sendto(head + segment, (vip, 0))
"""
OPEN = """
import socket, sys
held = socket.create_connection((sys.argv[1], 80))
held.sendall(b"POST /v1/x HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 9\\r\\n\\r\\nabc")
print(held.getsockname()[1], flush=True)
sys.stdin.read()
"""


@dataclass
class Watched:
    """A lab whose balancer's interface a Suricata watches."""

    site: Site
    folder: Path
    suricata: subprocess.Popen[str]

    @property
    def eve(self) -> Path:
        return self.folder / "eve.json"

    def configure(self, **settings: object) -> None:
        document = self.site.config()
        document["suricata"] = {"eve": str(self.eve)} | settings
        self.site.reload(document)
        blocks = [each["prefix"] for each in guard(self.site)["blocks"]]
        if blocks:
            self.site.api.post("/v1/guard/unblock", {"prefixes": blocks})

    def ask(self, client: str, path: str, *more: str) -> None:
        """One request, whatever becomes of it: it may be cut off when its source is blocked."""
        url = f"http://{self.site.lab.vips[0]}{path}"
        self.site.run(client, "curl", "-s", "-o", "/dev/null", "-m", "5", *more, url)

    def count(self, signature: int, outcome: str) -> int:
        return sum(
            each["alerts"]
            for each in guard(self.site)["alerts"]["recent"]
            if (each["signature"], each["outcome"]) == (signature, outcome)
        )

    def warm(self) -> None:
        """Ask until an alert of now has been read, and so has all before it."""
        before = self.count(WARM, "logged")

        def is_read() -> bool:
            self.ask("client2", "/warm")
            return self.count(WARM, "logged") > before

        wait_until("an alert was read", is_read)

    def blocked(self) -> list[str]:
        return sorted(each["prefix"] for each in guard(self.site)["blocks"])


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("suricata")
    (folder / "test.rules").write_text(RULES)
    (folder / "s.yaml").write_text(SETTINGS.replace("FOLDER", str(folder)))
    name = f"st-alerts-{os.getpid()}"
    options = {"forward": Forward.NAT, "backends": 2, "clients": 2, "hook": Hook.TC}
    with site(name=name, **options) as built:
        inside = netns.entering(built.balancer.namespace)
        command = ("suricata", "-c", str(folder / "s.yaml"), "--af-packet=eth0", "-k", "none")
        with (folder / "log").open("w") as log:
            process = subprocess.Popen([*inside, *command], stdout=log, stderr=log, text=True)
        try:
            found = Watched(built, folder, process)
            found.configure()
            found.warm()
            yield found
        finally:
            process.kill()
            process.wait()


@contextlib.contextmanager
def open_request(here: Watched, client: str) -> Iterator[int]:
    """A connection with half a request; its port."""
    inside = netns.entering(here.site.lab.node(client).namespace)
    command = [*inside, sys.executable, "-c", OPEN, str(here.site.lab.vips[0])]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.communicate()


def test_alerts_are_shown_and_nobody_is_blocked(here: Watched) -> None:
    here.configure()
    here.ask("client", "/etc/passwd")
    wait_until("it is shown", lambda: here.count(REQUEST, "logged"))
    found = guard(here.site)["alerts"]
    (seen,) = [each for each in found["recent"] if each["signature"] == REQUEST]
    assert seen["text"] == "passwords asked for"
    assert seen["severity"] == 2
    assert seen["source"] == address_of(here.site, "client")
    assert (found["problem"], found["unreadable_lines_total"]) == ("", 0)
    assert here.blocked() == []
    assert answers(here.site, "client")


def test_a_request_blocks_its_client_and_nobody_else(here: Watched) -> None:
    here.configure(block_severity=2)
    here.ask("client", "/etc/passwd")
    wait_until("it is blocked", here.blocked)
    (block,) = guard(here.site)["blocks"]
    assert block["prefix"] == address_of(here.site, "client")
    assert block["why"] == f"suricata: {REQUEST} passwords asked for"
    assert not answers(here.site, "client", 3)
    assert answers(here.site, "client2")
    # The request was seen twice: on its way to the VIP, and on its way to the backend.
    wait_until("both alerts are counted", lambda: here.count(REQUEST, "blocked") >= 2)
    assert guard(here.site)["alerts"]["blocked_total"] == 1
    metrics = here.site.run("lb1", "curl", "-s", "http://127.0.0.1:9117/metrics").stdout
    assert "steelyard_alerts_blocked_total 1.0" in metrics
    assert "steelyard_alerts_broken 0.0" in metrics


def test_forged_packets_block_nobody(here: Watched) -> None:
    here.configure(block_severity=2)
    victim, vip = address_of(here.site, "client"), str(here.site.lab.vips[0])
    before = here.count(ANY_PACKET, "unproven")
    with open_request(here, "client") as port:
        wait_until(
            "the flow is recorded",
            lambda: any(
                each["client"] == victim and each["client_port"] == port
                for each in here.site.get("/v1/flows?limit=100")["flows"]
            ),
        )
        command = (sys.executable, "-c", FORGED, vip, victim, str(port), "4444")
        sent = here.site.run("client2", *command)
        assert sent.returncode == 0, sent.stderr
        wait_until("both are seen", lambda: here.count(ANY_PACKET, "unproven") >= before + 2)
        here.warm()
    lines = [json.loads(line) for line in here.eve.read_text().splitlines()]
    about = [
        each
        for each in lines
        if each.get("alert", {}).get("signature_id") == ANY_PACKET and each["src_port"] == port
    ]
    # The awkward case: Suricata takes this packet for a part of the connection.
    assert any(each.get("app_proto") == "http" for each in about)
    assert all("tx_id" not in each or each["tx_guessed"] for each in about)
    assert here.blocked() == []
    assert answers(here.site, "client")


def test_trusted_sources_are_spared(here: Watched) -> None:
    document = here.site.config()
    plain = json.loads(json.dumps(document))
    document["lists"] = {"known": [f"{address_of(here.site, 'client')}/32"]}
    for service in document["services"]:
        service["trusted"] = ["known"]
    here.site.write_config(document)
    here.configure(block_severity=2)
    before = here.count(REQUEST, "spared")
    here.ask("client", "/etc/passwd")
    wait_until("it is spared", lambda: here.count(REQUEST, "spared") >= before + 2)
    assert here.blocked() == []
    here.site.write_config(plain)
    here.configure()


def test_the_client_that_a_proxy_names_is_blocked(here: Watched) -> None:
    proxy = address_of(here.site, "client2")
    here.configure(block_severity=2, proxies=[proxy])
    here.ask("client2", "/etc/passwd", "-H", "X-Forwarded-For: 192.0.2.1, 198.51.100.7")
    wait_until("it is blocked", here.blocked)
    assert here.blocked() == ["198.51.100.7"]
    assert answers(here.site, "client2")
    spared = here.count(REQUEST, "spared")
    here.ask("client2", "/etc/passwd")
    wait_until("it names nobody", lambda: here.count(REQUEST, "spared") > spared)
    assert here.blocked() == ["198.51.100.7"]
    # Anybody can write such a header.
    here.ask("client", "/etc/passwd", "-H", "X-Forwarded-For: 203.0.113.9")
    client = address_of(here.site, "client")
    wait_until("the sender is blocked", lambda: client in here.blocked())
    assert here.blocked() == sorted(["198.51.100.7", client])


def test_a_signature_that_fires_for_everybody_blocks_five(here: Watched) -> None:
    proxy = address_of(here.site, "client2")
    here.configure(block_signatures=[REQUEST], proxies=[proxy])
    for number in range(12):
        here.ask("client2", "/etc/passwd", "-H", f"X-Forwarded-For: 198.51.100.{number}")
    wait_until("the others are not blocked", lambda: here.count(REQUEST, "bounded"))
    here.warm()
    assert len(here.blocked()) == 5


def test_alerts_are_read_after_the_file_was_rotated(here: Watched) -> None:
    here.configure(block_severity=2)
    here.eve.rename(here.folder / "eve.json.1")
    here.suricata.send_signal(signal.SIGHUP)
    wait_until("there is a new file", here.eve.exists)
    here.warm()
    assert (here.folder / "eve.json").stat().st_size > 0
    here.ask("client", "/etc/passwd")
    wait_until("it is blocked", here.blocked)


def test_a_file_that_anybody_can_write_is_not_read(here: Watched) -> None:
    here.configure()
    loose = here.folder / "loose.json"
    loose.touch()
    loose.chmod(0o666)
    document = here.site.config()
    document["suricata"] = {"eve": str(loose), "block_severity": 9}
    here.site.reload(document)
    wait_until("it is said", lambda: guard(here.site)["alerts"]["problem"])
    problem = guard(here.site)["alerts"]["problem"]
    assert problem == f"{loose}: any user of this host can write to it: chmod o-w {loose}"
    loose.chmod(0o644)
    wait_until("it is read", lambda: not guard(here.site)["alerts"]["problem"])
