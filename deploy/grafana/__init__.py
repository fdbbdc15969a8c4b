"""Makes the dashboards for Grafana; ``make docs`` writes them."""
