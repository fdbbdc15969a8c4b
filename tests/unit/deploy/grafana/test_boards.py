"""The dashboards ask only for what the agent tells, and Grafana can place what they show."""

import json
import re
from itertools import combinations

import pytest

from agent.failover.model import Role
from agent.metrics.families import FAMILIES
from agent.model import BackendState, ServiceState
from deploy.grafana import generate
from deploy.grafana.boards import DASHBOARDS
from deploy.grafana.boards.common import SERVICE_STATES
from deploy.grafana.boards.failover import ROLES
from deploy.grafana.boards.service import BACKEND_STATES
from deploy.grafana.panels import COLUMNS
from deploy.prometheus.promql import family_of, labels_of, selectors

# What no panel shows, and why.
NOT_SHOWN = {
    "steelyard_build_info": "the variable of balancers asks for it",
    "steelyard_service_info": "the variable of services asks for it",
    "steelyard_backend_info": "an address, which `lbctl backend list` tells",
    "steelyard_program_info": "facts that do not change",
    "steelyard_program_compile_seconds": "of one moment",
    "steelyard_service_scale_waiting_bytes": "waiting bytes are shown by backend",
    "steelyard_service_scale_first_byte_seconds": "shown of all balancers, by the histogram",
    "steelyard_service_scale_misses_objective": "the late answers are shown",
    "steelyard_service_scale_target": "a setting; what follows from it is shown",
    "steelyard_service_scale_min_backends": "a setting; what follows from it is shown",
    "steelyard_service_scale_max_backends": "a setting; what follows from it is shown",
    "steelyard_slo_within_seconds": "a setting; its share and its budget are shown",
    "steelyard_program_instructions": "for developers",
    "steelyard_program_jited_bytes": "for developers",
    "steelyard_program_verified_instructions": "for developers",
    "steelyard_trace_lost_events_total": "`lbctl trace` tells those who follow",
    "steelyard_service_closed_flows_total": "open flows are shown",
    "steelyard_backend_packets_total": "bytes are shown",
    "steelyard_backend_established_flows_total": "shown of the service",
    "steelyard_backend_closed_flows_total": "open connections are shown",
    "steelyard_backend_reply_packets_total": "shown of the service, in bytes",
    "steelyard_backend_reply_bytes_total": "shown of the service",
    "steelyard_backend_actual_share_ratio": "that of all balancers together is shown",
    "steelyard_backend_flows": "open connections are shown",
    "steelyard_service_reply_packets_total": "bytes are shown",
}


@pytest.fixture(params=DASHBOARDS, ids=lambda dashboard: dashboard.name)
def document(request):
    return json.loads((generate.FOLDER / f"{request.param.name}.json").read_text())


def expressions(document):
    for panel in document["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]


def test_selectors_are_of_metrics_and_labels_that_there_are(document):
    for expression in expressions(document):
        found = list(selectors(expression))
        assert found, expression
        for series, labels, _ in found:
            assert set(labels) <= labels_of(series), expression
        by = re.findall(r"\b(?:by|on|group_left) \(([^)]*)\)", expression)
        for label in (label for names in by for label in names.split(", ") if label):
            assert any(label in labels_of(each.series) for each in found), (label, expression)


def test_every_selector_is_narrowed_by_the_variables(document):
    variables = {each["name"] for each in document["templating"]["list"]} - {"datasource"}
    for expression in expressions(document):
        for series, labels, _ in selectors(expression):
            if series != "ALERTS":
                assert variables & labels_of(series) <= set(labels), expression


def test_what_every_balancer_counts_is_not_added_up(document):
    """Flows that others tell count as recorded: of a pair, the sum is twice as many."""
    of_flows = r"_(flows|open_connections|busy_connections|(new|established|closed)_flows_total)$"
    for expression in expressions(document):
        for series, _, _ in selectors(expression):
            if re.search(rf"steelyard_(service|backend){of_flows}|steelyard{of_flows}", series):
                assert expression.startswith("max by "), expression


def test_every_metric_is_shown_or_has_a_reason_why_not():
    shown = {
        family.name
        for dashboard in DASHBOARDS
        for expression in expressions(dashboard.document())
        for selector in selectors(expression)
        if (family := family_of(selector.series))
    }
    assert {family.name for family in FAMILIES} - shown == set(NOT_SHOWN)


def test_states_and_roles_are_those_that_there_are():
    assert set(SERVICE_STATES.colours) == {state.value for state in ServiceState}
    assert set(BACKEND_STATES.colours) == {state.value for state in BackendState}
    assert set(ROLES.colours) == {role.value for role in Role}


def test_dashboards_have_addresses_and_titles_of_their_own():
    documents = [dashboard.document() for dashboard in DASHBOARDS]
    for key in ("uid", "title"):
        assert len({document[key] for document in documents}) == len(documents)
    assert all(len(document["uid"]) <= 40 for document in documents)


def test_panels_have_numbers_of_their_own_and_a_title(document):
    numbers = [panel["id"] for panel in document["panels"]]
    assert len(numbers) == len(set(numbers))
    assert all(panel["title"] for panel in document["panels"])
    rows = [panel["title"] for panel in document["panels"] if panel["type"] == "row"]
    assert len(rows) == len(set(rows))


def test_panels_do_not_overlap(document):
    taken = [
        {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        for place in (panel["gridPos"] for panel in document["panels"])
    ]
    assert not any(one & other for one, other in combinations(taken, 2))
    assert all(0 <= x < COLUMNS for cells in taken for x, _ in cells)


def test_queries_of_a_panel_have_names_of_their_own(document):
    for panel in document["panels"]:
        names = [target["refId"] for target in panel.get("targets", ())]
        assert len(names) == len(set(names))
