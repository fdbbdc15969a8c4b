"""What the failover process says of itself comes through its socket as it is."""

from __future__ import annotations

import json

import pytest

from agent.errors import ApiError
from agent.failover.status import from_json, to_json
from tests.unit.failover.samples import STATUS


def test_a_status_survives_json() -> None:
    assert from_json(json.loads(json.dumps(to_json(STATUS)))) == STATUS


def test_a_process_of_another_version_is_understood_or_named() -> None:
    """The two units are not restarted at the same moment."""
    newer = to_json(STATUS) | {"mood": "good"}
    newer["routers"] = [router | {"colour": "red"} for router in newer["routers"]]
    assert from_json(newer) == STATUS
    for older in ({}, {"routers": []}, {"routers": [{}]}, newer | {"routers": [{"role": "?"}]}):
        with pytest.raises(ApiError, match="another version") as caught:
            from_json(older)
        assert "restart" in caught.value.remedy
