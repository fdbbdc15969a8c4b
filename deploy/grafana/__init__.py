"""Makes the dashboards for Grafana; ``python -m deploy.grafana.generate`` writes them."""
