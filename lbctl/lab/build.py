"""Owns a lab's life: builds what ``topology`` describes, and removes it without a trace.

The folder of the lab is made first and removed last: the lab exists as long as its folder does.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import http.client
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from agent.errors import SteelyardError
from agent.model import Hook
from lbctl.lab import documents, failover, netns, processes, statefile, topology, wiring
from lbctl.lab.interrupt import Guard
from lbctl.lab.netns import LabError
from lbctl.lab.topology import Lab, Node, Role, lab_command

STATE_FILE = "lab.json"
READY_TIMEOUT_S = 90.0
# Tokens in one event of an engine's stream; fewer, larger events leave CPU time for the rest.
_EVENT_TOKENS = 2
_TOOLS = {"ip": "iproute2", "nsenter": "util-linux"}

type Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Owner:
    """The owner of a lab: a person by ``lab up``, or a demo, which removes it when it ends."""

    demo: bool = False
    pid: int = 0

    @property
    def abandoned(self) -> bool:
        """Whether it is the lab of a demo that was killed before it could clean up."""
        return self.demo and not Path(f"/proc/{self.pid}").exists()


def check_machine() -> None:
    """Raise LabError if this machine or user cannot have a lab."""
    if sys.platform != "linux":
        raise LabError("a lab needs Linux", where=sys.platform, remedy="use a Linux machine or VM")
    if os.geteuid() != 0:
        raise LabError(
            "only root can make network namespaces", where="lab", remedy="run it with sudo"
        )
    for tool, package in _TOOLS.items():
        if shutil.which(tool) is None:
            raise LabError(
                f"the command {tool} is missing", where="lab", remedy=f"apt install {package}"
            )


def read(name: str) -> tuple[Lab, Owner] | None:
    """Return the lab of that name and its owner; None: it does not exist, or only in parts."""
    try:
        document = json.loads((topology.RUN_ROOT / name / STATE_FILE).read_text())
        owner = Owner(bool(document["owner"]["demo"]), int(document["owner"]["pid"]))
        return statefile.from_document(document["lab"]), owner
    except (OSError, ValueError, KeyError, TypeError):
        return None


def leftovers(name: str) -> list[str]:
    """Return the parts of a lab of that name that exist: its namespaces, its folder."""
    found = [entry for entry in netns.names() if topology.owned_namespace(name, entry)]
    run_dir = topology.RUN_ROOT / name
    return found + ([str(run_dir)] if run_dir.exists() else [])


def _instance_locks(name: str) -> list[Path]:
    """Return the lock files that the lab's agents have left, even if the namespaces have gone.

    Agents of other owners may use such names, too, so a lock that is held does not count.
    """
    named = {
        lock: lock.stem.removeprefix("instance-")
        for lock in topology.RUN_ROOT.glob(f"instance-{glob.escape(name)}-*.lock")
    }
    left = (lock for lock, agent in named.items() if topology.owned_namespace(name, agent))
    return [lock for lock in left if not _is_held(lock)]


def _is_held(lock: Path) -> bool:
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # the file has gone
        return False
    return False


def up(lab: Lab, owner: Owner, report: Report) -> None:
    """Build a lab and wait until its traffic can flow; a failure removes what was built."""
    check_machine()
    if lab.etcd and shutil.which("etcd") is None:
        raise LabError("the command etcd is missing", where="lab", remedy="apt install etcd-server")
    with Guard() as guard:
        refuse_second(lab.name)
        try:
            with guard.interruptible():
                _build(lab, owner, report)
        except BaseException:
            # Ctrl-C must not leave half a lab behind either.
            down(lab.name, _silent)
            raise


def refuse_second(name: str) -> None:
    """Raise LabError if a lab of that name, or a part of one, exists."""
    if found := leftovers(name):
        raise LabError(
            f"a lab called {name} already exists ({len(found)} parts: {found[0]} …)",
            where=f"lab {name}",
            remedy=f"`{lab_command(name)} down` removes it;"
            f" `{lab_command(name)} up --replace` does both",
        )


def _silent(_text: str) -> None:
    """Discard a report."""


def _build(lab: Lab, owner: Owner, report: Report) -> None:
    lab.run_dir.mkdir(parents=True)
    document = {
        "lab": statefile.to_document(lab),
        "owner": {"demo": owner.demo, "pid": owner.pid},
    }
    (lab.run_dir / STATE_FILE).write_text(json.dumps(document, indent=2) + "\n")
    report(f"network: {len(lab.nodes())} hosts on a bridge, as namespaces {lab.name}-…")
    build_network(lab)
    report(f"{'engines' if lab.engines else 'HTTP servers'}: {lab.backends + lab.spares}")
    for backend in lab.nodes(Role.BACKEND):
        start_server(lab, backend)
    for host in lab.nodes(Role.ETCD):
        report("etcd: one member")
        start_etcd(lab, host)
    prepare_paths(lab)
    report("agent: compiling and attaching the balancer, checking the backends")
    if lab.paired:
        failover.make_key(lab)
    # One after the other: the first compiles the program, the others load it.
    for balancer in lab.nodes(Role.BALANCER):
        write_config(lab, balancer)
        start_agent(lab, balancer)
        await_backends(lab, balancer, lab.backends)
    if lab.etcd:
        report("fleet: the services become its first version, for all balancers")
        begin_fleet(lab)
    if lab.paired:
        report("failover: the first balancer becomes master, the others stand by")
        failover.settle(lab)
    report("first requests through the balancer")
    await_answers(lab)


def build_network(lab: Lab) -> None:
    """Make the namespaces, the cables and the addresses."""
    netns.ip([f"netns add {namespace}" for namespace in lab.namespaces()])
    netns.write_sysctls(lab.switch, wiring.sysctls(Role.SWITCH))
    for node in lab.nodes():
        netns.write_sysctls(node.namespace, wiring.sysctls(node.role))
    netns.ip(wiring.switch_commands(lab), lab.switch)
    for port in wiring.ports_with_tags_in_frames(lab):
        netns.tags_in_frames(lab.switch, port)
    for node in lab.nodes():
        try:
            netns.ip(wiring.node_commands(lab, node), node.namespace)
        except LabError as error:
            if lab.vlan is None or "Unknown device type" not in error.message:
                raise
            raise LabError(
                "this kernel has no VLAN devices",
                where=f"lab {lab.name}",
                remedy="modprobe 8021q; if there is no such module: leave out --vlan",
            ) from error
        for link in node.links:
            netns.checksum_in_software(node.namespace, link.interface)


def server_command(lab: Lab, backend: Node) -> list[str]:
    """Return the command that starts a backend's HTTP server or engine."""
    hardware = lab.engine(backend)
    module = "lbctl.lab.engine.server" if hardware else "lbctl.lab.server"
    command = [sys.executable, "-m", module, "--name", backend.name]
    command += ["--port", str(lab.server_port)]
    if hardware:
        chunk = max(1, round(_EVENT_TOKENS * lab.time_scale))
        command += ["--port", str(topology.ENGINE_PORT), "--hardware", hardware]
        command += ["--time-scale", str(lab.time_scale), "--chunk-tokens", str(chunk)]
    return command


def start_server(lab: Lab, backend: Node) -> None:
    """Start the HTTP server of a backend."""
    command = server_command(lab, backend)
    processes.start(lab.run_dir, backend.name, backend.namespace, command)


def begin_fleet(lab: Lab, timeout_s: float = READY_TIMEOUT_S) -> None:
    """Import the services of the first balancer, and wait until all balancers run them."""
    from agent.api.client import Client
    from agent.errors import ApiError

    first, *_ = balancers = lab.nodes(Role.BALANCER)
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            own = Client(lab.socket(first)).post("/v1/fleet/import", {"message": "the lab's"})
            break
        except ApiError as error:  # the agent has yet to reach the store
            if time.monotonic() > deadline:
                raise LabError(
                    error.message, where=f"lab {lab.name}", remedy=error.remedy
                ) from error
        time.sleep(0.05)
    for balancer in balancers:
        client, wanted = Client(lab.socket(balancer)), own["fleet"]["version"]
        while client.get("/v1/fleet")["fleet"]["version"] < wanted:
            if time.monotonic() > deadline:
                raise LabError(
                    f"{balancer.name} does not take version {wanted} of the fleet",
                    where=f"lab {lab.name}",
                    remedy="see its log",
                )
            time.sleep(0.05)


def start_etcd(lab: Lab, host: Node, timeout_s: float = 30.0) -> None:
    """Start the member of etcd, and wait until it answers."""
    (url,) = lab.etcd_urls
    command = ["etcd", "--data-dir", str(lab.run_dir / "etcd"), "--log-level", "error"]
    command += ["--listen-client-urls", url, "--advertise-client-urls", url]
    processes.start(lab.run_dir, host.name, host.namespace, command)
    deadline = time.monotonic() + timeout_s
    with netns.inside(host.namespace):
        while problem := _ask(str(host.ipv4), topology.ETCD_PORT):
            if time.monotonic() > deadline:
                raise LabError(
                    f"etcd does not answer: {problem}; {_log_tail(lab, host.name)}",
                    where=str(lab.run_dir / f"{host.name}.log"),
                    remedy="see its log",
                )
            time.sleep(0.05)


def prepare_paths(lab: Lab) -> None:
    """Let frames of the balancers pass the cables, and let backends decapsulate."""
    agent = processes.program("lb-agent", "agent.main")
    commands = []
    if ports := [word for port in wiring.ports_with_xdp(lab) for word in ("--interface", port)]:
        commands.append((lab.switch, [*agent, "pass", *ports]))
    if lab.forward.is_tunnel:
        commands += [(backend.namespace, decap(lab)) for backend in lab.nodes(Role.BACKEND)]
    # Each of them compiles a program: in parallel, as far as there are processors.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for done in [pool.submit(_run, lab, *command) for command in commands]:
            done.result()


def decap(lab: Lab) -> list[str]:
    """Return the options by which a backend decapsulates."""
    vips = [word for vip in lab.vips for word in ("--vip", str(vip))]
    balancers = [
        word
        for balancer in lab.nodes(Role.BALANCER)
        for link in balancer.links
        for address in link.addresses
        for word in ("--from", str(address.ip))
    ]
    agent = processes.program("lb-agent", "agent.main")
    return [*agent, "decap", "--interface", topology.NODE_INTERFACE, *vips, *balancers]


def write_config(lab: Lab, balancer: Node) -> None:
    """Write the configuration file of a balancer's agent."""
    import yaml

    document = documents.agent_document(lab, balancer)
    lab.config_path(balancer).write_text(yaml.safe_dump(document, sort_keys=False))


def start_agent(lab: Lab, balancer: Node) -> None:
    """Start the agent of a balancer."""
    agent = processes.program("lb-agent", "agent.main")
    command = [*agent, "run", "--config", str(lab.config_path(balancer))]
    processes.start(lab.run_dir, balancer.name, balancer.namespace, command)


def revive(lab: Lab, balancer: Node) -> None:
    """Start all of a balancer that was killed and cut off, and mend its cables, as after a boot.

    Unlike a booting host, the kernel of this dead balancer still has the VIPs. So its failover
    process first removes them, and only then the cables are mended.
    """
    failover.start(lab, balancer)
    failover.await_answer(lab, balancer)
    start_agent(lab, balancer)
    failover.mend(lab, balancer)


def await_backends(
    lab: Lab, balancer: Node, wanted: int, timeout_s: float = READY_TIMEOUT_S
) -> float:
    """Wait until this many backends of every service are up; return the moment (monotonic)."""
    from agent.api.client import Client

    client = Client(lab.socket(balancer), timeout_s=5.0)
    deadline = time.monotonic() + timeout_s
    problem = "nothing was tried"
    while time.monotonic() < deadline:
        try:
            services = client.get("/v1/services")["services"]
            if all(service["backends_up"] >= wanted for service in services):
                return time.monotonic()
            problem = "; ".join(
                f"{backend['service']}/{backend['name']} is {backend['state']}: {backend['reason']}"
                for service in services
                for backend in service["backends"]
                if backend["state"] != "up"
            )
        except SteelyardError as error:
            problem = error.message
            if processes.pid_of(lab.run_dir, balancer.name) is None:
                problem = f"it ended: {_log_tail(lab, balancer.name)}"
                break
        time.sleep(0.05)
    raise LabError(
        f"the agent of {balancer.name} is not ready ({problem})",
        where=str(lab.run_dir / f"{balancer.name}.log"),
        remedy="`lbctl doctor` names what this machine lacks",
    )


def _without_answers(lab: Lab) -> str:
    command = lab_command(lab.name)
    if lab.hook is Hook.NATIVE:
        return f"try it without native XDP: {command} up --replace --hook tc"
    socket = lab.socket(lab.nodes(Role.BALANCER)[0])
    return f"see what happens to the packets: lbctl --socket {socket} trace"


def await_answers(lab: Lab, timeout_s: float = 10.0) -> None:
    """Wait until a client's request to each VIP is answered."""
    deadline = time.monotonic() + timeout_s
    client = lab.nodes(Role.CLIENT)[0]
    with netns.inside(client.namespace):
        for service in lab.services:
            while problem := _ask(str(service.vip), service.port):
                if time.monotonic() > deadline:
                    host = f"[{service.vip}]" if service.vip.version == 6 else service.vip
                    raise LabError(
                        "the backends are up, but"
                        f" http://{host}:{service.port}/ does not answer: {problem}",
                        where=f"namespace {client.namespace}",
                        remedy=_without_answers(lab),
                    )
                time.sleep(0.05)


def _ask(address: str, port: int = topology.PORT) -> str:
    """Send one request; return the problem with the answer, empty if there is none."""
    connection = http.client.HTTPConnection(address, port, timeout=2)
    try:
        connection.request("GET", "/health")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__
    finally:
        connection.close()
    return "" if status == 200 else f"status {status}"


def _log_tail(lab: Lab, name: str, lines: int = 8) -> str:
    try:
        text = (lab.run_dir / f"{name}.log").read_text(errors="replace")
    except OSError:
        return "it wrote no log"
    return "\n".join(text.strip().splitlines()[-lines:]) or "its log is empty"


def _run(lab: Lab, namespace: str, command: list[str]) -> None:
    result = subprocess.run(
        [*netns.entering(namespace), *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=processes.environment(lab.run_dir),
        start_new_session=True,
    )
    if result.returncode != 0:
        raise LabError(
            f"`{' '.join(command[-3:])}` failed: {(result.stderr or result.stdout).strip()}",
            where=f"namespace {namespace}",
            remedy="`lbctl doctor` names what this machine lacks",
        )


def down(name: str, report: Report) -> bool:
    """Remove everything of a lab, whatever state it is in; False: there was nothing."""
    run_dir = topology.RUN_ROOT / name
    with Guard():
        if not (leftovers(name) or _instance_locks(name) or processes.find(run_dir)):
            return False
        report("stopping the lab's processes")
        processes.stop(run_dir, processes.find(run_dir))
        report("removing namespaces, tables and files")
        balancers = [f"{name}-{config.stem}" for config in run_dir.glob("lb*.yaml")]
        for namespace in netns.names():
            if topology.owned_namespace(name, namespace):
                remove_locks(namespace)
                netns.ip([f"netns del {namespace}"])
        for balancer in balancers:  # its program has gone with the namespace's interfaces
            shutil.rmtree(topology.PIN_ROOT / balancer, ignore_errors=True)
        shutil.rmtree(run_dir, ignore_errors=True)
        # A process that started while we were stopping: its folder is gone, but not its mark.
        processes.stop(run_dir, processes.find(run_dir))
        for lock in _instance_locks(name):
            lock.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            topology.RUN_ROOT.rmdir()  # only if it is empty: an agent of this host may live there
        with contextlib.suppress(OSError):
            topology.PIN_ROOT.rmdir()
    return True


def remove_locks(namespace: str) -> None:
    """Remove the lock files of killed processes; once the namespace is gone, nobody needs them."""
    with contextlib.suppress(FileNotFoundError):
        inode = netns.path(namespace).stat().st_ino
        for lock in topology.RUN_ROOT.glob(f"interface-{inode}-*.lock"):
            lock.unlink(missing_ok=True)
        (topology.RUN_ROOT / f"failover-{inode}.lock").unlink(missing_ok=True)
    (topology.RUN_ROOT / f"instance-{namespace}.lock").unlink(missing_ok=True)


def node_processes(lab: Lab, node: Node) -> Iterator[tuple[str, str, int | None]]:
    """Yield what runs on a host: a description, the process's name, and its pid; None: it ended."""
    named: dict[str, str] = {}
    if node.role is Role.BALANCER:
        named[node.name] = "agent"
        if lab.paired:
            named[failover.process_of(node)] = failover.PROCESS
    elif node.role is Role.BACKEND:
        hardware = lab.engine(node)
        named[node.name] = f"engine {hardware}" if hardware else "http server"
    elif node.role is Role.ETCD:
        named[node.name] = "etcd"
    for name, what in named.items():
        yield what, name, processes.pid_of(lab.run_dir, name)
