"""A tier with a real HAProxy: a conversation comes back to its engine, also through a balancer."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from agent.model import Forward
from lbctl.lab import netns
from lbctl.lab.topology import PORT
from tests.netns.site import Site, site, wait_until
from tests.netns.tier.rig import HOST, Engine, TierUnderTest, tier

CHAT = 8001
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
