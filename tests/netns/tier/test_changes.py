"""A tier with a real HAProxy: no change of it, and no process that dies, costs a request."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import threading
from pathlib import Path

from lbctl.doctor import gather_tier
from tests.netns.site import wait_until
from tests.netns.tier.rig import EVENTS, Engine, TierUnderTest, serial, tier

STREAMS = 40


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
