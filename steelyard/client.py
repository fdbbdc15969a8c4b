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

    def status(self) -> shapes.Status:
        """Returns the state of the whole balancer, and what is wrong now.

        `GET /v1/status`; role viewer.
        """
        path = "/v1/status"
        return cast("shapes.Status", self._agent.get(path))

    def list_(
        self,
        of: Literal["backends", "services"],
        *,
        sort: Literal["name", "state", "new", "flows", "waiting", "first-byte"] | None = None,
        limit: int | None = None,
        offset: int | None = None,
        service: str | None = None,
        backend: str | None = None,
        state: str | None = None,
        match: str | None = None,
    ) -> shapes.BackendPage | shapes.ServicePage:
        """Returns a page of the backends of all services, or of the services.

        `GET /v1/list/{of}`; role viewer.
        """
        path = f"/v1/list/{quote(str(of), safe='')}"
        given: Parameters = {
            "sort": sort,
            "limit": limit,
            "offset": offset,
            "service": service,
            "backend": backend,
            "state": state,
            "match": match,
        }
        return cast("shapes.BackendPage | shapes.ServicePage", self._agent.get(path, given))

    def services(self) -> shapes.Services:
        """Returns all services with their backends. `GET /v1/services`; role viewer."""
        path = "/v1/services"
        return cast("shapes.Services", self._agent.get(path))

    def service(self, name: str) -> shapes.Service:
        """Returns one service with its backends. `GET /v1/services/{name}`; role viewer."""
        path = f"/v1/services/{quote(str(name), safe='')}"
        return cast("shapes.Service", self._agent.get(path))

    def service_origins(self, name: str) -> shapes.Origins:
        """Returns the settings of a service that are not at their default, and where each comes
        from.

        `GET /v1/services/{name}/origins`; role viewer.
        """
        path = f"/v1/services/{quote(str(name), safe='')}/origins"
        return cast("shapes.Origins", self._agent.get(path))

    def scales(self) -> shapes.Scales:
        """Returns how many backends each service should have. `GET /v1/scale`; role viewer."""
        path = "/v1/scale"
        return cast("shapes.Scales", self._agent.get(path))

    def scale(self, name: str) -> shapes.Scale:
        """Returns how many backends a service should have, and why.

        `GET /v1/scale/{name}`; role viewer.
        """
        path = f"/v1/scale/{quote(str(name), safe='')}"
        return cast("shapes.Scale", self._agent.get(path))

    def flows(
        self,
        *,
        service: str | None = None,
        backend: str | None = None,
        client: str | None = None,
        state: Literal["embryonic", "acked", "established", "closing", "awaiting"] | None = None,
        limit: int | None = None,
        hottest: bool | None = None,
    ) -> shapes.Flows:
        """Returns recorded flows. `GET /v1/flows`; role viewer."""
        path = "/v1/flows"
        given: Parameters = {
            "service": service,
            "backend": backend,
            "client": client,
            "state": state,
            "limit": limit,
            "hottest": _word(hottest),
        }
        return cast("shapes.Flows", self._agent.get(path, given))

    def explain(
        self, *, protocol: Literal["tcp", "udp"], client: str, client_port: int, vip: str, port: int
    ) -> shapes.Explanation:
        """Returns what happens to the next packet of a flow, and why, step by step.

        `GET /v1/explain`; role viewer.
        """
        path = "/v1/explain"
        given: Parameters = {
            "protocol": protocol,
            "client": client,
            "client_port": client_port,
            "vip": vip,
            "port": port,
        }
        return cast("shapes.Explanation", self._agent.get(path, given))

    def trace(
        self,
        *,
        kind: str | None = None,
        service: str | None = None,
        sample: int | None = None,
        filter: str | None = None,
    ) -> Iterator[shapes.TraceEvent | shapes.TraceLost]:
        """Sends the data plane's decisions as they are made, one line of JSON each, until the
        client leaves. At least every second, a line says how many were lost.

        `GET /v1/trace`; role operator.
        """
        path = "/v1/trace"
        given: Parameters = {
            "kind": kind,
            "service": service,
            "sample": sample,
            "filter": filter,
        }
        return cast("Iterator[shapes.TraceEvent | shapes.TraceLost]", self._agent.stream(path, given))

    def events(
        self,
        *,
        since_s: int | None = None,
        after: int | None = None,
        service: str | None = None,
        backend: str | None = None,
        level: Literal["info", "warning", "error"] | None = None,
        event: str | None = None,
        limit: int | None = None,
    ) -> shapes.Events:
        """Returns events of the agent's log at level info and above.

        `GET /v1/events`; role viewer.
        """
        path = "/v1/events"
        given: Parameters = {
            "since_s": since_s,
            "after": after,
            "service": service,
            "backend": backend,
            "level": level,
            "event": event,
            "limit": limit,
        }
        return cast("shapes.Events", self._agent.get(path, given))

    def config(self) -> shapes.Configuration:
        """Returns the running configuration, and how it differs from the file.

        `GET /v1/config`; role viewer.
        """
        path = "/v1/config"
        return cast("shapes.Configuration", self._agent.get(path))

    def edit(self, body: shapes.EditBody | shapes.EditsBody) -> shapes.Made:
        """Changes the running configuration: makes all of the edits, or none.

        `POST /v1/edit`; role admin.
        """
        path = "/v1/edit"
        sent = cast("dict[str, Any]", body)
        return cast("shapes.Made", self._agent.post(path, sent))

    def history(self) -> shapes.History:
        """Returns the stored versions of the running configuration.

        `GET /v1/history`; role viewer.
        """
        path = "/v1/history"
        return cast("shapes.History", self._agent.get(path))

    def history_diff(self, *, old: int, new: int | None = None) -> shapes.Changes:
        """Returns the changes between two versions. `GET /v1/history/diff`; role viewer."""
        path = "/v1/history/diff"
        given: Parameters = {
            "old": old,
            "new": new,
        }
        return cast("shapes.Changes", self._agent.get(path, given))

    def rollback(self, body: shapes.RollbackBody) -> shapes.Made:
        """Restores a version, or one service of it. `POST /v1/rollback`; role admin."""
        path = "/v1/rollback"
        sent = cast("dict[str, Any]", body)
        return cast("shapes.Made", self._agent.post(path, sent))

    def reload(self, body: shapes.ChangeBody | None = None) -> shapes.Made:
        """Reads the configuration file again, as SIGHUP does. `POST /v1/reload`; role admin."""
        path = "/v1/reload"
        sent = cast("dict[str, Any]", body or {})
        return cast("shapes.Made", self._agent.post(path, sent))

    def fleet(self) -> fleetshapes.FleetOverview:
        """Returns the fleet: its balancers, the version of each, and the rollout.

        `GET /v1/fleet`; role viewer.
        """
        path = "/v1/fleet"
        return cast("fleetshapes.FleetOverview", self._agent.get(path))

    def fleet_history(self, *, limit: int | None = None) -> fleetshapes.FleetHistory:
        """Returns the newest versions of the fleet's services.

        `GET /v1/fleet/history`; role viewer.
        """
        path = "/v1/fleet/history"
        given: Parameters = {
            "limit": limit,
        }
        return cast("fleetshapes.FleetHistory", self._agent.get(path, given))

    def fleet_version(self, number: int) -> fleetshapes.WholeFleetVersion:
        """Returns one version of the fleet's services.

        `GET /v1/fleet/versions/{number}`; role viewer.
        """
        path = f"/v1/fleet/versions/{quote(str(number), safe='')}"
        return cast("fleetshapes.WholeFleetVersion", self._agent.get(path))

    def fleet_diff(self, *, old: int, new: int | None = None) -> shapes.Changes:
        """Returns the changes between two versions of the fleet's services.

        `GET /v1/fleet/diff`; role viewer.
        """
        path = "/v1/fleet/diff"
        given: Parameters = {
            "old": old,
            "new": new,
        }
        return cast("shapes.Changes", self._agent.get(path, given))

    def fleet_compare(self, *, one: str, other: str) -> fleetshapes.FleetComparison:
        """Returns the services that two balancers of the fleet do not treat alike.

        `GET /v1/fleet/compare`; role viewer.
        """
        path = "/v1/fleet/compare"
        given: Parameters = {
            "one": one,
            "other": other,
        }
        return cast("fleetshapes.FleetComparison", self._agent.get(path, given))

    def fleet_rollback(self, body: shapes.RollbackBody) -> shapes.Made:
        """Makes a new version with the services of an old one, or with one service of it.

        `POST /v1/fleet/rollback`; role admin.
        """
        path = "/v1/fleet/rollback"
        sent = cast("dict[str, Any]", body)
        return cast("shapes.Made", self._agent.post(path, sent))

    def fleet_forget(self, body: fleetshapes.ForgetBody) -> fleetshapes.FleetOverview:
        """Forgets a balancer that does not report any more, so that nobody misses it.

        `POST /v1/fleet/forget`; role admin.
        """
        path = "/v1/fleet/forget"
        sent = cast("dict[str, Any]", body)
        return cast("fleetshapes.FleetOverview", self._agent.post(path, sent))

    def fleet_order(
        self,
        verb: Literal["import", "promote", "abort", "freeze", "thaw"],
        body: fleetshapes.FleetBody | None = None,
    ) -> fleetshapes.FleetOverview:
        """Writes what runs here as the fleet's first version (`import`), ends a rollout (`promote`,
        `abort`), or keeps this balancer at its version (`freeze`) and no longer (`thaw`).

        `POST /v1/fleet/{verb}`; role admin.
        """
        path = f"/v1/fleet/{quote(str(verb), safe='')}"
        sent = cast("dict[str, Any]", body or {})
        return cast("fleetshapes.FleetOverview", self._agent.post(path, sent))

    def reverts(self) -> shapes.Reverts:
        """Returns the changes that end by themselves. `GET /v1/reverts`; role viewer."""
        path = "/v1/reverts"
        return cast("shapes.Reverts", self._agent.get(path))

    def discovery(self) -> shapes.Sources:
        """Returns the sources of backends, and what they have named.

        `GET /v1/discovery`; role viewer.
        """
        path = "/v1/discovery"
        return cast("shapes.Sources", self._agent.get(path))

    def discovery_accept(self, name: str) -> shapes.Sources:
        """Uses the answer of a service's source that was held because it looked like a mistake.

        `POST /v1/discovery/{name}/accept`; role operator.
        """
        path = f"/v1/discovery/{quote(str(name), safe='')}/accept"
        return cast("shapes.Sources", self._agent.post(path))

    def guard(self) -> shapes.Guard:
        """Returns blocks, lists and limits, what they have dropped, and threats and alerts.

        `GET /v1/guard`; role viewer.
        """
        path = "/v1/guard"
        return cast("shapes.Guard", self._agent.get(path))

    def guard_test(self, *, address: str) -> shapes.GuardTest:
        """Returns what each service does with a new flow from an address.

        `GET /v1/guard/test`; role viewer.
        """
        path = "/v1/guard/test"
        given: Parameters = {
            "address": address,
        }
        return cast("shapes.GuardTest", self._agent.get(path, given))

    def guard_top(
        self,
        *,
        service: str | None = None,
        by: Literal["flows", "waiting"] | None = None,
        limit: int | None = None,
    ) -> shapes.Top:
        """Returns the sources with the most open flows, or with the most waiting bytes.

        `GET /v1/guard/top`; role viewer.
        """
        path = "/v1/guard/top"
        given: Parameters = {
            "service": service,
            "by": by,
            "limit": limit,
        }
        return cast("shapes.Top", self._agent.get(path, given))

    def guard_block(self, body: shapes.BlockBody) -> shapes.Blocked:
        """Drops packets from some sources for a time, and ends their flows.

        `POST /v1/guard/block`; role operator.
        """
        path = "/v1/guard/block"
        sent = cast("dict[str, Any]", body)
        return cast("shapes.Blocked", self._agent.post(path, sent))

    def guard_unblock(self, body: shapes.UnblockBody) -> shapes.Unblocked:
        """Serves blocked sources again. `POST /v1/guard/unblock`; role operator."""
        path = "/v1/guard/unblock"
        sent = cast("dict[str, Any]", body)
        return cast("shapes.Unblocked", self._agent.post(path, sent))

    def failover(self) -> shapes.Failover:
        """Returns failover: instances, the failover process, and flow sync.

        `GET /v1/failover`; role viewer.
        """
        path = "/v1/failover"
        return cast("shapes.Failover", self._agent.get(path))

    def failover_move(
        self, verb: Literal["handover", "promote", "release"], body: shapes.MoveBody
    ) -> shapes.Moved:
        """Moves the VIPs: gives them up, takes them, or lets priorities decide again.

        `POST /v1/failover/{verb}`; role operator.
        """
        path = f"/v1/failover/{quote(str(verb), safe='')}"
        sent = cast("dict[str, Any]", body)
        return cast("shapes.Moved", self._agent.post(path, sent))

    def whoami(self) -> shapes.Whoami:
        """Returns who the caller is, and what the caller may do. `GET /v1/whoami`; role viewer."""
        path = "/v1/whoami"
        return cast("shapes.Whoami", self._agent.get(path))

    def remote_api(self) -> shapes.RemoteApi:
        """Returns where `lb-agent api` is to serve the API over TLS, and with which files.

        `GET /v1/api`; role viewer.
        """
        path = "/v1/api"
        return cast("shapes.RemoteApi", self._agent.get(path))

    def audit(self, *, since_s: int | None = None, limit: int | None = None) -> shapes.Audit:
        """Returns records of the audit log, the newest last, and its head.

        `GET /v1/audit`; role viewer.
        """
        path = "/v1/audit"
        given: Parameters = {
            "since_s": since_s,
            "limit": limit,
        }
        return cast("shapes.Audit", self._agent.get(path, given))

    def openapi(self) -> dict[str, Any]:
        """Returns the description of the API: an OpenAPI 3.1 document.

        `GET /v1/openapi.json`; role viewer.
        """
        path = "/v1/openapi.json"
        return self._agent.get(path)


def _word(value: bool | None) -> str | None:
    return None if value is None else str(value).lower()
