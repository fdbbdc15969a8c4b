"""What happens around the agent while it starts, changes and runs: nothing of it may cost state."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from agent.errors import SteelyardError
from lbctl.lab import build, failover, netns, processes
from tests.netns.site import Site, assert_unharmed, site, wait_until

MANY = 2000  # packets of a service
PINS = Path("/sys/fs/bpf/steelyard/st-faults-lb1")


@pytest.fixture(scope="module")
def lab() -> Iterator[Site]:
    with site(name="st-faults", backends=2) as built:
        yield built


def addresses(lab: Site) -> str:
    return lab.run(lab.balancer.name, "ip", "-br", "addr", "show", "eth0").stdout


def answers(lab: Site) -> bool:
    urls = (f"http://{lab.lab.vips[0]}/", f"http://[{lab.lab.vips[1]}]/")
    return all(lab.run("client", "curl", "-s", "-m", "60", url).returncode == 0 for url in urls)


def weights(lab: Site) -> dict[str, int]:
    backends = lab.get("/v1/services/web")["backends"]
    return {backend["name"]: backend["weight_configured"] for backend in backends}


@pytest.fixture
def fresh(lab: Site) -> Iterator[Site]:
    """The lab without an agent and without a trace of one; with one again afterwards."""
    good = lab.config()
    lab.stop_agent(signal.SIGTERM)
    path = str(lab.lab.config_path(lab.balancer))
    assert lab.agent("detach", "--config", path).returncode == 0
    yield lab
    lab.write_config(good)
    lab.start_agent()
    wait_until("all up", lambda: lab.get("/v1/services/web")["backends_up"] == 2)


def assert_no_trace(lab: Site) -> None:
    assert not PINS.exists()
    assert lab.xdp_program_id() == 0
    assert str(lab.lab.vips[0]) not in addresses(lab)
    assert not lab.run(lab.balancer.name, "nft", "list", "ruleset").stdout


@pytest.mark.parametrize(
    "taken",
    ["descriptors", *(pytest.param(t, marks=pytest.mark.soak) for t in ("socket", "metrics"))],
)
def test_a_first_start_that_is_refused_leaves_nothing_behind(fresh: Site, taken: str) -> None:
    lab, limit = fresh, "1024"
    document = lab.config() | {"metrics": "off"}
    blocker = lab.lab.run_dir / "blocked"
    if taken == "socket":
        blocker.mkdir()
        document["socket"] = str(blocker)
    elif taken == "metrics":
        document["metrics"] = "127.0.0.1:9555"
    else:
        limit = "24"
    lab.write_config(document)
    agent = [*processes.program("lb-agent", "agent.main"), "run", "--config"]
    command = f'ulimit -n {limit}; exec "$@"'
    holding = ["python3", "-m", "http.server", "-b", "127.0.0.1", "9555"]
    holder = subprocess.Popen(
        [*netns.entering(lab.balancer.namespace), *holding],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        if taken == "metrics":
            port = ["curl", "-s", "http://127.0.0.1:9555/"]
            wait_until(
                "the port is taken", lambda: not lab.run(lab.balancer.name, *port).returncode
            )
        config = str(lab.lab.config_path(lab.balancer))
        done = lab.run(lab.balancer.name, "bash", "-c", command, "-", *agent, config)
    finally:
        holder.kill()
        holder.wait()
        with contextlib.suppress(FileNotFoundError):
            blocker.rmdir()
    assert done.returncode == 1, (taken, done.stderr)
    assert "Traceback" not in done.stderr
    assert_no_trace(lab)


def test_sigterm_in_the_middle_of_a_first_start_leaves_nothing_or_all(fresh: Site) -> None:
    build.start_agent(fresh.lab, fresh.balancer)
    wait_until("it loads", PINS.exists)
    fresh.stop_agent(signal.SIGTERM)
    if fresh.xdp_program_id() == 0:
        assert_no_trace(fresh)
    assert "Traceback" not in (fresh.lab.run_dir / "lb1.log").read_text()


def test_sighup_in_the_middle_of_a_start_is_a_reload_after_it(lab: Site) -> None:
    lab.stop_agent(signal.SIGTERM)
    lab.lab.socket(lab.balancer).unlink(missing_ok=True)
    build.start_agent(lab.lab, lab.balancer)
    # the socket is the first thing that a start takes; there is no earlier sign of life
    wait_until("it starts", lab.lab.socket(lab.balancer).exists)
    document = lab.config()
    document["services"][0]["backends"][0]["weight"] = 9
    good = lab.config()
    lab.write_config(document)
    for _ in range(20):
        lab.signal_agent(signal.SIGHUP)
        time.sleep(0.02)

    def is_reloaded() -> bool:
        with contextlib.suppress(SteelyardError):  # the socket is there before it is listened at
            return weights(lab)["be1"] == 9
        return False

    wait_until("it was reloaded", is_reloaded)
    lab.write_config(good)
    lab.api.post("/v1/reload", {})


def test_killed_between_attaching_and_renaming_the_pin_it_starts_again(lab: Site) -> None:
    lab.stop_agent(signal.SIGKILL)
    (folder,) = PINS.iterdir()
    (folder / "program").rename(folder / "program_next")
    with lab.load() as load:
        lab.start_agent()
    assert_unharmed(load)
    assert (folder / "program").exists()
    assert not (folder / "program_next").exists()


def change_until_it_dies(lab: Site, dice: random.Random) -> tuple[dict[str, int], dict[str, int]]:
    """Weights that the agent confirmed, and the one that it may or may not have taken."""
    confirmed: dict[str, int] = {}
    while True:
        name, weight = dice.choice(("be1", "be2")), dice.randint(1, 1000)
        try:
            lab.edit("backend.set", service="web", backend=name, values={"weight": weight})
        except (SteelyardError, OSError):
            return confirmed, {name: weight}
        confirmed[name] = weight


@pytest.mark.parametrize("kills", [4, pytest.param(30, marks=pytest.mark.soak)])
def test_sigkill_at_any_moment_loses_no_change_that_was_confirmed(lab: Site, kills: int) -> None:
    dice = random.Random(7)
    wanted = weights(lab)
    for _ in range(kills):
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            changes = pool.submit(change_until_it_dies, lab, dice)
            time.sleep(0.05 + dice.random() * 0.2)
            lab.stop_agent(signal.SIGKILL)
            confirmed, unsure = changes.result()
        lab.start_agent()
        wanted |= confirmed
        found = weights(lab)
        assert all(found[name] in (wanted[name], unsure.get(name)) for name in found)
        wanted = found
        status = lab.get("/v1/status")
        assert status["dataplane"]["attached"]
        assert not status["agent"]["reconcile_problem"]
    for name in wanted:
        lab.edit("backend.set", service="web", backend=name, values={"weight": 100})


def test_changes_at_once_and_reloads_between_them_are_all_made(lab: Site) -> None:
    def work(number: int) -> None:
        backends = [{"name": "a", "address": "10.99.0.101"}]
        values = {"vip": f"10.99.0.{150 + number}", "port": 80, "backends": backends}
        name = f"s{number}"
        lab.edit("service.add", service=name, values=values)
        for index in range(5):
            body = {"service": name, "backend": f"b{index}"}
            address = f"10.99.0.{200 + index}"
            lab.edit("backend.add", **body, values={"address": address, "weight": number + 1})
            lab.edit("backend.set", **body, values={"state": "drain"})
        lab.edit("backend.remove", service=name, backend="b0")
        if number % 2:
            lab.edit("service.remove", service=name)

    before = lab.get("/v1/config")["config"]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(work, number) for number in range(4)]
        while not all(job.done() for job in jobs):
            lab.signal_agent(signal.SIGHUP)
            time.sleep(0.02)
        for job in jobs:
            job.result()
    made = {s["name"]: s for s in lab.get("/v1/config")["config"]["services"]}
    assert set(made) == {"web", "web6", "s0", "s2"}
    for number in (0, 2):
        given = {b["name"]: b for b in made[f"s{number}"]["backends"]}
        assert set(given) == {"a", "b1", "b2", "b3", "b4"}
        assert all(given[f"b{i}"]["weight"] == number + 1 for i in range(1, 5))
        assert all(given[f"b{i}"]["state"] == "drain" for i in range(1, 5))
        lab.edit("service.remove", service=f"s{number}")
    assert lab.get("/v1/config")["config"] == before


def test_another_name_costs_no_health(lab: Site) -> None:
    before = lab.get("/v1/config")["config"]["services"]
    renamed = lab.get("/v1/config")["config"]["services"]
    renamed[0]["name"] = "other"
    for backend in renamed[0]["backends"]:
        backend["name"] += "-renamed"
    wait_until("all up", lambda: lab.get("/v1/services/web")["backends_up"] == 2)
    with lab.load() as load:
        lab.edit("services.apply", values={"services": renamed})
        assert lab.get("/v1/services/other")["backends_up"] == 2
        lab.edit("services.apply", values={"services": before})
        assert lab.get("/v1/services/web")["backends_up"] == 2
    assert_unharmed(load)


def test_a_service_removed_and_made_anew_inherits_nothing(lab: Site) -> None:
    before = lab.get("/v1/config")["config"]["services"]
    web = next(service for service in before if service["name"] == "web")

    def packets(service: str) -> int:
        return int(lab.get(f"/v1/services/{service}")["packets_total"])

    with lab.load():
        wait_until("packets", lambda: packets("web") > MANY)
        other = packets("web6")
        lab.edit("service.remove", service="web")
        backends = [web["backends"][1] | {"name": "only"}]
        begun = time.monotonic()
        lab.edit("service.add", service="new", values=web | {"name": "new", "backends": backends})
        # To the other VIP come as many, however long these requests take on a busy host.
        new = packets("new")
        assert new < packets("web6") - other + MANY // 2
        flows = lab.get("/v1/flows", limit="1000", service="new")["flows"]
        # Those that have come since are its own.
        assert all(flow["age_s"] <= time.monotonic() - begun for flow in flows), flows
        wait_until("it is up", lambda: lab.get("/v1/services/new")["backends_up"] == 1)
    lab.edit("services.apply", values={"services": before})
    wait_until("all up", lambda: lab.get("/v1/services/web")["backends_up"] == 2)


def test_a_vip_that_somebody_takes_off_comes_back(lab: Site) -> None:
    for vip in lab.lab.vips:
        lab.run(lab.balancer.name, "ip", "addr", "del", str(vip), "dev", "eth0")
    wait_until("they are back", lambda: all(str(vip) in addresses(lab) for vip in lab.lab.vips))

    def told() -> set[str]:
        events = lab.get("/v1/events", event="vip put back", level="warning")["events"]
        return {each["fields"]["address"] for each in events}

    # It is told of after the kernel has the address.
    wait_until("it is told", lambda: told() == {str(vip) for vip in lab.lab.vips})


def test_a_vip_that_cannot_be_added_stops_no_start_and_refuses_no_reload(lab: Site) -> None:
    def ipv6(off: int) -> None:
        setting = f"net.ipv6.conf.eth0.disable_ipv6={off}"
        assert lab.run(lab.balancer.name, "sysctl", "-qw", setting).returncode == 0

    def agent() -> dict[str, str]:
        status: dict[str, str] = lab.get("/v1/status")["agent"]
        return status

    ipv6(1)
    try:
        lab.stop_agent(signal.SIGTERM)
        lab.start_agent()
        assert "disable_ipv6=0" in agent()["reconcile_problem"]
        with pytest.raises(SteelyardError):
            lab.api.post("/v1/reload", {})
        assert not agent()["config_problem"]
    finally:
        ipv6(0)
        own = f"{lab.balancer.ipv6}/64"
        lab.run(lab.balancer.name, "ip", "addr", "add", own, "dev", "eth0", "nodad")
    wait_until("it was tried again", lambda: not agent()["reconcile_problem"])
    wait_until("both VIPs answer", lambda: answers(lab))


def test_an_interface_that_is_made_anew_balances_again(lab: Site) -> None:
    switch, balancer = f"{lab.lab.name}-switch", lab.balancer
    # As after a driver is loaded again: another MAC would have to be learned by everybody.
    mac = lab.run(balancer.name, "ip", "-br", "link", "show", "eth0").stdout.split()[2]
    lab.run(balancer.name, "ip", "link", "del", "eth0")
    wait_until("it is missed", lambda: not lab.get("/v1/status")["dataplane"]["attached"])
    commands = (
        f"ip -n {switch} link add lb1 type veth peer name eth0 netns {balancer.namespace}",
        f"ip -n {switch} link set lb1 master br0 up",
        f"ip addr add {balancer.ipv4}/24 dev eth0",
        f"ip addr add {balancer.ipv6}/64 dev eth0 nodad",
        "ethtool -K eth0 tx off",
        f"ip link set eth0 address {mac} up",
    )
    done = lab.run(balancer.name, "sh", "-ec", "\n".join(commands))
    assert done.returncode == 0, done.stderr
    far_end = [*processes.program("lb-agent", "agent.main"), "pass", "--interface", "lb1"]
    subprocess.run([*netns.entering(switch), *far_end], check=True, capture_output=True)
    wait_until("both VIPs answer", lambda: answers(lab))
    wait_until("it is attached", lambda: lab.get("/v1/status")["dataplane"]["attached"])
    wait_until("all is well", lambda: not lab.get("/v1/status")["agent"]["reconcile_problem"])


def test_a_start_with_a_broken_file_goes_on_with_the_last_good_one(lab: Site) -> None:
    good = lab.lab.config_path(lab.balancer).read_text()
    lab.stop_agent(signal.SIGTERM)
    lab.write_config(good.rstrip())
    try:
        lab.start_agent()
        wait_until("all up", lambda: lab.get("/v1/services/web")["backends_up"] == 2)
        assert answers(lab)
        problem = lab.get("/v1/status")["agent"]["config_problem"]
        assert "the last good configuration runs" in problem
        with pytest.raises(SteelyardError, match="the last line does not end"):
            lab.api.post("/v1/reload", {})
    finally:
        lab.write_config(good)
    assert lab.api.post("/v1/reload", {})["changes"] == []
    assert lab.get("/v1/status")["agent"]["config_problem"] == ""


@contextlib.contextmanager
def held_connection(lab: Site) -> Iterator[Callable[[], int]]:
    """A connection of the client's; each call is a request on it, and says the status."""
    with netns.inside(lab.lab.node("client").namespace):
        connection = http.client.HTTPConnection(str(lab.lab.vips[0]), 80, timeout=60)
        connection.connect()
    with contextlib.closing(connection):
        connected = connection.sock

        def request() -> int:
            connection.request("GET", "/")
            answer = connection.getresponse()
            answer.read()
            assert connection.sock is connected, "still the same connection"
            return answer.status

        yield request


def test_pins_that_somebody_removes_under_the_agent_come_back(lab: Site) -> None:
    with held_connection(lab) as request:
        assert request() == 200
        flows = len(list(PINS.iterdir()))
        lab.signal_agent(signal.SIGSTOP)  # or it may put one back while we are at it
        shutil.rmtree(PINS)
        lab.signal_agent(signal.SIGCONT)
        wait_until("they are pinned again", lambda: len(list(PINS.glob("*"))) == flows)
        wait_until("it is said", lambda: "pins were gone; pinned again" in log_text(lab))
        lab.stop_agent(signal.SIGKILL)
        shutil.rmtree(PINS)
        lab.start_agent()
        assert request() == 200
        assert len(list(PINS.iterdir())) == flows


def log_text(lab: Site) -> str:
    return (lab.lab.run_dir / "lb1.log").read_text()


@pytest.mark.soak
def test_under_a_new_name_an_agent_takes_over_what_it_was(lab: Site, tmp_path: Path) -> None:
    good, path = lab.config(), str(lab.lab.config_path(lab.balancer))
    former, name = good["name"], "another-name"
    with held_connection(lab) as request:
        assert request() == 200
        refused = lab.agent("take-over", "--from", former, "--config", path)
        assert refused.returncode == 1, "the agent runs"
        lab.stop_agent(signal.SIGTERM)
        lab.write_config(good | {"name": name})
        refused = lab.agent("run", "--config", path)
        assert refused.returncode == 1
        assert f"lb-agent take-over --from {former}" in refused.stderr
        assert request() == 200
        assert lab.agent("take-over", "--from", former, "--config", path).returncode == 0
        assert request() == 200
        lab.start_agent()
        assert request() == 200
        assert lab.get("/v1/status")["agent"]["name"] == name
        tables = lab.run(lab.balancer.name, "nft", "list", "tables").stdout.split()
        assert f"steelyard-{name}" in tables
        assert f"steelyard-{former}" not in tables
        costs = lab.agent("rollback-check", "--to", str(of_abi(2, tmp_path)), "--config", path)
        assert costs.returncode == 0, costs.stderr
        assert "of dsr with maglev stay" in costs.stdout
        lab.stop_agent(signal.SIGTERM)
        lab.write_config(good)
        assert lab.agent("take-over", "--from", name, "--config", path).returncode == 0
        lab.start_agent()
        assert request() == 200


def of_abi(version: int, folder: Path) -> Path:
    """What matters of a former release."""
    code = folder / "agent" / "dataplane"
    code.mkdir(parents=True)
    (code / "abi.py").write_text(f"ABI_VERSION = {version}\n")
    return folder


def test_its_own_link_without_carrier_takes_no_backend_out(lab: Site) -> None:
    def reasons() -> list[str]:
        return [each["reason"] for each in lab.get("/v1/services/web")["backends"]]

    def links() -> list[str]:
        problems: list[str] = lab.get("/v1/status")["dataplane"]["link_problems"]
        return problems

    def since() -> list[tuple[str, str]]:
        backends = lab.get("/v1/services/web")["backends"]
        return [(each["state"], each["since"]) for each in backends]

    wait_until("all up", lambda: {state for state, _ in since()} == {"up"})
    before = since()
    failover.cut(lab.lab, lab.balancer)
    try:
        wait_until(
            "every check says why it says nothing",
            lambda: set(reasons()) == {"not checked: eth0 has no carrier"},
        )
        # The status looks at the links by itself, a moment before or after the checks.
        wait_until("the status says so", lambda: links() == ["eth0 has no carrier"])
    finally:
        failover.mend(lab.lab, lab.balancer)
    wait_until("they are checked again", lambda: all("HTTP" in each for each in reasons()))
    wait_until("no problem", lambda: not links())
    assert since() == before
    assert answers(lab)


def mac_of(lab: Site, node: str) -> str:
    (link,) = json.loads(lab.run(node, "ip", "-j", "link", "show", "eth0").stdout)
    return str(link["address"])


def test_a_backend_that_answers_for_the_vip_is_named(lab: Site) -> None:
    """Clients that ask for the VIP may learn its MAC, and go there past the balancer."""

    def told() -> list[str]:
        problems: list[str] = lab.get("/v1/status")["dataplane"]["vip_problems"]
        return problems

    def silent(value: int) -> list[str]:
        return ["sysctl", "-qw", f"net.ipv4.conf.all.arp_ignore={value}"]

    wait_until("nobody else answers", lambda: told() == [])
    ipv4, ipv6 = lab.lab.vips
    be1, be2 = (lab.lab.node(name) for name in ("be1", "be2"))
    macs = {node: mac_of(lab, node.name) for node in (be1, be2)}
    on_the_wrong_link = f"{ipv6}/128", "dev", "eth0"
    try:
        assert lab.run(be2.name, *silent(0)).returncode == 0
        assert lab.run(be1.name, "ip", "addr", "add", *on_the_wrong_link, "nodad").returncode == 0
        at1, at2 = f"it is backend be1 ({be1.ipv4})", f"it is backend be2 ({be2.ipv4})"
        wanted = [
            f"{macs[be2]} answers for {ipv4}, too: {at2}, which has to keep silent (arp_ignore=1)",
            f"{macs[be1]} answers for {ipv6}, too: {at1}, which has to have it on lo alone",
        ]
        wait_until("both are named", lambda: told() == wanted)
    finally:
        lab.run(be2.name, *silent(1))
        lab.run(be1.name, "ip", "addr", "del", *on_the_wrong_link)
    wait_until("nobody else answers", lambda: told() == [])
    assert answers(lab)


def opened_by(pid: int | None) -> list[Path]:
    """The files that a process has open."""
    found = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.append(fd.readlink())
    return found


def test_a_state_folder_that_cannot_be_written_keeps_nobody_from_draining(lab: Site) -> None:
    """And the socket and the locks are put back when they are removed."""

    def lbctl(*words: str) -> str:
        done = lab.run(
            lab.balancer.name,
            *processes.program("lbctl", "lbctl.main"),
            "--socket",
            str(lab.lab.socket(lab.balancer)),
            *words,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    first = next(iter(weights(lab)))
    state = Path(lab.config()["state_dir"])
    aside = state.with_name(state.name + ".aside")
    state.rename(aside)
    state.write_text("in the way")
    try:
        assert "in memory only" in lbctl("backend", "drain", f"web/{first}")
        assert "in memory only" in lbctl("status")
        assert "drain" in lbctl("backend", "list", "web")
    finally:
        state.unlink()
        aside.rename(state)
    wait_until("it is saved", lambda: not lab.get("/v1/status")["agent"]["unsaved_problem"])
    lbctl("backend", "enable", f"web/{first}")

    lab.lab.socket(lab.balancer).unlink()
    # Its own: other tests have agents, which may end before they have put theirs back.
    locks = [path for path in opened_by(lab.agent_pid()) if path.suffix == ".lock"]
    assert locks
    for lock in locks:
        lock.unlink()
    second = yaml.safe_dump(
        lab.config() | {"name": "second", "socket": f"{state}/s", "metrics": "off"}
    )
    path = lab.lab.run_dir / "second.yaml"
    path.write_text(second)
    agent = [*processes.program("lb-agent", "agent.main"), "run", "--config", str(path)]
    done = lab.run(lab.balancer.name, *agent)
    path.unlink()
    assert done.returncode == 1
    assert "another agent runs it, process" in done.stderr
    wait_until(
        "all is back",
        lambda: lab.lab.socket(lab.balancer).exists() and all(lock.exists() for lock in locks),
    )
    assert "in memory only" not in lbctl("status")
