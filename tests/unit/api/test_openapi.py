"""The description of the API is true: nothing is missing in it, and nothing is made up."""

import asyncio
import json
from dataclasses import fields

import aiohttp
import pytest
from jsonschema import Draft202012Validator

from agent.api import answers, requests, shapes
from agent.api.openapi import ERRORS, document
from agent.api.routes import ROUTES
from agent.model import BackendState, Limits, ServiceState, Signal
from agent.state.snapshot import Rates

POSTS = [route for route in ROUTES if route.method == "POST"]
GETS = [route for route in ROUTES if route.method == "GET"]


def routes_of(app):
    return {
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.method != "HEAD"
    }


def test_every_route_is_described(api):
    described = {(route.method, route.path) for route in ROUTES}
    assert described == routes_of(api.server()._api())
    assert len(described) == len(ROUTES)


def test_what_the_port_of_the_metrics_serves_is_described(api):
    described = {(route.method, route.path) for route in ROUTES if route.is_on_metrics_port}
    assert described == routes_of(api.server()._metrics_only())


def ask(api, asks):
    """The messages of refusals (empty: accepted), of one server for all."""

    async def answered():
        server = api.server()
        await server.start()
        found = []
        try:
            connector = aiohttp.UnixConnector(path=str(api.path))
            async with aiohttp.ClientSession(connector=connector) as session:
                for method, target, params, body in asks:
                    url = f"http://agent{target}"
                    async with session.request(method, url, params=params, data=body) as answer:
                        is_refused = answer.status >= 400 and answer.content_type.endswith("json")
                        told = await answer.json() if is_refused else {"error": {"message": ""}}
                        found.append(told["error"]["message"])
        finally:
            await server.stop()
        return found

    return asyncio.run(asyncio.wait_for(answered(), 120))


def known_to_requests(ending):
    """The names in the lists of names that ``requests`` checks."""
    lists = [names for key, names in vars(requests).items() if key.endswith(ending)]
    return {name for names in lists for name in names}


def test_every_parameter_that_a_route_takes_is_described_and_no_other(api):
    described = {each.name for route in ROUTES for each in route.parameters}
    names = sorted(described | known_to_requests("_PARAMETERS") | {"nonsense"})
    asks = [
        (route.method, route.example.partition("?")[0], {name: "~"}, b"{}")
        for route in ROUTES
        for name in names
    ]
    told = iter(ask(api, asks))
    taken = {
        route.name: {name for name in names if "no parameter of that name" not in next(told)}
        for route in ROUTES
    }
    assert taken == {route.name: {each.name for each in route.parameters} for route in ROUTES}


def bodies():
    """The schemas of the bodies that each route takes."""
    for route in POSTS:
        if route.body is None:
            continue
        operation = document()["paths"][route.path]["post"]
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        for each in schema.get("anyOf", [schema]):
            name = each["$ref"].rpartition("/")[2]
            yield route, document()["components"]["schemas"][name]


def test_every_field_that_a_body_takes_is_described_and_no_other(api):
    described = {name for _, shape in bodies() for name in shape["properties"]}
    known = described | known_to_requests("_FIELDS") | {"nonsense"}
    asks, wanted = [], []
    for route, shape in bodies():
        # With ``edits`` another set of fields is known.
        several = {"edits": 5} if "edits" in shape["properties"] else {}
        for name in sorted(known - {"edits"}):
            body = json.dumps({**several, name: []}).encode()
            asks.append(("POST", route.example, {}, body))
            wanted.append((route.name, name, name in shape["properties"]))
    told = ask(api, asks)
    assert wanted == [
        (route, name, "no field of that name" not in message)
        for (route, name, _), message in zip(wanted, told, strict=True)
    ]
    assert keys(shapes.EditFields) == set(requests.ONE_EDIT_FIELDS)


def test_a_body_without_fields_is_refused_where_some_are_required(api):
    wanted = [(route, bool(shape.get("required"))) for route, shape in bodies()]
    told = ask(api, [("POST", route.example, {}, b"{}") for route, _ in wanted])
    assert [is_needed for _, is_needed in wanted] == [bool(message) for message in told]


@pytest.mark.parametrize("route", GETS, ids=lambda route: route.name)
def test_the_example_of_a_read_succeeds(api, route):
    if route.name != "trace":  # it does not end; tests/netns/test_agent.py follows it
        assert api.raw("GET", route.example)[0] == 200


@pytest.mark.parametrize("route", POSTS, ids=lambda route: route.name)
def test_the_example_of_a_change_succeeds_and_is_as_described(api, route):
    body = None if route.sent is None else json.dumps(route.sent).encode()
    assert api.request("POST", route.example, body)[0] == 200
    if route.body is not None:
        content = document()["paths"][route.path]["post"]["requestBody"]["content"]
        schema = {**content["application/json"]["schema"], "components": document()["components"]}
        Draft202012Validator(schema).validate(route.sent)


def test_one_example_uses_each_required_parameter():
    for route in ROUTES:
        needed = {each.name for each in route.parameters if each.is_required}
        assert needed <= {
            each.partition("=")[0] for each in route.example.split("?")[-1].split("&")
        }


def test_the_schemas_are_valid_and_every_one_is_used():
    text = json.dumps(document())
    for name, schema in document()["components"]["schemas"].items():
        Draft202012Validator.check_schema(schema)
        assert f'"#/components/schemas/{name}"' in text, name
        assert schema.get("description") or "properties" not in schema, f"{name} says nothing"


def test_every_status_of_a_refusal_is_described():
    assert {status for _, status in answers._STATUS} <= set(ERRORS)


def test_the_document_is_served(api):
    assert api.get("/v1/openapi.json") == (200, document())


def keys(shape):
    return set(shape.__required_keys__ | shape.__optional_keys__)


def test_shapes_have_every_value_of_the_enumerations():
    assert keys(shapes.BySignal) == {each.value for each in Signal}
    assert keys(shapes.ServiceStates) == {"total", *(each.value for each in ServiceState)}
    assert keys(shapes.BackendStates) == {"total", *(each.value for each in BackendState)}
    assert keys(shapes.Limits) == {each.name for each in fields(Limits)}
    assert keys(shapes.Rates) == {each.name for each in fields(Rates)}
