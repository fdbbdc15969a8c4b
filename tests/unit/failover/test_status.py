"""What the failover process says of itself comes through its socket as it is."""

from __future__ import annotations

import json

from agent.failover.status import from_json, to_json
from tests.unit.failover.samples import STATUS


def test_a_status_survives_json() -> None:
    assert from_json(json.loads(json.dumps(to_json(STATUS)))) == STATUS
