"""The routes below /v1/fleet: what they pass on, and what they refuse."""

from __future__ import annotations

import json

import pytest

from agent.api import fleetviews
from agent.config.versions import Author
from agent.errors import ConflictError
from agent.fleet.overview import Overview
from agent.fleet.versions import Active, Trial
from tests.unit.api.conftest import ACTIVE, FLEET, FLEET_VERSION, NOW, REPORTS


def test_the_fleet_is_shown_with_each_balancer(api):
    status, body = api.get("/v1/fleet")
    assert status == 200
    assert body["fleet"]["version"] == 11
    assert body["rollout"]["nodes"] == ["lb3"]
    assert body["last_rollout"]["why"] == "bad"
    one, three = body["balancers"]
    assert (one["node"], one["behind_by"], one["drift"]) == ("lb1", 0, False)
    assert (three["node"], three["behind_by"], three["drift"]) == ("lb3", 0, True)
    assert [each["node"] for each in body["missing"]] == ["lb4"]


def test_a_balancer_may_be_behind():
    active = Active(14, 14)
    body = fleetviews.overview(Overview(FLEET, active, REPORTS), NOW)
    assert [each["behind_by"] for each in body["balancers"]] == [3, 2]


def test_while_the_store_is_away_no_balancers_are_shown():
    body = fleetviews.overview(Overview(FLEET, None, None), NOW)
    assert (body["balancers"], body["rollout"]) == ([], None)


@pytest.mark.parametrize(("active", "state"), [(ACTIVE, "stable"), (None, "")])
def test_it_is_said_what_became_of_a_version(active, state):
    (shown,) = fleetviews.history((FLEET_VERSION,), active)["versions"]
    assert shown["state"] == state
    assert fleetviews.version(FLEET_VERSION, {}, (FLEET_VERSION,), active)["state"] == state


def test_the_history_a_version_a_diff_and_a_comparison(api, control):
    assert api.get("/v1/fleet/history?limit=7")[1]["versions"][0]["number"] == 11
    assert api.get("/v1/fleet/versions/11")[1]["services"][0]["name"] == "chat"
    assert api.get("/v1/fleet/diff?old=3&new=4") == (200, {"changes": []})
    assert api.get("/v1/fleet/compare?one=lb1&other=lb3")[1]["differences"] == [
        {"service": "chat", "what": "other settings or backends"}
    ]
    assert control.fleet.asked == [
        ("history", 7), ("version", 11), ("history", 2), ("diff", 3, 4),
        ("compare", "lb1", "lb3"),
    ]  # fmt: skip


@pytest.mark.parametrize("verb", ["import", "promote", "abort", "freeze"])
def test_orders_come_with_who_gave_them_and_why(api, control, verb):
    status, body = api.post(f"/v1/fleet/{verb}", message="because")
    assert status == 200
    assert body["fleet"]["name"] == "prod"
    assert control.fleet.asked == [(verb, Author("root", "because"))]


def test_thawing_needs_no_body(api, control):
    assert api.request("POST", "/v1/fleet/thaw")[0] == 200
    assert control.fleet.asked == [("thaw",)]


def test_a_balancer_is_forgotten(api, control):
    status, body = api.post("/v1/fleet/forget", node="lb4")
    assert (status, body["fleet"]["name"]) == (200, "prod")
    assert control.fleet.asked == [("forget", "lb4")]


def test_a_rollback_is_as_one_of_the_configuration(api, control):
    status, body = api.post("/v1/fleet/rollback", version=3, service="chat", dry_run=True)
    assert (status, body["applied"]) == (200, False)
    assert control.asked == [("fleet_rollback", 3, "chat", True, False)]


@pytest.mark.parametrize(
    ("method", "target", "body", "status", "says"),
    [
        ("POST", "/v1/fleet/melt", {}, 404, "there is no /v1/fleet/melt"),
        ("POST", "/v1/fleet/freeze", {"why": "x"}, 400, "why"),
        ("POST", "/v1/fleet/rollback", {}, 400, "is missing"),
        ("POST", "/v1/fleet/forget", {}, 400, "is missing"),
        ("POST", "/v1/fleet/forget", {"node": ""}, 400, "is missing"),
        ("POST", "/v1/fleet/forget", {"balancer": "lb4"}, 400, "balancer"),
        ("GET", "/v1/fleet/history?limit=0", None, 400, "1 to 1000"),
        ("GET", "/v1/fleet/versions/x", None, 400, "not a number"),
        ("GET", "/v1/fleet/diff", None, 400, "is missing"),
        ("GET", "/v1/fleet/compare?one=lb1", None, 400, "is missing"),
    ],
)
def test_what_is_wrong_is_named(api, method, target, body, status, says):
    sent = None if body is None else json.dumps(body).encode()
    found, answer = api.request(method, target, sent)
    assert found == status
    assert says in json.dumps(answer)


def test_without_a_fleet_it_is_said_how_to_get_one(api, control):
    control.failure = ConflictError("this balancer belongs to no fleet", where="fleet", remedy="x")
    status, body = api.get("/v1/fleet")
    assert status == 409
    assert body["error"]["message"] == "this balancer belongs to no fleet"


EDIT = {"op": "backend.set", "service": "chat", "backend": "gpu-1", "values": {"weight": 7}}


def test_an_edit_may_be_tried_on_some_balancers_first(api, control):
    canary = {"nodes": ["lb3", "lb4", "lb3"], "bake_s": 300}
    assert api.post("/v1/edit", **EDIT, canary=canary)[0] == 200
    assert control.trial == Trial(("lb3", "lb4"), 300.0)
    assert api.post("/v1/edit", **EDIT, canary={"nodes": ["lb3"]})[0] == 200
    assert control.trial == Trial(("lb3",), 0.0)
    assert api.post("/v1/edit", **EDIT)[0] == 200
    assert control.trial is None


@pytest.mark.parametrize(
    ("canary", "says"),
    [
        ("lb3", "is not an object"),
        ({}, "is not a list of balancers' names"),
        ({"nodes": []}, "is not a list of balancers' names"),
        ({"nodes": [7]}, "is not a list of balancers' names"),
        ({"nodes": ["lb3"], "bake_s": -1}, "is not a number of seconds"),
        ({"nodes": ["lb3"], "bake_s": True}, "is not a number of seconds"),
        ({"nodes": ["lb3"], "bake": 1}, "canary.bake"),
    ],
)
def test_a_canary_that_is_none_is_refused(api, canary, says):
    status, body = api.post("/v1/edit", **EDIT, canary=canary)
    assert status == 400
    assert says in json.dumps(body)
