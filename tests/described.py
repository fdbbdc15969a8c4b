"""Checks that answers of the API are as its OpenAPI document says, and have no other keys."""

from __future__ import annotations

import copy
import functools
import json
import re
from typing import Any
from urllib.parse import urlsplit

from jsonschema import Draft202012Validator

from agent.api.openapi import document


@functools.cache
def closed() -> Any:
    """The document, but answers may only have the keys that it names."""
    made = copy.deepcopy(document())
    for schema in made["components"]["schemas"].values():
        if "properties" in schema:
            schema["additionalProperties"] = False
    return made


def check(method: str, target: str, status: int, content_type: str, text: str) -> None:
    """Fail if an answer is not as described. The errors of unknown routes are described, too."""
    operation = _operation(method, urlsplit(target).path)
    responses = operation["responses"] if operation else {}
    content = responses.get(str(status), closed()["components"]["responses"]["Error"])["content"]
    assert str(status) in responses or status >= 400, f"{status} of {method} {target}"
    assert list(content) == [content_type]
    schema = content[content_type]["schema"]
    if content_type == "application/x-ndjson":
        for line in text.splitlines():
            validate(schema, json.loads(line))
    elif content_type == "application/json":
        validate(schema, json.loads(text))


def check_shape(names: tuple[str, ...], body: object) -> None:
    """Fail if a body has none of these shapes."""
    validate({"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in names]}, body)


def validate(schema: dict[str, Any], value: object) -> None:
    """Fail if a value is not as a schema of the document says."""
    _validator(json.dumps(schema)).validate(json.loads(json.dumps(value)))


@functools.cache
def _validator(schema: str) -> Any:
    return Draft202012Validator({**json.loads(schema), "components": closed()["components"]})


def _operation(method: str, path: str) -> Any:
    for template, operations in closed()["paths"].items():
        pattern = re.sub(r"\\{\w+\\}", "[^/]+", re.escape(template))
        if re.fullmatch(pattern, path) and method.lower() in operations:
            return operations[method.lower()]
    return None
