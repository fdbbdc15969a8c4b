"""A real Prometheus scrapes a pair of balancers: every query of our dashboards and alerts is asked
(`make soak`, where prometheus is installed).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import socket
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.metrics.families import FAMILIES
from agent.model import Forward, Scheduler
from deploy.grafana.boards import DASHBOARDS
from deploy.prometheus.promql import selectors
from lbctl.lab import netns, processes
from tests.netns.site import Site, site, wait_until

PROMETHEUS = shutil.which("prometheus")
RULES = Path(__file__).parents[2] / "deploy" / "prometheus" / "steelyard.rules.yml"

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.soak,
    pytest.mark.skipif(
        PROMETHEUS is None, reason="Prometheus is not installed: apt install prometheus"
    ),
]

# What this lab has no data of, and why. Each is expected to be empty: a wrong name would be, too.
ABSENT = {
    "steelyard_gpu_clock_ratio": "no GPU",
    "steelyard_gpu_throttled": "no GPU",
    "steelyard_gpu_failing": "no GPU",
    "steelyard_backend_certificate_expires_timestamp_seconds": "no check by https",
    "steelyard_service_cookies_ready": "fullnat has no SYN cookies",
    "steelyard_failover_problem": "the balancers agree",
    "steelyard_failover_adverts_discarded_total": "none was refused",
    "steelyard_flow_sync_flows_dropped_total": "all were taken",
    "steelyard_flow_sync_refused_total": "the peer is well",
    "steelyard_flow_sync_strangers_total": "nobody else came",
    "steelyard_fleet_info": "no fleet",
    "steelyard_fleet_version": "no fleet",
    "steelyard_fleet_wanted_version": "no fleet",
    "steelyard_fleet_store_up": "no fleet",
    "steelyard_fleet_frozen": "no fleet",
    "steelyard_fleet_refused": "no fleet",
}
# Of a page, what stands for time and for all values of a variable.
_GRAFANA = {"$__rate_interval": "20s", "$instance": ".*", "$service": ".*"}


class _Relay(BaseHTTPRequestHandler):
    """Gives an agent's metrics, from its Unix socket: /NAME/metrics, by the folder of the lab."""

    folder: Path

    def do_GET(self) -> None:
        name = self.path.split("/")[1]
        with socket.socket(socket.AF_UNIX) as asked:
            asked.connect(str(self.folder / f"{name}.sock"))
            asked.sendall(b"GET /metrics HTTP/1.0\r\nHost: lab\r\n\r\n")
            with asked.makefile("rb") as answer:
                self.wfile.write(answer.read())

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class Server:
    """A Prometheus that runs."""

    def __init__(self, port: int) -> None:
        self._port = port

    def is_ready(self) -> bool:
        with contextlib.suppress(OSError):
            return self._ask("/-/ready")[0] == 200
        return False

    def get(self, path: str, **query: str) -> Any:
        """What its API answers; a query that it cannot read fails the test."""
        status, text = self._ask(f"/api/v1/{path}?{urllib.parse.urlencode(query)}")
        assert status == 200, f"{path} {query}: {text}"
        return json.loads(text)["data"]

    def query(self, expression: str) -> list[Any]:
        return list(self.get("query", query=expression)["result"])

    def _ask(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        with contextlib.closing(connection):
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@contextlib.contextmanager
def _relay(folder: Path) -> Iterator[int]:
    handler = type("Relay", (_Relay,), {"folder": folder})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_port
        finally:
            server.shutdown()


@contextlib.contextmanager
def _prometheus(relay: int, folder: Path) -> Iterator[Server]:
    """With our rules, and both agents as targets of the job that they are written for."""
    relabel = [
        {"source_labels": ["__address__"], "target_label": "instance"},
        {
            "source_labels": ["__address__"],
            "target_label": "__metrics_path__",
            "replacement": "/$1/metrics",
        },
        {"target_label": "__address__", "replacement": f"127.0.0.1:{relay}"},
    ]
    targets = [{"targets": ["lb1", "lb2"]}]
    job = {"job_name": "steelyard", "static_configs": targets, "relabel_configs": relabel}
    document = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [job],
    }
    configuration, port = folder / "prometheus.yml", _free_port()
    configuration.write_text(yaml.safe_dump(document))
    command = [str(PROMETHEUS), f"--config.file={configuration}", "--log.level=warn"]
    command += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    server = Server(port)
    try:
        wait_until("Prometheus is ready", server.is_ready)
        yield server
    finally:
        process.terminate()
        process.wait(timeout=60)


@contextlib.contextmanager
def _clients(here: Site) -> Iterator[None]:
    """Requests to all services, more of them than a limit allows."""
    client = [*netns.entering(here.lab.node("client").namespace), sys.executable, "-m"]
    vip4, vip6 = here.lab.vips
    web = ["lbctl.lab.load", "--target", f"{vip4}:80", "--target", f"[{vip6}]:80"]
    web += ["--rate", "60", "--keep-alive", "30", "--streams", "30"]
    chat = ["lbctl.lab.prompts", "--target", f"{vip4}:8000", "--rate", "20"]
    started = [
        subprocess.Popen(
            [*client, *words],
            stdout=subprocess.DEVNULL,
            env=processes.environment(here.lab.run_dir),
        )
        for words in (web, chat)
    ]
    try:
        yield
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(timeout=120)


def _configure(here: Site) -> None:
    """What has metrics only where it is configured."""
    document = here.config()
    document["lists"] = {"known": ["198.51.100.0/24"]}
    for service in document["services"]:
        service["deny"] = ["known"]
        service["scale"] = {"connections": 8}
        service["limits"] = {"new_flows_per_source": "20/s"}
        if service["name"] == "chat":
            service["affinity"] = {"by": "source"}
    here.reload(document)


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Server]]:
    folder = tmp_path_factory.mktemp("prometheus")
    options: dict[str, Any] = {"forward": Forward.FULLNAT, "scheduler": Scheduler.LEAST_LOAD}
    engines = {"engines": ("h100", "a100"), "time_scale": 10.0, "backends": 2, "balancers": 2}
    with site(name="st-prom", **options, **engines) as here:
        _configure(here)
        with (
            _clients(here),
            _relay(here.lab.run_dir) as relay,
            _prometheus(relay, folder) as server,
        ):
            yield here, server


def _asked() -> Iterator[tuple[str, str]]:
    """Every query of every dashboard, as Grafana sends it, with the panel that has it."""
    for dashboard in DASHBOARDS:
        for panel in dashboard.document()["panels"]:
            for target in panel.get("targets", ()):
                expression = target["expr"]
                for name, value in _GRAFANA.items():
                    expression = expression.replace(name, value)
                yield f"{dashboard.name}: {panel['title']}: {expression}", expression


def _rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return list(group["rules"])


def _without_data(server: Server, queries: dict[str, str]) -> dict[str, str]:
    """Those that have no data, though time was given to all; what is absent is left out."""
    missing = {
        where: expression
        for where, expression in queries.items()
        if not any(each.series in {*ABSENT, "ALERTS"} for each in selectors(expression))
    }
    assert missing

    def have_data() -> bool:
        for where in [where for where, asked in missing.items() if server.query(asked)]:
            del missing[where]
        return not missing

    with contextlib.suppress(AssertionError):
        wait_until("all have data", have_data)
    return missing


def test_every_query_of_the_dashboards_has_data(scraped: tuple[Site, Server]) -> None:
    _, server = scraped
    assert _without_data(server, dict(_asked())) == {}


def test_what_this_lab_has_no_data_of_is_asked_without_error(
    scraped: tuple[Site, Server],
) -> None:
    _, server = scraped
    assert {family.name for family in FAMILIES} > set(ABSENT)
    assert [series for series in ABSENT if server.query(series)] == []
    for where, expression in _asked():
        if any(each.series in ABSENT for each in selectors(expression)):
            assert isinstance(server.query(expression), list), where


def test_variables_have_values(scraped: tuple[Site, Server]) -> None:
    _, server = scraped
    found = {
        label: server.get(f"label/{label}/values", **{"match[]": series})
        for label, series in (
            ("instance", "steelyard_build_info"),
            ("service", 'steelyard_service_info{instance=~".*"}'),
        )
    }
    assert found == {"instance": ["lb1", "lb2"], "service": ["chat", "web", "web6"]}


def test_every_series_of_the_alerts_has_data(scraped: tuple[Site, Server]) -> None:
    _, server = scraped
    wanted = {
        f"{rule['alert']}: {selector.text}": selector.text
        for rule in _rules()
        for selector in selectors(rule["expr"])
    }
    assert _without_data(server, wanted) == {}


def test_every_alert_is_evaluated_without_error(scraped: tuple[Site, Server]) -> None:
    _, server = scraped

    def rules() -> list[Any]:
        return [rule for group in server.get("rules")["groups"] for rule in group["rules"]]

    wait_until("all are evaluated", lambda: all(r["health"] != "unknown" for r in rules()))
    assert [rule["name"] for rule in rules()] == [rule["alert"] for rule in _rules()]
    assert [(r["name"], r.get("lastError")) for r in rules() if r["health"] != "ok"] == []


def test_an_alert_fires_and_says_what_is_wrong(scraped: tuple[Site, Server]) -> None:
    here, server = scraped
    (firing,) = (asked for where, asked in _asked() if where.startswith("overview: Alerts"))
    processes.kill(here.lab.run_dir, "lb2-failover")

    def fired() -> list[Any]:
        # On a busy host, others may fire beside it.
        return [
            each
            for each in server.get("alerts")["alerts"]
            if each["state"] == "firing" and each["labels"]["alertname"] == "SteelyardFailoverDown"
        ]

    wait_until("the alert fires", fired, 180.0)
    wait_until("the dashboard shows it", lambda: server.query(firing))
    (alert,) = fired()
    assert alert["annotations"]["summary"] == "The failover process does not run on lb2"
