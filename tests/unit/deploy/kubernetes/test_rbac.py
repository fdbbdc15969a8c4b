"""The account that deploy/kubernetes/rbac.yaml makes: it can list and watch slices, and no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

MANIFEST = Path(__file__).resolve().parents[4] / "deploy/kubernetes/rbac.yaml"


@pytest.fixture(scope="module")
def objects() -> dict[str, dict[str, Any]]:
    loaded = list(yaml.safe_load_all(MANIFEST.read_text()))
    found = {each["kind"]: each for each in loaded}
    assert len(found) == len(loaded)
    return found


def test_the_role_grants_list_and_watch_of_endpoint_slices_in_one_namespace(objects) -> None:
    rule = {
        "apiGroups": ["discovery.k8s.io"],
        "resources": ["endpointslices"],
        "verbs": ["list", "watch"],
    }
    assert objects["Role"]["rules"] == [rule]
    assert set(objects) == {"ServiceAccount", "Role", "RoleBinding", "Secret"}
    assert {each["metadata"]["namespace"] for each in objects.values()} == {"default"}


def test_the_account_has_the_role_and_a_token(objects) -> None:
    account = objects["ServiceAccount"]["metadata"]
    (subject,) = objects["RoleBinding"]["subjects"]
    assert subject == {"kind": "ServiceAccount", **account}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role"}
    assert objects["RoleBinding"]["roleRef"] == role | {"name": objects["Role"]["metadata"]["name"]}
    assert objects["Secret"]["type"] == "kubernetes.io/service-account-token"
    annotations = objects["Secret"]["metadata"]["annotations"]
    assert annotations == {"kubernetes.io/service-account.name": account["name"]}
