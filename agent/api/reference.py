"""Makes docs/api.md, docs/openapi.json and the client for Python."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agent.api import pyclient
from agent.api.client import DEFAULT_SOCKET
from agent.api.openapi import ERRORS, document
from agent.api.routes import LINES, ROUTES, TEXT, Parameter, Route

type Json = dict[str, Any]

_KINDS = {"array": "list", "string": "text"}

_DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = _DOCS / "api.md"
DOCUMENT = _DOCS / "openapi.json"
HEAD = """\
<!-- Made from agent/api/ by `make docs`; do not edit. -->
# API

The agent serves HTTP and JSON on a Unix socket, `/run/steelyard/agent.sock`. `lbctl` uses this API,
so another program can see and change what `lbctl` does. Root may use the socket, and so may members
of `socket_group`, or of the groups of `socket_roles`, which give them a role
([configuration](configuration.md), [security](security.md#who-may-do-what)). Other hosts reach it
through `lb-agent api`, over TLS and with a client certificate
([security](security.md#from-other-hosts)); nothing else on the network serves routes that change
anything.

[openapi.json](openapi.json) describes every route and every key of the answers as an OpenAPI 3.1
document, for generators of clients. The agent serves the same document at `/v1/openapi.json`.

For programs in Python there is a typed client, `steelyard`, with a method for each route; it needs
nothing but the standard library. Type checkers know the keys of every answer:

```python
from pathlib import Path

from steelyard import ApiRefusedError, Client, Server

here = Client()  # the socket of this host
there = Client(Server("lb1.example.org", 9443, Path("me.pem"), Path("me.key"), Path("ca.pem")))
for service in here.services()["services"]:
    print(service["name"], service["state"], service["waiting_bytes"])
try:
    here.edit(
        {
            "op": "backend.set",
            "service": "chat",
            "backend": "gpu-1",
            "values": {"state": "drain"},
            "message": "new driver",
        }
    )
except ApiRefusedError as error:
    print(error, error.remedy)
```

- Units are in the keys: `since_s` is in seconds, `p99_ms` in milliseconds, and what ends with
  `_total` only counts up. Times are RFC 3339 texts in UTC. Null means that a value is not known or
  does not apply.
- Unknown parameters, unknown fields of a body and values out of range are refused, so that a typing
  error cannot pass unnoticed.
- New keys, and new values of enumerations, may be added to answers within `/v1`. A program should
  ignore the keys that it does not know.
- The document does not describe the keys of `config` in `GET /v1/config` and of `values` in an
  edit. They are those of the [configuration](configuration.md).
- Every route says which role it needs: `viewer`, `operator` (which includes `viewer`) or `admin`
  (which includes both). `GET /v1/whoami` says which one you have. Whoever is no admin sees
  `(hidden)` instead of secrets. Every change is recorded before it is made: `GET /v1/audit`.

## Errors

A request that is refused has one of these statuses and a body that says what is wrong, where, and
how to fix it. `problems` is only present if there are several.

```json
{"error": {"message": "…", "where": "…", "remedy": "…", "problems": [{"message": "…", …}]}}
```

| status | meaning |
|-|-|
"""


def curl(route: Route, socket: Path = DEFAULT_SOCKET) -> list[str]:
    """Return a command that sends the example of a route."""
    made = ["curl", "--unix-socket", str(socket), f"http://localhost{route.example}"]
    if route.content_type == LINES:
        made.insert(1, "--no-buffer")
    if route.sent is not None:
        made += ["--json", json.dumps(route.sent)]
    elif route.method == "POST":
        made += ["--request", "POST"]
    return made


def page() -> str:
    """Return docs/api.md."""
    parts = [HEAD]
    parts += [f"| {status} | {text} |\n" for status, text in ERRORS.items()]
    parts += ["\n## Routes\n\n| route | role | |\n|-|-|-|\n"]
    parts += [
        f"| [`{_title(route)}`](#{_anchor(route)}) | {_role_in_short(route)} | {route.summary} |\n"
        for route in ROUTES
    ]
    parts += [line for route in ROUTES for line in _section(route)]
    return "".join(parts)


def _title(route: Route) -> str:
    return f"{route.method} {route.path}"


def _anchor(route: Route) -> str:
    """Return the anchor that GitHub makes of a heading."""
    kept = [c for c in _title(route).lower() if c.isalnum() or c in " -_"]
    return "".join(kept).replace(" ", "-")


def _section(route: Route) -> Iterator[str]:
    yield f"\n## {_title(route)}\n\n{route.summary}"
    if route.is_on_metrics_port:
        yield " The port of the metrics serves this, too."
    yield f"\n\n**Role.** {role(route)}.\n\n```sh\n{shlex.join(curl(route))}\n```\n"
    given = (*route.placeholders, *route.parameters)
    if given:
        yield "\n| parameter | value | |\n|-|-|-|\n"
        yield from (_row(each) for each in given)
    operation = document()["paths"][route.path][route.method.lower()]
    if route.body is not None:
        content = operation["requestBody"]["content"]
        note = " The body may be left out." if route.is_body_optional else ""
        for shape in _shapes(content):
            yield f"\n**Body.** {shape['description']}{note}\n\n| field | value |\n|-|-|\n"
            required = shape.get("required", [])
            for name, schema in shape["properties"].items():
                note = " (required)" if name in required else ""
                yield f"| `{name}`{note} | {_value(schema)} |\n"
    yield _answer(route, operation["responses"]["200"]["content"])


def role(route: Route) -> str:
    """Return the role that a route needs, in words."""
    lesser = [f"`{each.role.value}` {each.when}" for each in route.lesser]
    return "; ".join([f"`{route.role.value}`", *lesser])


def _role_in_short(route: Route) -> str:
    return f"{route.role.value}, or less" if route.lesser else route.role.value


def _row(each: Parameter) -> str:
    note = " (required)" if each.is_required else ""
    return f"| `{each.name}`{note} | {_value(dict(each.schema))} | {each.text} |\n"


def _answer(route: Route, content: Json) -> str:
    if route.content_type == TEXT:
        return "\n**Answer.** Text.\n"
    shapes = _shapes(content)
    if not shapes:
        return "\n**Answer.** An object.\n"
    what = "Each line" if route.content_type == LINES else "Answer"
    told = [
        f"{shape['description']} Keys: " + ", ".join(f"`{key}`" for key in shape["properties"])
        for shape in shapes
    ]
    if len(told) == 1:
        return f"\n**{what}.** {told[0]}.\n"
    return f"\n**{what}**, one of these:\n\n" + "".join(f"- {each}.\n" for each in told)


def _shapes(content: Json) -> list[Json]:
    """Return the object schemas that a body may have."""
    (media,) = content.values()
    schema = media["schema"]
    choices = schema.get("anyOf", [schema])
    return [_named(each["$ref"]) for each in choices if "$ref" in each]


def _named(reference: str) -> Json:
    found: Json = document()["components"]["schemas"][reference.rpartition("/")[2]]
    return found


def _value(schema: Json) -> str:
    """Return the values that a schema allows, in words."""
    if "$ref" in schema:
        return _value(_named(schema["$ref"]))
    if "anyOf" in schema:
        return " or ".join(_value(each) for each in schema["anyOf"])
    if "enum" in schema:
        text = ", ".join(f"`{each}`" for each in schema["enum"])
    elif "pattern" in schema:
        words = schema["pattern"].partition("(")[2].partition(")")[0].split("|")
        text = "several with commas: " + ", ".join(f"`{each}`" for each in words)
    else:
        text = _kind(schema)
    default = schema.get("default")
    return text if default is None else f"{text}; default `{default}`"


def _kind(schema: Json) -> str:
    """Return the type of a value, and its bounds."""
    kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    name = " or ".join(str(_KINDS.get(each, each)) for each in kinds)
    low = schema.get("minimum", schema.get("minItems"))
    high = schema.get("maximum", schema.get("maxItems", schema.get("maxLength")))
    if low is not None:
        return f"{name}, {low} to {high}"
    return name if high is None else f"{name}, up to {high:.0f}"


def files() -> dict[Path, str]:
    """Return the text of each file."""
    return {
        PAGE: page(),
        DOCUMENT: json.dumps(document(), indent=1) + "\n",
        pyclient.FILE: pyclient.text(),
    }
