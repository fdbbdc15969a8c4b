"""Owns what the demo does to the lab, step by step; ``judge`` decides what it has shown."""

from __future__ import annotations

import http.client
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from agent.api.client import Client
from lbctl.lab import build, documents, failover, figures, judge, netns, processes
from lbctl.lab.judge import Outcome, Window
from lbctl.lab.netns import LabError
from lbctl.lab.topology import Lab, Node, Role
from lbctl.lab.traffic import PromptTraffic, Traffic

WEIGHTS = {"be1": 100, "be2": 100, "be3": 50}
ENGINES = ("h100", "h100", "a100", "h100")
TIME_SCALE = 10.0  # so that a few seconds have enough prompts for a p99
KILLED, DRAINED, ADDED, THROTTLED = "be1", "be2", "be4", "be1"
SLOW = 4.0
# Half of what the engines can do; for the throttled one more than it can do by its weight.
PROMPTS_PER_S, PROMPT_TOKENS, ANSWER_TOKENS = 60.0, 800, 40
STREAM_S = 3.0
AWAY_S = 2.0
PATIENCE_S = 60.0  # enough for a busy host
RELOADS = 6
BALANCERS = 2
MASTER, SUCCESSOR = "lb1", "lb2"


@dataclass(frozen=True, slots=True)
class Stage:
    """What the steps act on; ``forgiven`` are the times in which requests may fail."""

    lab: Lab
    traffic: Traffic
    prompts: PromptTraffic  # by load; they end with the step that is about them
    forgiven: list[tuple[float, float]] = field(default_factory=list)

    @property
    def balancers(self) -> tuple[Node, ...]:
        """The balancers, the master first."""
        return self.lab.nodes(Role.BALANCER)

    def lbctl(self, *words: str) -> None:
        """Run ``lbctl`` on every agent; raises LabError with its error message."""
        self.everywhere(self._lbctl, *words)

    def everywhere[*T](self, act: Callable[[Node, *T], None], *about: *T) -> None:
        """Do something to every balancer in parallel."""
        with ThreadPoolExecutor() as pool:
            for done in [pool.submit(act, node, *about) for node in self.balancers]:
                done.result()

    def _lbctl(self, balancer: Node, *words: str) -> None:
        command = processes.program("lbctl", "lbctl.main")
        result = subprocess.run(
            [*command, "--socket", str(self.lab.socket(balancer)), *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env=processes.environment(),
        )
        if result.returncode != 0:
            raise LabError(
                f"`lbctl {' '.join(words)}` failed: {result.stderr.strip()}", where=balancer.name
            )

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Check repeatedly until the condition holds; False: it did not within that time."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline or not self.traffic.running:
                return False
            time.sleep(0.05)
        return True

    def window(self, start_s: float, end_s: float) -> Window:
        """Return the traffic of that time, once all of it is reported."""
        self.traffic.settled(end_s)
        return Window(start_s, end_s, self.traffic.requests(start_s, end_s), self.traffic.held())

    def first_answer_ms(self, backend: str, since_s: float) -> float | None:
        """Wait until a backend gets a request; return the milliseconds since ``since_s``; None:
        never.
        """

        def first() -> float | None:
            return figures.first_answer_ms(self.traffic.requests(since_s), backend, since_s)

        self.wait(lambda: first() is not None, timeout_s=PATIENCE_S)
        return first()


@dataclass(frozen=True, slots=True)
class Step:
    """One chapter: its title for the reader, and its action."""

    title: str
    act: Callable[[Stage], Outcome]


def spread(stage: Stage) -> Outcome:
    """Let traffic flow for a while."""
    time.sleep(0.5)
    start_s = time.monotonic()
    time.sleep(4.0)
    return judge.spread(stage.window(start_s, time.monotonic()), WEIGHTS)


def throttle(stage: Stage) -> Outcome:
    """Slow an engine down under a load of prompts; then the same load split by weight alone."""
    before_s = time.monotonic()
    _throttle(stage.lab, SLOW)
    throttled_s = time.monotonic()
    time.sleep(7.0)
    end_s = time.monotonic()
    stage.prompts.leave()
    by_weight = PromptTraffic(stage.lab, stage.lab.services[0])
    by_weight.start(PROMPTS_PER_S, PROMPT_TOKENS, ANSWER_TOKENS)
    stage.wait(lambda: bool(by_weight.prompts()), timeout_s=5)
    time.sleep(3.0)
    by_weight.leave()
    # From here on waiting prompts are served fast again, so measured times are lower bounds.
    _throttle(stage.lab, 1.0)
    stage.prompts.stop()
    by_weight.stop()
    prompts = stage.prompts.prompts
    phases = judge.Throttled(
        before=prompts(before_s - 4.0, before_s),
        right_after=prompts(throttled_s, throttled_s + 2.0),
        adapted=prompts(throttled_s + 3.0, end_s),
        by_weight=by_weight.prompts(),
    )
    return judge.throttle(phases, THROTTLED)


def _throttle(lab: Lab, slow: float) -> None:
    """Make an engine this many times slower than its GPU."""
    node = lab.node(THROTTLED)
    connection = http.client.HTTPConnection("127.0.0.1", lab.server_port, timeout=PATIENCE_S)
    try:
        with netns.inside(node.namespace):
            connection.request("POST", f"/throttle?slow={slow}")
            status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        problem = str(error) or type(error).__name__
        raise LabError(f"{node.name} cannot be throttled: {problem}") from error
    finally:
        connection.close()
    if status != 200:
        raise LabError(f"{node.name} cannot be throttled: status {status}")


def kill(stage: Stage) -> Outcome:
    """Kill a backend, wait until nothing fails any more, and start it again."""
    killed_s = processes.kill(stage.lab.run_dir, KILLED)

    def calm() -> bool:
        now_s = time.monotonic()
        recent = stage.traffic.requests(now_s - 1.2, now_s)
        return now_s > killed_s + 1.5 and not figures.failures(recent)

    is_calm = stage.wait(calm, timeout_s=PATIENCE_S)
    window = stage.window(killed_s, time.monotonic())
    # A request that was in progress at the kill fails, too.
    stage.forgiven.append((killed_s - 0.2, window.end_s))
    build.start_server(stage.lab, stage.lab.node(KILLED))
    back_ms = stage.first_answer_ms(KILLED, time.monotonic())
    return judge.kill(window, KILLED, is_calm, back_ms)


def drain(stage: Stage) -> Outcome:
    """Drain a backend until its streams have ended, then let it serve again."""
    services = [service.name for service in stage.lab.services]
    asked_s = time.monotonic()
    for service in services:
        stage.lbctl("backend", "drain", f"{service}/{DRAINED}")
    drained_s = time.monotonic()
    time.sleep(STREAM_S + 0.5)
    window = stage.window(asked_s, time.monotonic())
    for service in services:
        stage.lbctl("backend", "enable", f"{service}/{DRAINED}")
    return judge.drain(window, DRAINED, drained_s)


def add(stage: Stage) -> Outcome:
    """Add the backend that runs already but is in no service yet."""
    node = stage.lab.node(ADDED)
    asked_s = time.monotonic()
    for service in stage.lab.services:
        about = documents.backend_document(stage.lab, node, service.vip.version, service.port)
        words = [w for key in ("address", "port") if key in about for w in (f"--{key}", about[key])]
        stage.lbctl("backend", "add", f"{service.name}/{ADDED}", *map(str, words))
    stage.first_answer_ms(ADDED, asked_s)
    time.sleep(0.5)
    return judge.add(stage.window(asked_s, time.monotonic()), ADDED)


def restart(stage: Stage) -> Outcome:
    """Kill the master's agent, leave the data plane alone for a while, and start a new agent."""
    lab, balancer = stage.lab, stage.lab.node(MASTER)
    killed_s = processes.kill(lab.run_dir, balancer.name)
    time.sleep(AWAY_S)
    away_s = time.monotonic() - killed_s
    build.start_agent(lab, balancer)
    ready_s = build.await_backends(lab, balancer, lab.backends + lab.spares)
    time.sleep(1.0)
    return judge.restart(stage.window(killed_s, time.monotonic()), ready_s, away_s)


def reload(stage: Stage) -> Outcome:
    """Write new configuration files and reload them, again and again."""
    import yaml

    clients = {node: Client(stage.lab.socket(node)) for node in stage.balancers}
    documents = {node: client.get("/v1/config")["config"] for node, client in clients.items()}

    def take(node: Node, weight: int) -> None:
        document = documents[node]
        for service in document["services"]:
            service["backends"][0]["weight"] = weight
        stage.lab.config_path(node).write_text(yaml.safe_dump(document, sort_keys=False))
        clients[node].post("/v1/reload")

    start_s = time.monotonic()
    for turn in range(RELOADS):
        stage.everywhere(take, 60 + 10 * turn)
        time.sleep(0.15)
    return judge.reload(stage.window(start_s, time.monotonic()), RELOADS)


def die(stage: Stage) -> Outcome:
    """Kill all of the master and cut its cable; another balancer has to become master."""
    lab, master = stage.lab, stage.lab.node(MASTER)
    cut_s = failover.strike(lab, master)
    failover.await_role(lab, lab.node(SUCCESSOR), failover.MASTER)

    def outage_ms() -> float | None:
        return figures.outage_ms(stage.traffic.requests(cut_s), cut_s)

    stage.wait(lambda: outage_ms() is not None, timeout_s=PATIENCE_S)
    # A client retransmits after a second, and held connections show an event within that time.
    time.sleep(2.0)
    window = stage.window(cut_s, time.monotonic())
    lasted_ms = outage_ms()
    # A request that was in progress when the cable was cut may fail, too.
    stage.forgiven.append((cut_s - 0.2, cut_s + (lasted_ms or 0.0) / 1000))
    return judge.die(window, lasted_ms, _roles(stage), SUCCESSOR)


def come_back(stage: Stage) -> Outcome:
    """Start the dead balancer again; it gets the flows, and takes its place by its priority."""
    lab, master = stage.lab, stage.lab.node(MASTER)
    started_s = time.monotonic()
    build.revive(lab, master)
    build.await_backends(lab, master, lab.backends + lab.spares)
    back_s = failover.await_role(lab, master, failover.MASTER)
    time.sleep(1.0)
    window = stage.window(started_s, time.monotonic())
    return judge.come_back(window, back_s, _roles(stage), MASTER)


def _roles(stage: Stage) -> dict[str, str | None]:
    """Return the role of each balancer."""
    return {
        node.name: failover.summary(failover.roles(stage.lab, node)) for node in stage.balancers
    }


STEPS = (
    Step("traffic flows, on IPv4 and IPv6, by weight", spread),
    Step(f"the GPU of {THROTTLED} is throttled, {SLOW:.0f} times slower", throttle),
    Step(f"{KILLED} is killed (SIGKILL)", kill),
    Step(f"{DRAINED} is drained (lbctl backend drain)", drain),
    Step(f"{ADDED} is added (lbctl backend add)", add),
    Step(f"the master's agent is killed (SIGKILL) and started again {AWAY_S:.0f} s later", restart),
    Step(f"the configuration is changed and reloaded {RELOADS} times", reload),
    Step(f"the master, {MASTER}, dies: agent and failover process killed, its cable cut", die),
    Step(f"{MASTER} is back", come_back),
)
