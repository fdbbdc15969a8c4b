"""Queries are PromQL, and their series are called by what tells them apart."""

import pytest

from deploy.grafana.panels import States
from deploy.grafana.queries import BACKEND, NODE, SERVICE, Query, legend, quantiles, rate, ratio


@pytest.mark.parametrize(
    ("by", "name", "wanted"),
    [
        (SERVICE, "", "{{service}}"),
        (BACKEND, "p95", "{{service}}/{{backend}} p95"),
        (NODE, "", "{{instance}}"),
        (NODE, "blocked", "blocked on {{instance}}"),
        ((*SERVICE, "reason"), "", "{{service}} {{reason}}"),
        (("router", "instance"), "sent", "{{router}} sent on {{instance}}"),
    ],
)
def test_a_legend_names_what_differs(by, name, wanted):
    assert legend(by, name) == wanted


def test_a_rate_is_summed_and_may_be_in_another_unit():
    assert rate("a_total", BACKEND, factor=8).expression == (
        "8 * sum by (service, backend) (rate(a_total[$__rate_interval]))"
    )


def test_a_quantile_keeps_the_buckets():
    (query,) = quantiles("a_seconds", SERVICE, 0.99)
    assert query.expression == (
        "histogram_quantile(0.99, sum by (service, le) (rate(a_seconds_bucket[$__rate_interval])))"
    )
    assert query.legend == "{{service}} p99"


def test_a_ratio_is_called_as_its_part():
    assert ratio(Query("a", "of a"), Query("b", "of b"), "on (x)") == Query("a / on (x) b", "of a")


def test_a_state_has_the_number_of_its_place():
    states = States({"up": "green", "down": "red"})
    assert states.of("a_state", SERVICE).expression == (
        'sum by (service) (1 * a_state{state="up"} or 2 * a_state{state="down"})'
    )
    (mapping,) = states.mappings
    assert {number: word["text"] for number, word in mapping["options"].items()} == {
        "1": "up",
        "2": "down",
    }
