"""Decides how the API is described as an OpenAPI document, for generators of clients and pages."""

from __future__ import annotations

import functools
import inspect
from http import HTTPStatus
from typing import Any, Literal

from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from agent.api import shapes
from agent.api.routes import JSON, ROUTES, TEXT, Parameter, Route

type Json = dict[str, Any]

# The API's version, which changes only if a client could break.
VERSION = "1"
TITLE = "Steelyard agent"
ERRORS = {
    400: "the request is wrong, or what it asks for would make an invalid configuration",
    403: "this user may not use the API, or has a role that does not suffice",
    404: "there is no such path, service, backend or version",
    405: "the path does not support the method",
    409: "it contradicts the agent's state",
    413: "the body is larger than 4 MiB",
    428: "it cuts open flows or is very large, and has to be confirmed",
    500: "the agent failed because of an internal error",
    503: "the kernel or the network refused it, or it cannot be recorded",
}
_REF = "#/components/schemas/{model}"
_TAKEN: JsonSchemaMode = "validation"
_GIVEN: JsonSchemaMode = "serialization"


@functools.cache
def document() -> Json:
    """Return the OpenAPI document, which is made when it is first asked for."""
    wanted = [("Error", _GIVEN, TypeAdapter[Any](shapes.Error))]
    for route in ROUTES:
        if route.answer is not None:
            wanted.append((route.name, _GIVEN, TypeAdapter(route.answer)))
        if route.body is not None:
            wanted.append((route.name, _TAKEN, TypeAdapter(route.body)))
    found, definitions = TypeAdapter.json_schemas(wanted, ref_template=_REF)
    bodies = {(name, mode): _tidy(schema) for (name, mode), schema in found.items()}
    paths: dict[str, Json] = {}
    for route in ROUTES:
        given = bodies.get((route.name, _GIVEN), {"type": "string"})
        taken = bodies.get((route.name, _TAKEN))
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, given, taken)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": TITLE,
            "version": VERSION,
            "description": "HTTP over the Unix socket of the agent. Unknown parameters and fields "
            "of requests are refused. New keys may be added to answers.",
        },
        "servers": [{"url": "http://localhost", "description": "/run/steelyard/agent.sock"}],
        "paths": paths,
        "components": {
            "schemas": _schemas(definitions["$defs"]),
            "responses": {"Error": _error()},
        },
    }


def _operation(route: Route, given: Json, taken: Json | None) -> Json:
    made: Json = {"operationId": route.name, "summary": route.summary, "x-role": route.role.value}
    if route.lesser:
        made["x-lesser-roles"] = [
            {"role": each.role.value, "when": each.when} for each in route.lesser
        ]
    parameters = [_parameter(each, "path") for each in route.placeholders]
    parameters += [_parameter(each, "query") for each in route.parameters]
    if parameters:
        made["parameters"] = parameters
    if taken is not None:
        made["requestBody"] = {
            "required": not route.is_body_optional,
            "content": {JSON: {"schema": taken, "example": route.sent}},
        }
    content = {route.content_type: {"schema": given}}
    made["responses"] = {"200": {"description": HTTPStatus.OK.phrase, "content": content}}
    if route.path == "/healthz":
        made["responses"]["503"] = {"description": "not attached", "content": {TEXT: content[TEXT]}}
    made["responses"]["default"] = {"$ref": "#/components/responses/Error"}
    return made


def _parameter(each: Parameter, place: Literal["path", "query"]) -> Json:
    return {
        "name": each.name,
        "in": place,
        "description": each.text,
        "required": each.is_required,
        "schema": dict(each.schema),
    }


def _error() -> Json:
    statuses = "; ".join(f"{status}: {text}" for status, text in ERRORS.items())
    schema = {"$ref": _REF.format(model="Error")}
    return {"description": statuses, "content": {JSON: {"schema": schema}}}


def _schemas(definitions: Json) -> Json:
    """Return the schemas by name. Those of requests are closed: unknown fields are refused."""
    made = {name: _tidy(schema) for name, schema in sorted(definitions.items())}
    for name, schema in made.items():
        if name.endswith(("Body", "EditFields")):
            schema["additionalProperties"] = False
    return made


def _tidy(schema: Any) -> Any:
    """Return a schema without the titles that only repeat keys, and with short types for null."""
    if isinstance(schema, list):
        return [_tidy(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept: Json = {}
    for key, value in schema.items():
        if key == "properties":
            kept[key] = {name: _tidy(each) for name, each in value.items()}
        elif key == "description":
            kept[key] = " ".join(inspect.cleandoc(value).replace("``", "`").split())
        elif key != "title":
            kept[key] = _tidy(value)
    choices = kept.get("anyOf")
    if choices and all(set(each) == {"type"} for each in choices):
        return {"type": [each["type"] for each in choices]} | {
            key: value for key, value in kept.items() if key != "anyOf"
        }
    return kept
