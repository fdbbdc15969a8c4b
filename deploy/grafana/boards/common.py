"""What several dashboards show alike."""

from __future__ import annotations

from agent.model import ServiceState
from deploy.grafana.panels import BAD, FAIR, GOOD, States, yes_no

DROPPED = "steelyard_service_dropped_packets_total"

SERVICE_STATES = States(
    {
        ServiceState.UP.value: GOOD,
        ServiceState.DEGRADED.value: FAIR,
        ServiceState.DOWN.value: BAD,
    }
)

# Of what is 1 or 0: it should be 1; it is no fault, but worth a look when 1; it is wrong when 1.
WANTED = yes_no(yes=GOOD, no=BAD)
UNWANTED = yes_no(yes=FAIR, no=GOOD)
WRONG = yes_no(yes=BAD, no=GOOD)
