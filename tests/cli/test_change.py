"""Commands that change: what the agent is asked, what is shown, and what must be asked first."""

from __future__ import annotations

import io
import threading

import pytest

REMOVAL = {
    "action": "remove",
    "kind": "backend",
    "service": "chat",
    "backend": "gpu-3",
    "fields": [],
    "effect": "its 0 flows end",
}


@pytest.mark.parametrize(
    ("command", "op", "values"),
    [
        ("backend set chat/gpu-1 --weight 50", "backend.set", {"weight": 50}),
        ("backend set chat/gpu-1 --weight 0", "backend.set", {"weight": 0}),
        ("backend drain chat/gpu-1", "backend.set", {"state": "drain"}),
        ("backend enable chat/gpu-1", "backend.set", {"state": "active"}),
        ("backend disable chat/gpu-1", "backend.set", {"state": "maintenance"}),
        ("backend add chat/gpu-1 --address 10.0.0.24", "backend.add", {"address": "10.0.0.24"}),
        (
            "backend add chat/gpu-1 --address 10.0.0.24 --port 8001 --backup --quic-server-id C0FE",
            "backend.add",
            {"address": "10.0.0.24", "port": 8001, "backup": True, "quic_server_id": "c0fe"},
        ),
        ("backend set chat/gpu-1 --no-backup", "backend.set", {"backup": False}),
        (
            "backend set chat/gpu-1 --quic-server-id 00000001",
            "backend.set",
            {"quic_server_id": "00000001"},
        ),
        ("backend remove chat/gpu-1 --yes", "backend.remove", {}),
    ],
)
def test_backend_verbs_become_edits(agent, run, command, op, values):
    result = run(*command.split())
    assert result.code == 0, result.err
    assert agent.edits == [
        {"op": op, "service": "chat", "backend": "gpu-1", "values": values, "dry_run": False}
    ]


def test_service_add_becomes_a_document(agent, run):
    result = run(
        *[
            "service",
            "add",
            "chat",
            "--vip",
            "10.0.0.10",
            "--port",
            "80",
            "--health",
            "http",
            "--health-path",
            "/health",
        ],
        *[
            "--health-interval",
            "1.5",
            "--health-timeout",
            "500ms",
            "--health-expect-status",
            "200,204",
        ],
        *["--timeout", "established=15m", "--timeout", "closing=10", "--health-no-verify-tls"],
        *["--limit", "new_flows_per_source=50/s", "--limit", "open_flows_per_source=200"],
        *["--backend", "gpu-1=10.0.0.21", "--backend", "gpu-2=10.0.0.22,weight=50"],
    )
    assert result.code == 0, result.err
    assert agent.edits[0]["values"] == {
        "vip": "10.0.0.10",
        "port": 80,
        "protocol": "tcp",
        "timeouts": {"established": "15m", "closing": 10.0},
        "limits": {"new_flows_per_source": "50/s", "open_flows_per_source": 200},
        "health": {
            "type": "http",
            "path": "/health",
            "interval": 1.5,
            "timeout": "500ms",
            "expect_status": [200, 204],
            "verify_tls": False,
        },
        "backends": [
            {"name": "gpu-1", "address": "10.0.0.21"},
            {"name": "gpu-2", "address": "10.0.0.22", "weight": 50},
        ],
    }


def test_service_set_sends_only_what_was_named(agent, run):
    run("service", "set", "chat", "--forward", "ipip", "--health-expect-status", "200-299")
    assert agent.edits[0]["values"] == {"forward": "ipip", "health": {"expect_status": "200-299"}}
    run("service", "set", "chat", "--port", "any")
    assert agent.edits[1]["values"] == {"port": "any"}


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ("--vip 192.0.2.0/24 --port 8000-8100", {"vip": "192.0.2.0/24", "port": "8000-8100"}),
        ("--vip FD00:0::/64", {"vip": "fd00::/64"}),
        (
            "--scheduler source --source-prefix 24 --source-bound 1.5",
            {"scheduler": "source", "source_prefix": 24, "source_bound": 1.5},
        ),
        (
            "--scheduler least-load --draws 2 --bytes-per-connection 400 --no-count-waiting",
            {
                "scheduler": "least-load",
                "draws": 2,
                "bytes_per_connection": 400,
                "count_waiting": False,
            },
        ),
        ("--slow-start 30 --no-backend reset", {"slow_start": 30.0, "no_backend": "reset"}),
        ("--slow-start 1m", {"slow_start": "1m"}),
        ("--forward fullnat --count-waiting", {"forward": "fullnat", "count_waiting": True}),
        ("--quic-server-id-bytes 4", {"quic_server_id_bytes": 4}),
        ("--quic-server-id-bytes 0 --source-prefix 0", {
            "quic_server_id_bytes": None, "source_prefix": None,
        }),
    ],
)  # fmt: skip
def test_every_setting_of_a_service_has_an_option(agent, run, options, values):
    result = run("service", "set", "chat", *options.split())
    assert result.code == 0, result.err
    assert agent.edits[0]["values"] == values


def test_a_new_backend_says_everything_in_one_word(agent, run):
    first = "a=10.0.1.21,port=8443,weight=50,backup"
    second = "b=fd00::21,quic-server-id=C0FFEE01"
    options = ["--vip", "10.0.0.10", "--port", "443", "--backend", first, "--backend", second]
    result = run("service", "add", "api", *options)
    assert result.code == 0, result.err
    assert agent.edits[0]["values"]["backends"] == [
        {"name": "a", "address": "10.0.1.21", "port": 8443, "weight": 50, "backup": True},
        {"name": "b", "address": "fd00::21", "quic_server_id": "c0ffee01"},
    ]


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        ("service add chat --vip 10.0.0.10", "--port"),
        ("service add chat --port 80 --vip 10.0.0.300", "not an IPv4 or IPv6 address"),
        ("service add chat --vip 10.0.0.10 --port 0", "1 to 65535, a range such as"),
        ("service add chat --vip 10.0.0.10 --port 90-80", "1 to 65535, a range such as"),
        ("service add chat --vip 10.0.0.10/24 --port 80", "an address inside 10.0.0.0/24"),
        ("service add chat --vip 10.0.0.0/33 --port 80", "a prefix such as 192.0.2.0/24"),
        ("service add c --vip 10.0.0.1 --port 1 --backend gpu-1", "NAME=ADDRESS"),
        ("service add c --vip 10.0.0.1 --port 1 --backend a=10.0.0.2,wieght=1", "mean weight?"),
        ("service add c --vip 10.0.0.1 --port 1 --backend a=10.0.0.2,port=0", "1<=x<=65535"),
        ("service add c --vip 10.0.0.1 --port 1 --backend a=10.0.0.2,port", "[,port=N]"),
        ("service add c --vip 10.0.0.1 --port 1 --backend a=10.0.0.2,backup=yes", "[,backup]"),
        ("service set chat --forward fulnat", "did you mean fullnat?"),
        ("service set chat --scheduler leastload", "did you mean least-load?"),
        ("service set chat --no-backend rest", "did you mean reset?"),
        ("service set chat --draws 9", "2<=x<=8"),
        ("backend set chat/gpu-1 --state drian", "did you mean drain?"),
        ("backend set chat/gpu-1 --quic-server-id 123", "1 to 8 bytes in hexadecimal"),
        ("service add c --vip 10.0.0.1 --port 1 --timeout long=3", "STATE=DURATION"),
        ("service set chat --limit new_flow=3/s", "did you mean new_flows?"),
        ("service set chat", "nothing to set"),
        ("backend set chat/gpu-1", "nothing to set"),
        ("backend set chat/gpu-1 --weight 1001", "1000"),
        ("backend drain gpu-1", "SERVICE/BACKEND, as in chat/gpu-1"),
        ("backend drain chat/", "SERVICE/BACKEND"),
        ("backend add chat/gpu-9", "--address"),
    ],
)
def test_wrong_usage_is_told_before_the_agent_is_asked(agent, run, command, hint):
    result = run(*command.split())
    assert result.code == 2
    assert hint in result.err
    assert agent.edits == []


def test_a_change_is_shown_with_its_effect(agent, run):
    result = run("backend", "set", "chat/gpu-1", "--weight", "50")
    assert result.out.splitlines() == [
        "~ backend chat/gpu-1: weight 100 → 50",
        "    gets 20.0 % of the new flows instead of 33.3 %",
    ]
    assert result.err == "done: 1 backend changed\n"


def test_no_change_says_so(agent, run):
    agent.changes = []
    result = run("backend", "enable", "chat/gpu-1")
    assert (result.code, result.out, result.err) == (0, "no change\n", "")


def test_dry_run_changes_nothing(agent, run):
    result = run("backend", "drain", "chat/gpu-1", "--dry-run")
    assert result.code == 0
    assert agent.applied == []
    assert result.err == "dry run, nothing was changed: 1 backend would be changed\n"


def test_a_change_that_is_in_memory_only_is_said(agent, run):
    agent.unsaved = "no space left"
    result = run("backend", "drain", "chat/gpu-1")
    assert (result.code, len(agent.applied)) == (0, 1)
    assert "in memory only, a restart of the agent forgets it: no space left\n" in result.err


def test_json_of_a_change_is_the_agents_answer(agent, run):
    result = run("backend", "drain", "chat/gpu-1", "-o", "json")
    assert result.json == {"changes": agent.changes, "applied": True}


def test_removal_asks_on_a_terminal_with_the_plan_in_view(agent, run):
    agent.changes = [REMOVAL]
    asked: list[str] = []

    def yes(question: str) -> bool:
        asked.append(question)
        return True

    result = run("backend", "remove", "chat/gpu-3", interactive=True, confirm=yes)
    assert result.code == 0
    assert asked == ["Remove chat/gpu-3?"]
    assert [edit["dry_run"] for edit in agent.edits] == [True, False]
    assert result.out.count("- backend chat/gpu-3") == 1
    assert "done: 1 backend removed" in result.err


def test_removal_that_is_declined_changes_nothing(agent, run):
    result = run("service", "remove", "chat", interactive=True, confirm=lambda _: False)
    assert result.code == 1
    assert "nothing was changed" in result.err
    assert agent.applied == []


def test_removal_without_a_terminal_is_refused_with_the_remedy(agent, run):
    result = run("service", "remove", "chat")
    assert result.code == 1
    assert "--yes" in result.err
    assert agent.edits == []


def test_asked_removal_in_json_keeps_standard_output_clean(agent, run):
    agent.changes = [REMOVAL]
    result = run(
        "backend", "remove", "chat/gpu-3", "-o", "json", interactive=True, confirm=lambda _: True
    )
    assert result.json["applied"] is True
    assert "- backend chat/gpu-3" in result.err


def test_drain_waits_for_the_last_flow(agent, run):
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            agent.services[0]["backends"][0]["flows_established"] = 0

    result = run("backend", "drain", "chat/gpu-1", "--wait", sleep=sleep)
    assert result.code == 0
    assert len(naps) == 3
    assert result.err.count("waiting: 321") == 1
    assert "chat/gpu-1 has no established flows" in result.err


def test_who_waits_is_told_when_the_last_flow_will_have_ended(agent, run):
    one = agent.services[0]["backends"][0]

    def sleep(seconds: float) -> None:
        if seconds == 1.0:
            one["flows_established"] //= 2

    result = run("backend", "drain", "chat/gpu-1", "--wait", sleep=sleep)
    assert result.code == 0
    first, second, *rest = [line for line in result.err.splitlines() if "waiting: " in line]
    assert first.endswith("waiting: 321 established flows")
    assert second.endswith("waiting: 160 established flows; the last one ends in about 10s")
    assert rest[-1].endswith("waiting: 1 established flow; the last one ends in about 10s")


def test_a_removal_can_drain_first(agent, run):
    agent.changes = [REMOVAL]
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        assert [edit["op"] for edit in agent.edits] == ["backend.set"]
        naps.append(seconds)
        if len(naps) == 3:
            agent.services[0]["backends"][0]["flows_established"] = 0

    result = run("backend", "remove", "chat/gpu-1", "--drain", "5m", "--yes", "-o", "json",
                 sleep=sleep)  # fmt: skip
    assert result.code == 0
    assert len(naps) == 3
    assert [edit["op"] for edit in agent.edits] == ["backend.set", "backend.remove"]
    assert agent.edits[0]["values"] == {"state": "drain"}
    assert result.json["applied"] is True


def test_a_removal_waits_no_longer_than_it_was_told(agent, run):
    agent.changes = [REMOVAL]
    naps: list[float] = []
    result = run("backend", "remove", "chat/gpu-1", "--drain", "6s", "--yes", sleep=naps.append)
    assert result.code == 0
    assert sum(naps) == 6
    assert "still has 321 established flows" in result.err
    assert agent.edits[-1]["op"] == "backend.remove"


def test_a_dry_run_of_a_removal_drains_nothing(agent, run):
    agent.changes = [REMOVAL]
    result = run("backend", "remove", "chat/gpu-1", "--drain", "6s", "--dry-run")
    assert result.code == 0
    assert [edit["dry_run"] for edit in agent.edits] == [True]
    assert run("backend", "remove", "chat/gpu-1", "--drain", "soon").code == 2


def test_interrupted_command_exits_as_shells_expect(agent, run):
    def interrupted(_seconds: float) -> None:
        raise KeyboardInterrupt

    result = run("backend", "drain", "chat/gpu-1", "--wait", sleep=interrupted)
    assert result.code == 130
    assert "Aborted" not in result.err


def test_drain_gives_up_waiting_with_the_remedy(agent, run):
    result = run(
        "backend", "drain", "chat/gpu-1", "--wait", "--wait-limit", "5", sleep=lambda _: None
    )
    assert result.code == 1
    assert "lbctl flows --backend chat/gpu-1" in result.err


def test_refusal_shows_every_problem_where_and_remedy(agent, run):
    first = {"message": "weight 2000", "where": "chat", "remedy": "0 to 1000"}
    second = {"message": "port 0", "where": "web", "remedy": "1 to 65535"}
    agent.refuse_edits = (400, {"error": first | {"problems": [first, second]}})
    result = run("service", "set", "chat", "--forward", "ipip")
    assert result.code == 1
    assert "chat: weight 2000\n  remedy: 0 to 1000" in result.err
    assert "web: port 0\n  remedy: 1 to 65535" in result.err
    assert result.out == ""


def test_mistyped_names_are_guessed(agent, run):
    assert "did you mean chat?" in run("service", "show", "caht").err
    assert "did you mean chat/gpu-1?" in run("backend", "show", "chat/gpu1").err
    agent.refuse_edits = (404, {"error": {"message": "there is no backend gup-2"}})
    result = run("backend", "drain", "chat/gup-2")
    assert result.code == 1
    assert "did you mean chat/gpu-2?" in result.err


@pytest.mark.parametrize(
    "command",
    ["status", "service list", "backend drain chat/gpu-1", "diff", "flows", "export"],
)
def test_no_agent_is_exit_code_3_with_the_remedy(run, command):
    result = run(*command.split())
    assert result.code == 3
    assert "remedy:" in result.err
    assert result.out == ""


def test_several_backends_are_drained_in_one_command(agent, run):
    result = run("backend", "drain", "chat/gpu-1", "chat/gpu-2")
    assert result.code == 0, result.err
    (order,) = agent.edits
    assert [edit["backend"] for edit in order["edits"]] == ["gpu-1", "gpu-2"]
    assert order["dry_run"] is False


def test_whoever_waits_for_a_change_is_told_why(agent, run, monkeypatch):
    monkeypatch.setattr("lbctl.environment._TOLD_AFTER_S", 0.01)
    told = threading.Event()

    class Waiting(io.StringIO):
        def write(self, text: str) -> int:
            if "still working" in text:
                told.set()
            return super().write(text)

    real = agent.post

    def post(path: str, body: dict[str, object]):
        assert told.wait(60)
        return real(path, body)

    agent.post = post
    result = run("backend", "drain", "chat/gpu-1", stderr=(stderr := Waiting()))
    assert result.code == 0
    assert stderr.getvalue().splitlines() == [
        "the agent is still working: a new feature needs a new program, which is being compiled",
        "done: 1 backend changed",
    ]


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (("drain", "chat/gpu-1", "embed/gpu-1"), {"state": "drain"}),
        (("disable", "chat/gpu-1"), {"state": "maintenance"}),
        (("set", "chat/gpu-1", "--weight", "5"), {"weight": 5}),
    ],
)
def test_a_change_for_a_time(run, agent, words, values) -> None:
    done = run("backend", *words, "--for", "90m")
    (sent,) = agent.edits
    assert sent["for_s"] == 5400.0
    assert (sent["edits"][0] if "edits" in sent else sent)["values"] == values
    assert "it ends in 1h30m" in done.err
    assert "for_s" not in [*run("backend", *words).err, *agent.edits[-1]]
    assert run("backend", *words, "--for", "soon").code == 2


def test_a_backend_says_what_comes_back(run, agent) -> None:
    name = agent.services[0]["backends"][0]["name"]
    agent.reverts = [
        {"service": "chat", "backend": name, "field": "state", "set_to": "drain",
         "back": "active", "at": "2026-12-01T05:00:00.000Z", "in_s": 90.0},
        {"service": "chat", "backend": name, "field": "weight", "set_to": 5, "back": None,
         "at": "2026-12-01T06:00:00.000Z", "in_s": 3690.0},
        {"service": "embed", "backend": name, "field": "weight", "set_to": 5, "back": 77,
         "at": "2026-12-01T06:00:00.000Z", "in_s": 3690.0},
    ]  # fmt: skip
    out = " ".join(run("backend", "show", f"chat/{name}").out.split())
    assert "(in 1m30s): then state active again" in out
    assert "then weight what its source says again" in out
    assert "77" not in out
