"""``lbctl auth whoami``, and how a refusal is shown."""

from __future__ import annotations

from typing import Any

from agent.config.redact import HIDDEN
from tests.cli.conftest import FakeAgent, Run, refusal

ME: dict[str, Any] = {
    "user": "alice",
    "uid": 1001,
    "role": "operator",
    "groups": ["lb-ops"],
    "roles": {"viewer": [], "operator": ["lb-ops"], "admin": ["lb-admin", "wheel"]},
}


def test_whoami_says_what_i_may_and_why(agent: FakeAgent, run: Run) -> None:
    agent.whoami = ME
    lines = run("auth", "whoami").out.splitlines()
    assert lines[0].split(None, 1) == ["user", "alice (uid 1001)"]
    assert lines[1].split() == ["role", "operator"]
    assert lines[2].split(None, 2) == ["by", "group", "lb-ops"]
    assert "block and unblock sources" in lines[3]
    assert [line.strip() for line in lines[4:]] == [
        "roles     operator: lb-ops",
        "admin: lb-admin, wheel",
    ]
    assert run("auth", "whoami", "-o", "json").json == ME


def test_whoami_without_roles(agent: FakeAgent, run: Run) -> None:
    agent.whoami = ME | {
        "user": "root", "uid": 0, "role": "admin", "groups": [],
        "roles": {"viewer": [], "operator": [], "admin": []},
    }  # fmt: skip
    out = run("auth", "whoami").out
    assert "by group  -" in out
    assert "none: whoever can open the socket may do everything" in out


def test_a_refusal_is_shown_with_its_remedy(agent: FakeAgent, run: Run) -> None:
    agent.refuse_edits = (
        403,
        refusal(
            "alice (uid 1001) is a viewer, and this needs an operator",
            "POST /v1/edit",
            "ask a member of the group lb-ops (operator), or use sudo",
        ),
    )
    done = run("backend", "drain", "chat/gpu-1")
    assert done.code == 1
    assert done.err.splitlines() == [
        "Error: POST /v1/edit: alice (uid 1001) is a viewer, and this needs an operator",
        "  remedy: ask a member of the group lb-ops (operator), or use sudo",
    ]


def test_an_export_without_secrets_says_so(agent: FakeAgent, run: Run) -> None:
    assert run("export").err == ""
    agent.config["hash_seed"] = HIDDEN
    assert "secrets are hidden, because you are no admin" in run("export").err
    assert run("export", "--services-only").err == ""


def test_hidden_settings_are_not_compared(agent: FakeAgent, run: Run) -> None:
    agent.config["hash_seed"] = HIDDEN
    agent.config["gue"] = {"port": 7}
    text = "interface: eth0\nname: edge-1\nhash_seed: 5\n"
    import io

    done = run("diff", "-f", "-", stdin=io.StringIO(text))
    assert "hash_seed" not in done.err + done.out
    assert "gue.port" in done.err + done.out
