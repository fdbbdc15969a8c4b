"""Decides what steelyard/client.py says, the typed client for Python: each JSON route is a method.

``make docs`` writes it.
"""

from __future__ import annotations

import builtins
import keyword
import re
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast, get_args, get_origin

from agent.api import shapes
from agent.api.routes import LINES, ROUTES, TEXT, Route, Schema

FILE = Path(__file__).resolve().parents[2] / "steelyard" / "client.py"
_WIDTH = 100
_ANY = "dict[str, Any]"  # what the connection returns

HEAD = '''\
# Made from agent/api/ by `make docs`; do not edit.
"""The typed client of the agent's API: one method for each route that answers with JSON."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import quote

from agent.api.client import DEFAULT_SOCKET, DEFAULT_TIMEOUT_S, Parameters, Server
from agent.api.client import Client as Connection

if TYPE_CHECKING:
    from agent.api import fleetshapes, shapes


class Client:
    """The API of one agent: over its socket on this host, or over TLS on another (``Server``).

    Answers are dictionaries, as docs/api.md describes them. Every method raises
    AgentUnreachableError if there is no answer, and ApiRefusedError if the agent refuses; both say
    what is wrong, where, and how to fix it.
    """

    def __init__(
        self,
        at: Path | Server = DEFAULT_SOCKET,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        self._agent = Connection(at, timeout_s)
'''
TAIL = """

def _word(value: bool | None) -> str | None:
    return None if value is None else str(value).lower()
"""


def text() -> str:
    """Return the content of the file."""
    methods = "".join(f"\n{method(route)}" for route in ROUTES if route.content_type != TEXT)
    return f"{HEAD}{methods}{TAIL}"


def method(route: Route) -> str:
    """Return the method of a route."""
    is_stream = route.content_type == LINES
    answer = _type_of(route.answer)
    returns = f"Iterator[{answer}]" if is_stream else answer
    lines = [
        *_signature(route, returns),
        *_docstring(route),
        *_call(route, returns, is_stream),
    ]
    return "".join(f"    {line}\n" if line else "\n" for line in lines)


def _signature(route: Route, returns: str) -> Iterator[str]:
    given = ["self", *(f"{each.name}: {_kind(each.schema)}" for each in route.placeholders)]
    if route.body is not None:
        kind = _type_of(route.body)
        given.append(f"body: {kind} | None = None" if route.is_body_optional else f"body: {kind}")
    named = sorted(route.parameters, key=lambda each: not each.is_required)
    if named:
        given.append("*")
    given += [
        f"{each.name}: {_kind(each.schema)}" + ("" if each.is_required else " | None = None")
        for each in named
    ]
    start, end = f"def {_name(route.name)}(", f") -> {returns}:"
    whole = f"{start}{', '.join(given)}{end}"
    if len(whole) + 4 <= _WIDTH:
        yield whole
        return
    yield start
    inner = ", ".join(given)
    if len(inner) + 8 <= _WIDTH:
        yield f"    {inner}"
    else:
        yield from (f"    {each}," for each in given)
    yield end


def _docstring(route: Route) -> Iterator[str]:
    asked = f"`{route.method} {route.path}`; role {route.role.value}."
    if len(route.summary) + len(asked) + 15 <= _WIDTH:
        yield f'    """{route.summary} {asked}"""'
        return
    first, *more = textwrap.wrap(route.summary, _WIDTH - 11)
    yield f'    """{first}'
    yield from (f"    {each}" for each in more)
    yield ""
    yield f"    {asked}"
    yield '    """'


def _call(route: Route, returns: str, is_stream: bool) -> Iterator[str]:
    path = re.sub(r"\{(\w+)\}", lambda m: f"{{quote(str({m[1]}), safe='')}}", route.path)
    target = f'f"{path}"' if "{" in path else f'"{path}"'
    asked = f"self._agent.{'stream' if is_stream else route.method.lower()}"
    yield f"    path = {target}"
    if route.parameters:
        yield "    given: Parameters = {"
        for each in route.parameters:
            value = f"_word({each.name})" if _is_boolean(each.schema) else each.name
            yield f'        "{each.name}": {value},'
        yield "    }"
        arguments = "path, given"
    elif route.body is not None:
        yield f'    sent = cast("dict[str, Any]", body{" or {}" if route.is_body_optional else ""})'
        arguments = "path, sent"
    else:
        arguments = "path"
    call = f"{asked}({arguments})"
    yield f"    return {call}" if returns == _ANY else f'    return cast("{returns}", {call})'


def _name(operation: str) -> str:
    """Return the name of a method: ``guardTop`` becomes ``guard_top``."""
    found = re.sub(r"(?<=[a-z])([A-Z])", r"_\1", operation).lower()
    return f"{found}_" if keyword.iskeyword(found) or hasattr(builtins, found) else found


def _kind(schema: Schema) -> str:
    if _is_boolean(schema):
        return "bool"
    if "enum" in schema:
        values = cast("list[str]", schema["enum"])
        return f"Literal[{', '.join(f'"{each}"' for each in values)}]"
    return {"integer": "int", "number": "float"}.get(str(schema.get("type")), "str")


def _is_boolean(schema: Schema) -> bool:
    return schema.get("enum") == ["true", "false"]


def _type_of(shape: Any) -> str:
    """Return how a type of ``shapes`` is written in the file."""
    if isinstance(shape, types.UnionType):
        return " | ".join(_type_of(each) for each in get_args(shape))
    if get_origin(shape) is dict:
        return _ANY
    room = "shapes" if shape.__module__ == shapes.__name__ else "fleetshapes"
    return f"{room}.{shape.__name__}"
