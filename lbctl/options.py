"""Options and argument types that several commands share."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable
from enum import Enum
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, override

import click
from click.shell_completion import CompletionItem

from agent.config.durations import parse_duration
from agent.errors import SteelyardError
from agent.model import BackendRef
from lbctl.environment import DEFAULT_SOCKET, Environment, Output
from lbctl.suggest import nearest

COMPLETION_TIMEOUT_S = 1.0
WATCH_INTERVAL_S = 2.0
_WHERE = "lbctl.where"

type Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


if TYPE_CHECKING:
    _Type = click.ParamType[Any]
else:  # not generic in older versions of click
    _Type = click.ParamType


class Endpoint(NamedTuple):
    """An address and a port."""

    address: str
    port: int


def _set_output(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    if value is not None and not ctx.resilient_parsing:
        ctx.ensure_object(Environment).output = Output(value)


def _set_socket(ctx: click.Context, _param: click.Parameter, value: Path | None) -> None:
    if value is not None:
        env = _where(ctx)
        env.socket, env.socket_given = value, True


def _where(ctx: click.Context) -> Environment:
    """Return what says which agent is meant: the environment, or during completion, which runs no
    command, one for that.
    """
    if ctx.resilient_parsing:
        found: Environment = ctx.meta.setdefault(_WHERE, Environment())
        return found
    return ctx.ensure_object(Environment)


def _set_remote(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value is not None:
        setattr(_where(ctx).remote, str(param.name), value)


output_option: Decorator = click.option(
    "-o",
    "--output",
    type=click.Choice([output.value for output in Output]),
    callback=_set_output,
    expose_value=False,
    help="Format of the output.  [default: table]",
)

socket_option: Decorator = click.option(
    "--socket",
    # connecting to it gives a better error, with the remedy
    type=click.Path(path_type=Path, readable=False),
    envvar="STEELYARD_SOCKET",
    callback=_set_socket,
    expose_value=False,
    help=f"The agent's socket.  [default: {DEFAULT_SOCKET}; env: STEELYARD_SOCKET]",
)

_pem = click.Path(path_type=Path, dir_okay=False)


def remote_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Allow to name an agent on another host."""
    options: tuple[tuple[str, Any, str], ...] = (
        ("--context", str, "An agent on another host, by its name: lbctl context list"),
        ("--server", str, "An agent on another host: where its `lb-agent api` is."),
        ("--cert", _pem, "Your certificate for --server."),
        ("--key", _pem, "Its key."),
        ("--ca", _pem, "What the server's certificate must be signed by.  [default: the system's]"),
    )
    metavars = {"--context": "NAME", "--server": "HOST[:PORT]"}
    for name, kind, text in reversed(options):
        variable = f"STEELYARD_{name.removeprefix('--').upper()}"
        function = click.option(
            name,
            type=kind,
            envvar=variable,
            metavar=metavars.get(name, "FILE"),
            callback=_set_remote,
            expose_value=False,
            help=f"{text}  [env: {variable}]",
        )(function)
    return function


_late_context_option: Decorator = click.option(
    "--context", metavar="NAME", callback=_set_remote, expose_value=False, hidden=True
)

# The same options after the command; the environment variables are read once, at the root.
_late_socket_option: Decorator = click.option(
    "--socket",
    # connecting to it gives a better error, with the remedy
    type=click.Path(path_type=Path, readable=False),
    callback=_set_socket,
    expose_value=False,
    hidden=True,
)

dry_run_option: Decorator = click.option(
    "--dry-run", is_flag=True, help="Show what would change, and change nothing."
)


def _set_message(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    if value is not None and not ctx.resilient_parsing:
        ctx.ensure_object(Environment).message = value


message_option: Decorator = click.option(
    "-m",
    "--message",
    metavar="TEXT",
    callback=_set_message,
    expose_value=False,
    help="The reason, in a few words; `lbctl history` and `lbctl events` show it.",
)

yes_option: Decorator = click.option("-y", "--yes", is_flag=True, help="Do not ask.")

watch_option: Decorator = click.option(
    "-w",
    "--watch",
    "watch_s",
    is_flag=False,
    flag_value=WATCH_INTERVAL_S,
    default=None,
    type=click.FloatRange(min=0.1),
    metavar="[SECONDS]",
    help=f"Show it again every SECONDS ({WATCH_INTERVAL_S:g} if not given) until Ctrl-C.",
)


def agent_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Allow ``-o``, ``--socket`` and ``--context`` after the command, too."""
    return output_option(_late_socket_option(_late_context_option(function)))


def services_for_completion(ctx: click.Context) -> list[dict[str, Any]]:
    """Return the agent's services, or none: completion must never fail or hang."""
    with contextlib.suppress(SteelyardError):
        agent = ctx.meta.get(_WHERE, Environment()).agent(COMPLETION_TIMEOUT_S)
        services: list[dict[str, Any]] = agent.get("/v1/services")["services"]
        return services
    return []


class ServiceName(_Type):
    """The name of a service; the shell completes it from the agent."""

    name = "service"

    @override
    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        names = [service["name"] for service in services_for_completion(ctx)]
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


class BackendName(_Type):
    """SERVICE/BACKEND; the shell completes it from the agent."""

    name = "service/backend"

    @override
    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> BackendRef:
        if isinstance(value, BackendRef):
            return value
        service, _, backend = str(value).partition("/")
        if not (service and backend) or "/" in backend:
            self.fail(
                f"{value!r}: a backend is named SERVICE/BACKEND, as in chat/gpu-1"
                " (lbctl backend list shows them)",
                param,
                ctx,
            )
        return BackendRef(service, backend)

    @override
    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        names = [
            f"{service['name']}/{backend['name']}"
            for service in services_for_completion(ctx)
            for backend in service["backends"]
        ]
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


class BackendFilter(BackendName):
    """SERVICE/BACKEND, or BACKEND for a backend of that name in any service."""

    name = "backend"

    @override
    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> BackendRef:
        if isinstance(value, str) and value and "/" not in value:
            return BackendRef("", value)
        return super().convert(value, param, ctx)


class ServerName(_Type):
    """A server: an address, or the name of its backends; the shell completes it from the agent."""

    name = "server"

    @override
    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from lbctl.servers import servers

        known = servers(services_for_completion(ctx))
        words = dict.fromkeys([s.name for s in known] + [s.address for s in known])
        return [CompletionItem(word) for word in words if word.startswith(incomplete)]


class WordType(click.Choice[str]):
    """A word of an enumeration; suggests one for a mistyped word."""

    def __init__(self, words: type[Enum] | Iterable[str]) -> None:
        super().__init__([str(w.value) if isinstance(w, Enum) else str(w) for w in words])

    @override
    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        guess = nearest(str(value), self.choices)
        hint = f"; did you mean {guess}?" if guess else ""
        return f"{value!r} is not one of {', '.join(self.choices)}{hint}"


class AddressType(_Type):
    """An IPv4 or IPv6 address."""

    name = "address"

    @override
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return str(ip_address(str(value)))
        except ValueError:
            self.fail(f"{value!r} is not an IPv4 or IPv6 address", param, ctx)


class NetworkType(_Type):
    """An address, or a prefix without host bits."""

    name = "address|prefix"

    @override
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        try:
            if "/" not in text:
                return str(ip_address(text))
            network = ip_network(text, strict=False)
        except ValueError:
            hint = "not an address, nor a prefix such as 192.0.2.0/24"
            if "/" not in text:
                hint = "not an IPv4 or IPv6 address"
            self.fail(f"{value!r} is {hint}", param, ctx)
        if ip_address(text.partition("/")[0]) != network.network_address:
            self.fail(f"{value!r} is an address inside {network}", param, ctx)
        return str(network)


class PrefixType(_Type):
    """An address, or a prefix such as 10.0.0.0/8."""

    name = "address|prefix"

    @override
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return str(ip_network(str(value), strict=False))
        except ValueError:
            self.fail(f"{value!r} is not an address or a prefix such as 10.0.0.0/8", param, ctx)


class DurationType(_Type):
    """A time with its unit, in the configuration's notation; converted to seconds."""

    name = "duration"

    @override
    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        seconds = parse_duration(value)
        if seconds is None:
            self.fail(f"{value!r} is not a time such as 30s, 10m or 2h", param, ctx)
        return seconds


class EndpointType(_Type):
    """ADDRESS:PORT, [IPV6]:PORT."""

    name = "address:port"

    @override
    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Endpoint:
        if isinstance(value, Endpoint):
            return value
        text = str(value)
        match = re.fullmatch(r"(?:\[(?P<v6>[^]]+)\]|(?P<v4>[^:]+)):(?P<port>\d{1,5})", text)
        if match is None:
            hint = "[2001:db8::1]:443" if text.count(":") > 1 else "192.0.2.1:443"
            self.fail(f"{text!r} is not ADDRESS:PORT, as in {hint}", param, ctx)
        try:
            address = ip_address(match["v6"] or match["v4"])
        except ValueError:
            self.fail(f"{text!r}: {match['v6'] or match['v4']!r} is not an address", param, ctx)
        port = int(match["port"])
        if not 0 < port < 65_536:
            self.fail(f"{text!r}: a port is 1 to 65535", param, ctx)
        return Endpoint(str(address), port)


class PortType(_Type):
    """1 to 65535, a range of them, or any."""

    name = "port|first-last|any"

    @override
    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        text = str(value)
        if text == "any":
            return "any"
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", text, re.ASCII)
        ports = [int(port) for port in match.groups() if port] if match else []
        if not ports or not 0 < ports[0] <= ports[-1] < 65_536:
            self.fail(
                f"{value!r} is not a port: 1 to 65535, a range such as 8000-8100, or any",
                param,
                ctx,
            )
        return text if len(ports) > 1 else ports[0]


class ServerIdType(_Type):
    """1 to 8 bytes in hexadecimal."""

    name = "hex"

    @override
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if re.fullmatch(r"(?:[0-9a-fA-F]{2}){1,8}", str(value)) is None:
            self.fail(f"{value!r} is not 1 to 8 bytes in hexadecimal, as in c0ffee01", param, ctx)
        return str(value).lower()


SERVICE = ServiceName()
BACKEND = BackendName()
BACKEND_FILTER = BackendFilter()
SERVER = ServerName()
ADDRESS = AddressType()
VIP = SOURCES = NetworkType()
PREFIX = PrefixType()
DURATION = DurationType()
ENDPOINT = EndpointType()
PORT = PortType()
SERVER_ID = ServerIdType()
