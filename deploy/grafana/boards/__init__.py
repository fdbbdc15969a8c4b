"""Decides which dashboards there are; in each module, a panel is a title, a unit and what is asked.

Every selector is narrowed to the balancers and services that the user has chosen (``promql``), so
no query here says so. Of open and of new flows the largest number of all balancers is shown and not
their sum, because those that exchange flows each hold and count all of them.
"""

from __future__ import annotations

from deploy.grafana.boards.drops import DROPS
from deploy.grafana.boards.failover import FAILOVER
from deploy.grafana.boards.load import LOAD
from deploy.grafana.boards.overview import OVERVIEW
from deploy.grafana.boards.service import SERVICES

DASHBOARDS = (OVERVIEW, SERVICES, LOAD, FAILOVER, DROPS)
