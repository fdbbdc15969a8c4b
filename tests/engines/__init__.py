"""Real engines and clients through the balancer: ``make test-engines`` (outside ``make test``)."""
