"""A tier with a real HAProxy: who may ask, how much, and that no change of it costs a request."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from agent.model import Forward
from agent.tier.haproxy import program
from lbctl.doctor import gather_tier
from lbctl.lab import netns
from lbctl.lab.topology import PORT
from tests.netns.site import Site, site, wait_until
from tests.netns.tier import EVENTS, HOST, Engine, TierUnderTest, free_port, serial, tier
from tests.pki import client_context

CHAT = 8001
EDGE = Path(__file__).parents[2] / "deploy" / "edge"
STREAMS = 40
LONG = "x" * 1100  # longer than what is looked at of a prompt that is one text
HUGE = "x" * 100_000  # longer than what HAProxy reads of a body
HELLO = {"role": "user", "content": "hello"}
ANSWER = {"role": "assistant", "content": "hi"}
BEGINNINGS: list[dict[str, list[Any]]] = [  # of conversations
    {"messages": [HELLO]},
    {"messages": [{"role": "system", "content": "be kind"}, HELLO]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "what is it?"}]}]},
    {"input": [HELLO]},
    {"input": [{"role": "developer", "content": "be kind"}, HELLO]},
    {"messages": [{"role": "user", "content": HUGE}]},
    {"messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": HUGE}]},
]
OTHERS = [  # requests of different ones
    ({"messages": [HELLO]}, {"messages": [{**HELLO, "content": "hello!"}]}),
    ({"messages": [ANSWER, HELLO]}, {"messages": [HELLO]}),
    ({"prompt": LONG}, {"prompt": f"y{LONG}"}),
    ({"prompt": HUGE}, {"prompt": f"y{HUGE}"}),
    tuple(
        {"messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": said}]}
        for said in (HUGE, f"y{HUGE}")
    ),
    ({"prompt": "a", "prompt_cache_key": "a"}, {"prompt": "a", "prompt_cache_key": "b"}),
]
REQUESTS = 20


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine("chat") as one:
        yield one


@pytest.fixture(scope="module")
def other() -> Iterator[Engine]:
    with Engine("other") as one:
        yield one


@pytest.fixture(scope="module")
def keyed(
    tmp_path_factory: pytest.TempPathFactory, engine: Engine, other: Engine
) -> Iterator[TierUnderTest]:
    """A tier with keys, limits and routes."""
    folder = tmp_path_factory.mktemp("keyed")
    keys = folder / "keys"
    keys.touch(mode=0o600)
    to_other = other.at
    with tier(
        folder, engine.at, keys=str(keys),
        limits={"requests_per_minute": 1000, "body": "1MiB", "head_timeout": "10s"},
        routes=[
            {"path": "/v1/embeddings", "engines": to_other},
            {"model": "llama-*", "engines": to_other},
            {"model": "exact", "engines": to_other},
        ],
    ) as made:  # fmt: skip
        yield made


# -- who may ask


def test_a_request_without_a_known_key_is_refused_as_openai_refuses_it(keyed: TierUnderTest):
    for sent in ({}, {"Authorization": "Bearer sk-no"}, {"Authorization": "Basic YTpi"}):
        status, headers, body = keyed.ask("/v1/models", **sent)
        assert status == 401
        assert headers["content-type"] == "application/json"
        assert body["error"]["code"] == "invalid_api_key"
        assert set(body["error"]) == {"message", "type", "param", "code"}


def test_engines_see_the_name_of_the_key_and_nothing_that_a_client_made_up(keyed: TierUnderTest):
    key = keyed.add_key("alice")
    status, _, body = keyed.ask(
        "/", {"a": 1}, key=key, X_Key_Name="root", X_Forwarded_For="192.0.2.1", X_Client_Name="me"
    )
    assert status == 200
    seen = {name.lower(): value for name, value in body["headers"].items()}
    assert (seen["x-key-name"], seen["x-forwarded-for"]) == ("alice", "127.0.0.1")
    assert "authorization" not in seen
    assert "x-client-name" not in seen


def test_a_key_is_gone_without_a_reload(keyed: TierUnderTest):
    key = keyed.add_key("bob")
    workers = keyed.status()["reloads_total"]
    assert keyed.lbctl("keys", "remove", "bob").returncode == 0
    wait_until("the key is not known any more", lambda: keyed.ask("/", key=key)[0] == 401)
    assert keyed.status()["reloads_total"] == workers


def test_a_file_of_keys_that_is_wrong_changes_nothing_and_is_named(keyed: TierUnderTest):
    key = keyed.add_key("carol")
    path = Path(keyed.document["keys"])
    good = path.read_text()
    # At once, as an editor does it: a file that is empty for a moment has no keys, which is right.
    fresh = path.with_name("fresh")
    fresh.touch(mode=0o600)
    fresh.write_text(f"{good}dave no-hash\n")
    try:
        fresh.rename(path)
        wait_until("the problem is shown", lambda: keyed.status()["problems"])
        (problem,) = keyed.status()["problems"]
        assert f"{path}:{len(good.splitlines()) + 1}" in problem
        assert "lbctl tier keys add dave" in problem
        assert keyed.ask("/", key=key)[0] == 200
        shown = keyed.lbctl("status")
        assert shown.returncode == 1
        assert "problem: " in shown.stdout
    finally:
        path.write_text(good)
    wait_until("all is well again", keyed.serves)


# -- how much


def test_a_key_gets_its_requests_a_minute_and_then_429(keyed: TierUnderTest):
    key = keyed.add_key("few", "--requests-per-minute", "6")
    while (answer := keyed.ask("/", key=key))[0] == 200:
        pass
    assert answer[0] == 429
    assert answer[1]["retry-after"] == "60"
    assert answer[2]["error"]["code"] == "rate_limit_exceeded"
    assert keyed.lbctl("limits").stdout.count("few") == 1


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens", "max_output_tokens"])
def test_tokens_that_are_asked_for_count(keyed: TierUnderTest, field: str):
    key = keyed.add_key(f"tokens-{field}", "--tokens-per-minute", "10000")
    assert keyed.ask("/", {field: 8000}, key=key)[0] == 200
    status, headers, body = keyed.ask("/", {field: 8000}, key=key)
    assert (status, headers["retry-after"], body["error"]["type"]) == (429, "60", "tokens")
    assert keyed.ask("/", {field: -8000}, key=key)[0] == 200, "counts as one that says nothing"
    assert keyed.ask("/", {field: 8000}, key=key)[0] == 429, "and gives nothing back"


def test_tokens_behind_a_long_prompt_are_assumed(keyed: TierUnderTest):
    key = keyed.add_key("long", "--tokens-per-minute", "3000")
    body = {"prompt": "x" * 100_000, "max_tokens": 1}
    assert [keyed.ask("/", body, key=key)[0] for _ in range(3)] == [200, 200, 429]


def test_so_many_requests_are_answered_at_once(keyed: TierUnderTest, engine: Engine):
    key = keyed.add_key("two", "--concurrent", "2")
    engine.release.clear()
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.append(keyed.ask("/wait", key=key)[0]))
        for _ in range(2)
    ]
    for each in threads:
        each.start()
    try:
        wait_until("both are at the engine", lambda: engine.busy == 2)
        status, headers, _ = keyed.ask("/", key=key)
        assert (status, headers["retry-after"]) == (429, "1")
    finally:
        engine.release.set()
        for each in threads:
            each.join()
    assert found == [200, 200]
    # HAProxy gives a place back after the last byte of the answer.
    wait_until("there is room again", lambda: keyed.ask("/", key=key)[0] == 200)


def test_bodies_without_end_and_beyond_the_limit_are_refused(keyed: TierUnderTest):
    key = keyed.add_key("large")
    assert keyed.ask("/", "x" * 1_000_000, key=key)[0] == 200
    assert keyed.ask("/", "x" * 1_100_000, key=key)[0] == 413
    done = curl(keyed, "--http1.1", "-H", f"Authorization: Bearer {key}",
                "-H", "Transfer-Encoding: chunked", "-d", "{}")  # fmt: skip
    assert done == "411"


def test_a_client_that_sends_its_request_slowly_is_let_go(keyed: TierUnderTest):
    connection = keyed.connect()
    connection.sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
    assert b"408" in connection.sock.recv(1000)
    connection.close()


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01"])
def test_who_connects_and_does_not_shake_hands_is_let_go(keyed: TierUnderTest, sent: bytes):
    """Once, such a connection stayed for the half hour of `idle_timeout`: 20,000 of a stranger's
    would have kept everybody out.
    """
    with socket.create_connection(("127.0.0.1", keyed.port), timeout=90) as sock:
        sock.sendall(sent)
        assert sock.recv(1) == b""


def test_a_client_of_http2_that_asks_nothing_is_let_go(keyed: TierUnderTest):
    context = client_context(keyed.authority)
    context.set_alpn_protocols(["h2"])
    connection = keyed.connect(context)
    connection.sock.settimeout(90)
    assert connection.sock.selected_alpn_protocol() == "h2"
    while connection.sock.recv(4096):
        pass  # its settings, and a goodbye
    connection.close()


# -- where to


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/v1/embeddings", {"model": "e5"}, "other"),
        ("/v1/chat/completions", {"model": "llama-3-8b"}, "other"),
        ("/v1/chat/completions", {"model": "exact"}, "other"),
        ("/v1/chat/completions", {"model": "exactly"}, "chat"),
        ("/v1/chat/completions", {"messages": [{"model": "llama-3"}], "model": "qwen"}, "chat"),
        ("/v1/chat/completions", None, "chat"),
    ],
)
def test_requests_go_where_their_path_and_model_say(
    keyed: TierUnderTest, path: str, body: Any, expected: str
):
    key = keyed.add_key(f"route-{os.urandom(4).hex()}")
    assert keyed.ask(path, body, key=key)[2]["engine"] == expected


def test_all_of_it_is_in_the_metrics(keyed: TierUnderTest):
    keyed.ask("/")

    def page() -> dict[str, float]:
        with urllib.request.urlopen(f"http://{keyed.document['metrics']}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        return {
            name: float(value)
            for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")
        }

    refused = 'steelyard_tier_refused_total{why="key"}'
    wait_until("a refusal is counted", lambda: page().get(refused))
    found = page()
    assert found["steelyard_tier_up"] == 1
    assert found['steelyard_tier_answers_total{status="4xx"}'] >= 1
    assert found['steelyard_tier_certificate_expires_timestamp_seconds{certificate="chat"}'] > 1e9


# -- changes


def curl(made: TierUnderTest, *words: str) -> str:
    """The status that curl gets."""
    done = subprocess.run(
        ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "60",
         "--cacert", str(made.authority.certificate),
         "--resolve", f"{HOST}:{made.port}:127.0.0.1", f"https://{HOST}:{made.port}/", *words],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout


@pytest.fixture
def open_(tmp_path: Path, engine: Engine) -> Iterator[TierUnderTest]:
    """A tier without keys."""
    with tier(tmp_path, engine.at) as made:
        yield made


def test_streams_go_on_over_reloads_and_new_ones_get_the_new_configuration(
    open_: TierUnderTest, engine: Engine, other: Engine
):
    engine.release.clear()
    ended: list[bytes] = []
    begun = threading.Semaphore(0)

    def stream() -> None:
        connection = open_.connect()
        connection.sock.settimeout(600)  # nothing comes while the configuration changes
        connection.request("GET", "/stream")
        answer = connection.getresponse()
        first = answer.readline()
        begun.release()
        ended.append(first + answer.read())
        connection.close()

    threads = [threading.Thread(target=stream) for _ in range(STREAMS)]
    for each in threads:
        each.start()
    try:
        for _ in threads:
            assert begun.acquire(timeout=120)
        for number in range(3):
            open_.write(routes=[{"path": f"/{number}", "engines": other.at}])
            open_.reload()
            wait_until("the new route serves",
                       lambda at=number: open_.ask(f"/{at}")[2]["engine"] == "other")  # fmt: skip
        assert open_.status()["reloads_total"] == 4
        # A worker that takes long to say how many it has is left out.
        wait_until("the first worker has them",
                   lambda: open_.status()["leaving"]["connections"] >= STREAMS)  # fmt: skip
        wait_until("lbctl shows them",
                   lambda: "more at older workers" in open_.lbctl("status").stdout)  # fmt: skip
    finally:
        engine.release.set()
        for each in threads:
            each.join()
    assert len(ended) == STREAMS
    assert all(each.endswith(b"data: [DONE]\n\n") for each in ended)
    assert {each.count(b"data: ") for each in ended} == {EVENTS + 1}


def test_certificates_are_exchanged_while_clients_shake_hands(open_: TierUnderTest):
    stop = threading.Event()
    failed: list[str] = []
    done = [0]

    def clients() -> None:
        while not stop.is_set():
            try:
                assert open_.ask("/")[0] == 200
                done[0] += 1
            except (AssertionError, OSError, http.client.HTTPException) as error:
                failed.append(repr(error))

    threads = [threading.Thread(target=clients) for _ in range(3)]
    for each in threads:
        each.start()
    try:
        for number in range(1, 4):
            before = serial(open_)
            open_.certify()
            wait_until("another certificate is served", lambda old=before: serial(open_) != old)
            wait_until("it is counted",
                       lambda at=number: open_.status()["exchanges_total"] == at)  # fmt: skip
            so_far = done[0]
            wait_until("clients come", lambda at=so_far: done[0] > at + 10 or failed)
    finally:
        stop.set()
        for each in threads:
            each.join()
    assert not failed
    assert open_.status()["reloads_total"] == 1


def test_a_certificate_that_is_wrong_is_named_and_the_others_are_served(open_: TierUnderTest):
    before = serial(open_)
    pair = open_.authority.issue("lost", "/CN=lost")
    another = open_.authority.issue("another", "/CN=another")
    # At once: while the file is empty, something else is wrong with it.
    wrong, fresh = open_.certificates / "wrong.pem", open_.certificates / ".wrong"
    fresh.touch(mode=0o600)
    fresh.write_bytes(pair.certificate.read_bytes() + another.key.read_bytes())
    fresh.rename(wrong)
    wait_until("it is named", lambda: open_.status()["problems"])
    (problem,) = open_.status()["problems"]
    assert "wrong.pem" in problem
    judged = gather_tier.gather(open_.file)
    assert judged is not None
    assert judged.problems == (problem,), "lbctl doctor names it, too"
    assert "key values mismatch" in problem
    assert serial(open_) == before
    wrong.unlink()
    wait_until("all is well again", open_.serves)
    open_.certify("second", "second.example.org")
    wait_until("both are served", lambda: len(open_.status()["certificates"]) == 2)
    second = serial(open_, "second.example.org")
    (open_.certificates / "second.pem").write_text("half of a certi")
    wait_until("it is named", lambda: open_.status()["problems"])
    assert serial(open_, "second.example.org") == second, "the one of before is served on"
    open_.restart()
    assert serial(open_, "second.example.org") == second, "also by the next agent"
    shown = open_.lbctl("certs").stdout
    assert "chat" in shown
    assert "second" in shown


def test_a_file_that_is_wrong_is_refused_and_the_old_one_goes_on(open_: TierUnderTest):
    good = open_.file.read_text()
    for text, words in (
        (f"{good}limit: 1\n", "did you mean 'limits'?"),
        (f"{good}routes: [{{engines: 127.0.0.1:1}}]\n", "it applies to every request"),
        (f"{good}listen: [127.0.0.1:{open_.port}]\n", "twice"),
        (good.replace("engines: 127.0.0.1:", "engines: 127.0.0.1:9"), "port"),
    ):
        open_.file.write_text(text)
        done = open_.lbctl("reload")
        assert done.returncode != 0, text
        assert words in done.stderr
    open_.file.write_text(good)
    with_taken = good.replace(f"- 127.0.0.1:{open_.port}", f"- 127.0.0.1:{open_.port}\n- {{}}")
    with_taken = with_taken.replace("{}", open_.document["metrics"])
    open_.file.write_text(with_taken)
    done = open_.lbctl("reload")
    assert done.returncode != 0
    assert "refuses the reload" in done.stderr, "the port of the metrics is taken"
    open_.file.write_text(good)
    assert open_.ask("/")[0] == 200
    wait_until("all is well", open_.serves)


def test_haproxy_comes_back_when_it_is_killed(open_: TierUnderTest):
    before = open_.haproxies()
    for pid in before:
        with contextlib.suppress(ProcessLookupError):  # a worker ends with its master
            os.kill(pid, signal.SIGKILL)

    def others_serve() -> bool:
        now = open_.haproxies()
        return bool(now) and not set(before) & set(now) and open_.serves()

    wait_until("another HAProxy serves", others_serve)
    assert open_.ask("/")[0] == 200


def test_haproxy_outlives_the_agent_and_the_next_one_takes_it_over(open_: TierUnderTest):
    assert open_.agent is not None
    (master, _) = sorted(open_.haproxies())
    open_.agent.kill()
    open_.agent.wait()
    judged = gather_tier.gather(open_.file)
    assert judged is not None
    assert judged.problem == "lb-agent tier does not answer"
    assert open_.ask("/")[0] == 200
    open_.start()
    assert master in open_.haproxies()
    assert open_.ask("/")[0] == 200


# -- sessions


def test_a_session_is_what_the_file_says(tmp_path: Path, engine: Engine):
    """Its requests come from one address, and those of others from others; 127/8 is this host's."""
    affinity = {"by": "prompt", "sources": ["127.9.0.0/22"]}
    keys = tmp_path / "keys"
    keys.touch(mode=0o600)
    with tier(tmp_path, engine.at, affinity=affinity, keys=str(keys)) as made:
        alice, bob = made.add_key("alice"), made.add_key("bob")

        def homes(*asked: Any, key: str = alice, **headers: str) -> list[str]:
            answers = [made.ask("/", body, key=key, **headers) for body in asked]
            assert all(status == 200 for status, _, _ in answers), answers
            return [body["client"] for _, _, body in answers]

        def is_one(found: list[str]) -> bool:
            return len(set(found)) == 1

        for begins in BEGINNINGS:
            ((field, said),) = begins.items()
            turns = [{field: said + [ANSWER, HELLO] * number} for number in range(3)]
            assert is_one(homes(*turns, {**turns[0], "max_tokens": 7})), begins
        for one, other in OTHERS:
            assert not is_one(homes(one, other)), (one, other)
        assert is_one(homes({"prompt": LONG}, {"prompt": f"{LONG}y"}, {"input": LONG}))
        assert is_one(homes({"prompt": HUGE}, {"prompt": f"{HUGE}y"}))
        assert len(set(homes(*[{"model": "m"}] * 4, None))) == 5, "no session: each in turn"

        assert "by prompt, from 127.9.0.0/22" in made.lbctl("status").stdout
        made.write(affinity={**affinity, "by": "header", "header": "X-Chat"})
        made.reload()
        wait_until("headers count", lambda: is_one(homes({}, {"prompt": LONG}, X_Chat="1")))
        assert not is_one(homes({}, X_Chat="1") + homes({}, X_Chat="2"))
        made.write(affinity={**affinity, "by": "key"})
        made.reload()
        wait_until("keys count", lambda: is_one(homes({}, {"prompt": LONG}, X_Chat="1")
                                                + homes({}, X_Chat="2")))  # fmt: skip
        assert not is_one(homes({}) + homes({}, key=bob))


# -- before a balancer


def test_the_balancer_chooses_a_server_for_each_request_and_sees_its_prompt(tmp_path: Path):
    """Client → TLS → HAProxy → VIP → XDP → server, in one connection of the client's."""
    prompt = tmp_path / "prompt"
    prompt.write_text("x" * 5000)
    with site(name=f"st-tier-{os.getpid()}", backends=2, forward=Forward.FULLNAT) as lab:
        entering = netns.entering(lab.lab.node("client").namespace)
        web = f"{lab.lab.vips[0]}:80"
        # Beside the socket of the balancer's agent, as on a host that is both.
        beside = lab.lab.socket(lab.balancer).parent / "tier"
        with tier(tmp_path, web, entering, metrics="off", folder=str(beside)) as made:
            url = f"https://{HOST}:{made.port}/"
            done = lab.run(
                "client", "curl", "-s", "--fail-early", "-w", "%{http_code} %{num_connects}\\n",
                "--cacert", str(made.authority.certificate), "--max-time", "60",
                "--resolve", f"{HOST}:{made.port}:127.0.0.1",
                *(word for _ in range(REQUESTS)
                  for word in ("-o", "/dev/null", "--data-binary", f"@{prompt}", url)),
            )  # fmt: skip
            answers = [line.split() for line in done.stdout.splitlines()]
            assert [code for code, _ in answers] == ["200"] * REQUESTS, done
            assert sum(int(connects) for _, connects in answers) == 1

            def answered() -> list[int]:
                return [lab.backend("web", f"be{n}")["answers_total"] for n in (1, 2)]

            wait_until("the kernel has seen each prompt's answer",
                       lambda: sum(answered()) >= REQUESTS)  # fmt: skip
            assert all(answered()), "every server had some of one client's requests"
            wait_until("the balancer's status shows the tier, and that it is well",
                       lambda: (shown := known(lab))["load"] and not shown["problems"])  # fmt: skip
            (made.certificates / "broken.pem").write_text("no certificate")
            wait_until("it shows what is wrong with it",
                       lambda: any("broken.pem" in each
                                   for each in known(lab)["problems"]))  # fmt: skip
            made.stop()
            wait_until("no tier is left", lambda: known(lab)["load"] is None)


def known(lab: Site) -> Any:
    """The tier, as the agent of the balancer on its host shows it; nothing if there is none."""
    return lab.get("/v1/status")["tier"] or {"load": None, "problems": []}


def test_a_conversation_comes_back_to_the_engine_that_knows_it(tmp_path: Path):
    """Each is a client of the balancer with an address of its own, and all go on without them."""
    name = f"st-tier-homes-{os.getpid()}"
    with site(name=name, backends=3, forward=Forward.FULLNAT, services=chat) as lab:
        client, vip = lab.lab.node("client"), lab.lab.vips[0]
        net = ip_network(f"{client.ipv4}/24", strict=False)
        # 64 addresses of the client's network, where no node is.
        sources = list(net.subnets(new_prefix=26))[-2]
        entering = netns.entering(client.namespace)
        with tier(tmp_path, f"{vip}:{CHAT}", entering, metrics="off") as made:
            made.document["affinity"] = {"sources": [str(sources)]}
            made.write()
            assert "ip route add local" in made.reload()["problems"][0]
            assert "not kept at their engines" in made.lbctl("status").stdout
            assert len(engines(lab, made, [conversation(0, 1)])) == 1, "it goes on without"
            done = lab.run("client", "ip", "route", "add", "local", str(sources), "dev", "lo")
            assert done.returncode == 0, done
            wait_until("sessions are kept", made.serves)
            asked = [conversation(of, turn) for of in range(12) for turn in range(4)]
            found = engines(lab, made, asked)
            homes = [set(found[at : at + 4]) for at in range(0, len(found), 4)]
            assert all(len(home) == 1 for home in homes), homes
            assert len(set(found)) == 3, "every engine is some conversation's"
            keyed = [{"prompt_cache_key": "mine", **conversation(of, 0)} for of in range(12)]
            assert len(set(engines(lab, made, keyed))) == 1, "the client says what belongs together"
            assert made.status()["affinity"]["kept"]
            done = lab.run("client", "ip", "route", "del", "local", str(sources), "dev", "lo")
            assert done.returncode == 0, done
            wait_until("it goes on without", lambda: not made.status()["affinity"]["kept"])
            assert "ip route add local" in made.status()["problems"][0]
            assert len(engines(lab, made, [conversation(0, 1)] * 3)) == 3


def chat(lab: Any) -> list[dict[str, Any]]:
    nodes = [lab.node(f"be{number + 1}") for number in range(lab.backends)]
    backends = [{"name": one.name, "address": str(one.ipv4), "port": PORT} for one in nodes]
    return [{
        "name": "chat", "vip": str(lab.vips[0]), "port": CHAT, "forward": "fullnat",
        "scheduler": "least-load", "affinity": {"by": "source"}, "learn_speed": False,
        "health": {"type": "none"}, "backends": backends,
    }]  # fmt: skip


def conversation(number: int, turn: int) -> dict[str, Any]:
    """The request of one turn: all that was said before, and a question."""
    said = [
        {"role": role, "content": f"{role} {number}.{at} " + "word " * 200}
        for at in range(turn)
        for role in ("user", "assistant")
    ]
    rules = {"role": "system", "content": "You are an assistant of ours. " * 30}
    question = {"role": "user", "content": f"user {number}.{turn} " + "word " * 200}
    return {"model": "m", "messages": [rules, *said, question], "max_tokens": 10}


def engines(lab: Site, made: TierUnderTest, bodies: Sequence[Any]) -> list[str]:
    """The engine that answers each of these requests."""
    words: list[str] = []
    for number, body in enumerate(bodies):
        file = made.folder / f"body{number}"
        file.write_text(json.dumps(body))
        words += [
            *(["--next"] if words else []), "-s", "--cacert", str(made.authority.certificate),
            "--resolve", f"{HOST}:{made.port}:127.0.0.1", "--max-time", "60", "-o", "/dev/null",
            "-w", "%header{x-backend}\\n", "--data-binary", f"@{file}",
            f"https://{HOST}:{made.port}/",
        ]  # fmt: skip
    done = lab.run("client", "curl", "--fail-early", *words, timeout_s=600)
    assert done.returncode == 0, done
    return done.stdout.split()


# -- TLS


def test_mozillas_profiles_and_resumption(open_: TierUnderTest):
    def shake(*words: str) -> str:
        done = subprocess.run(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{open_.port}", "-servername", HOST,
             "-CAfile", str(open_.authority.certificate), *words],
            input="", capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        return done.stdout + done.stderr

    session = open_.folder / "session"
    assert "Cipher is (NONE)" in shake("-tls1_1", "-cipher", "ALL:@SECLEVEL=0")
    assert "Protocol: TLSv1.2" in shake("-tls1_2").replace("Protocol  : ", "Protocol: ")
    assert "Reused" not in shake("-tls1_2", "-sess_out", str(session))
    assert "Reused" in shake("-tls1_2", "-sess_in", str(session))
    open_.write(profile="modern")
    open_.reload()
    wait_until("TLS 1.2 is over", lambda: "Cipher is (NONE)" in shake("-tls1_2"))
    assert "TLSv1.3" in shake("-tls1_3")
    assert curl(open_, "--http2") == "200"


def test_clients_need_a_certificate_that_was_not_revoked(tmp_path: Path, engine: Engine):
    made = TierUnderTest(tmp_path, engine.at)
    authority = made.authority
    alice, eve = (authority.issue(name, f"/CN={name}") for name in ("alice", "eve"))
    made.write(client_certificates={
        "ca_file": str(authority.certificate), "crl_file": str(authority.revoked(eve))
    })  # fmt: skip
    try:
        made.start()
        connection = made.connect(client_context(authority, alice))
        connection.request("GET", "/", headers={"X-Client-Name": "root"})
        assert b'"x-client-name": "alice"' in connection.getresponse().read().lower()
        for pair in (None, eve):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                asked(made.connect, client_context(authority, pair))
    finally:
        made.stop()


def asked(connect: Callable[[ssl.SSLContext], Any], context: ssl.SSLContext) -> None:
    """Ask in a connection; TLS 1.3 says only then that a certificate was refused."""
    connection = connect(context)
    connection.request("GET", "/")
    connection.getresponse()


def test_a_slow_attacker_leaves_connections_for_others(tmp_path: Path, engine: Engine):
    """Slowloris at the port of TLS and at that of plain HTTP; it goes on until it is stopped."""
    port = free_port()
    more = {"max_connections": 200, "limits": {"head_timeout": "5m"},
            "plain": {"listen": [f"127.0.0.1:{port}"]}}  # fmt: skip
    with tier(tmp_path, engine.at, **more) as made, contextlib.ExitStack() as attacks:
        for url in (f"https://127.0.0.1:{made.port}/", f"http://127.0.0.1:{port}/"):
            slow = ("slowhttptest", "-H", "-c", "300", "-r", "300", "-i", "10", "-l", "3600", "-u")
            attack = subprocess.Popen([*slow, url], stdout=subprocess.DEVNULL)
            attacks.callback(attack.wait, 60)
            attacks.callback(attack.kill)

        def refused() -> int:
            return int(made.status()["refused_total"]["connections"])

        wait_until("it has all that one address may have", lambda: refused() > 200)
        assert made.status()["connections"] <= 50, "a quarter of all"
        for _ in range(10):
            assert through(made, made.port) == "127.0.0.9"


def test_only_a_trusted_proxy_says_who_the_client_is(tmp_path: Path, engine: Engine):
    with tier(
        tmp_path, engine.at, behind={"prefixes": ["127.0.0.0/8"], "protocol": "forwarded-for"}
    ) as made:
        assert source_of(made.ask("/", X_Forwarded_For="203.0.113.9, 198.51.100.7")) == (
            "198.51.100.7"
        ), "what the proxy has added is the last one"
        made.write(behind={"prefixes": ["192.0.2.0/24"], "protocol": "forwarded-for"})
        made.reload()
        wait_until("it is not trusted any more",
                   lambda: source_of(made.ask("/", X_Forwarded_For="203.0.113.9"))
                   == "127.0.0.1")  # fmt: skip


@contextlib.contextmanager
def haproxy_in_front(made: TierUnderTest) -> Iterator[int]:
    """The example of an HAProxy that sends the PROXY protocol; its port on loopback."""
    port, text = free_port(), (EDGE / "haproxy.cfg").read_text()
    file = made.folder / "front.cfg"
    file.write_text(
        text.replace("bind :443", f"bind 127.0.0.1:{port}")
        .replace("203.0.113.10:443", f"127.0.0.1:{made.port}")
        .replace("maxconn 10000", "maxconn 100")
    )
    with serving(port, program(), "-db", "-f", str(file)):
        yield port


@contextlib.contextmanager
def nginx_in_front(made: TierUnderTest) -> Iterator[int]:
    """The example of an nginx that ends TLS and sends X-Forwarded-For; its port on loopback."""
    port, text = free_port(), (EDGE / "nginx.conf").read_text()
    pair = made.authority.issue("front", f"/CN={HOST}", f"subjectAltName=DNS:{HOST}")
    for old, new in {
        "listen 443": f"listen 127.0.0.1:{port}",
        "203.0.113.10:443": f"127.0.0.1:{made.port}",
        "/etc/nginx/tls/chat.pem": str(pair.certificate),
        "/etc/nginx/tls/chat.key": str(pair.key),
        "/etc/ssl/certs/ca-certificates.crt": str(made.authority.certificate),
    }.items():
        assert old in text
        text = text.replace(old, new)
    file = made.folder / "nginx.conf"
    file.write_text(
        f"pid {made.folder}/nginx.pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; client_body_temp_path {made.folder}/body;\n{text} }}\n"
    )
    with serving(port, "nginx", "-e", "stderr", "-c", str(file), "-g", "daemon off;"):
        yield port


@contextlib.contextmanager
def serving(port: int, *command: str) -> Iterator[None]:
    process = subprocess.Popen(command)

    def accepts() -> bool:
        assert process.poll() is None, command
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()
            return True
        return False

    try:
        wait_until("it serves", accepts)
        yield
    finally:
        process.terminate()
        process.wait(60)


def through(made: TierUnderTest, port: int, **headers: str) -> str:
    """The client that an engine sees, of one at 127.0.0.9 who connects to this port; empty if
    there is no answer.
    """
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=60)
    sock = socket.create_connection(("127.0.0.1", port), 60, ("127.0.0.9", 0))
    try:
        connection.sock = client_context(made.authority).wrap_socket(sock, server_hostname=HOST)
        sent = {"Host": HOST} | {name.replace("_", "-"): text for name, text in headers.items()}
        connection.request("GET", "/", headers=sent)
        answer = connection.getresponse()
        return source_of((answer.status, {}, json.loads(answer.read())))
    except (ssl.SSLError, ConnectionError, http.client.HTTPException):
        return ""
    finally:
        sock.close()
        connection.close()


def test_keys_that_cannot_be_read_hold_nothing_else_up(tmp_path: Path, engine: Engine):
    keys, fresh = tmp_path / "keys", tmp_path / "fresh"
    keys.touch(mode=0o600)
    with tier(tmp_path, engine.at, keys=str(keys)) as made:
        mine = made.add_key("mine")
        right = keys.read_text()
        fresh.touch(mode=0o600)
        fresh.write_text(f"{right}other not-a-hash\n")
        fresh.rename(keys)
        wait_until("what is wrong is named", lambda: made.status()["problems"])
        assert "the second word for other" in made.status()["problems"][0]
        assert made.ask(key=mine)[0] == 200, "the keys of before go on"
        old = serial(made)
        made.certify()
        wait_until("a certificate is exchanged all the same", lambda: serial(made) != old)
        fresh.touch(mode=0o600)
        fresh.write_text(right)
        made.write(keys=str(fresh))
        assert made.reload()["problems"] == [], "another file of keys"
        keys.rename(fresh)
        wait_until("what is wrong is named", lambda: made.status()["problems"])
        made.write(keys=str(keys))
        assert made.lbctl("reload").returncode == 1, "a file that was never right is refused"
        assert made.ask(key=mine)[0] == 200


def test_the_proxies_are_those_of_a_file_that_is_read_again(tmp_path: Path, engine: Engine):
    """With a list as long as a large CDN's, and exchanged in the worker that runs."""
    ours, theirs = tmp_path / "proxies.txt", tmp_path / "fresh.txt"
    many = "".join(f"10.{n // 256}.{n % 256}.0/24\n" for n in range(3000))
    ours.write_text(f"{many}127.0.0.0/8\n")
    behind = {"files": [str(ours)], "protocol": "proxy"}
    with tier(tmp_path, engine.at, behind=behind) as made, haproxy_in_front(made) as front:
        assert through(made, front) == "127.0.0.9"
        assert through(made, made.port) == "", "the protocol is needed"
        workers = made.status()["reloads_total"]
        theirs.write_text(many)
        theirs.rename(ours)
        wait_until("it is not trusted any more", lambda: through(made, front) == "")
        assert through(made, made.port) == "127.0.0.9", "it needs no protocol"
        theirs.write_text("")
        theirs.rename(ours)
        wait_until("what is wrong is named", lambda: made.status()["problems"])
        assert "name no proxy" in made.status()["problems"][0]
        assert through(made, made.port) == "127.0.0.9", "nothing has changed"
        old = serial(made)
        made.certify()
        wait_until("the rest is exchanged all the same", lambda: serial(made) != old)
        assert "name no proxy" in made.status()["problems"][0]
        theirs.write_text("127.0.0.0/8\n")
        theirs.rename(ours)
        wait_until("it is trusted again", lambda: through(made, front) == "127.0.0.9")
        # HAProxy has the proxies before the agent has noted that all is well.
        wait_until("nothing is wrong any more", lambda: made.status()["problems"] == [])
        assert made.status()["reloads_total"] == workers


def test_an_nginx_in_front_says_who_the_client_is(tmp_path: Path, engine: Engine):
    behind = {"prefixes": ["127.0.0.0/8"], "protocol": "forwarded-for"}
    with tier(tmp_path, engine.at, behind=behind) as made, nginx_in_front(made) as front:
        assert through(made, front) == "127.0.0.9"
        assert through(made, front, X_Forwarded_For="203.0.113.9") == "127.0.0.9", "a lie"


def test_plain_http_leads_to_https_and_a_cas_challenge_to_certbot(
    tmp_path: Path, engine: Engine, other: Engine
):
    port = free_port()
    plain = {"listen": [f"127.0.0.1:{port}"], "acme": other.at}
    with tier(tmp_path, engine.at, plain=plain):

        def asked_plainly(path: str) -> http.client.HTTPResponse:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", path, headers={"Host": HOST})
            return connection.getresponse()

        sent_on = asked_plainly("/v1/models")
        assert (sent_on.status, sent_on.headers["Location"]) == (308, f"https://{HOST}/v1/models")
        challenge = asked_plainly("/.well-known/acme-challenge/token")
        assert challenge.status == 200
        assert b'"engine": "other"' in challenge.read()


def source_of(answer: tuple[int, dict[str, str], Any]) -> str:
    return {name.lower(): value for name, value in answer[2]["headers"].items()}["x-forwarded-for"]


@pytest.mark.parametrize(
    ("concurrent", "affinity", "seen"),
    [(1, None, (1, 1)), (2, {"sources": ["127.9.0.0/28"]}, (2, 0))],
    ids=["some wait", "with sessions none waits"],
)
def test_so_many_requests_wait_and_the_rest_is_told_to_come_back(
    tmp_path: Path, engine: Engine, concurrent: int, affinity: Any, seen: tuple[int, int]
):
    queue = {"concurrent": concurrent, "waiting": 1, "timeout": "60s"}
    with tier(tmp_path, engine.at, queue=queue, affinity=affinity) as made:
        engine.release.clear()
        found: list[int] = []
        threads = [
            threading.Thread(target=lambda: found.append(made.ask("/wait")[0])) for _ in range(2)
        ]
        try:
            for each in threads:
                each.start()
            wait_until("both are where they should be",
                       lambda: [(each["current"], each["queued"])
                                for each in made.status()["engines"]] == [seen])  # fmt: skip
            status, headers, body = made.ask("/")
            assert (status, headers["retry-after"]) == (429, "5")
            assert body["error"]["code"] == "engine_overloaded"
        finally:
            engine.release.set()
            for each in threads:
                each.join()
        assert found == [200, 200]
