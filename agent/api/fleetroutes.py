"""Answers requests about the fleet."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from aiohttp import web

from agent.api import fleetviews, requests, views
from agent.api.answers import Handler, as_json, parameters
from agent.api.control import Control
from agent.config.plan import Change
from agent.config.versions import Author

type Made = Callable[[tuple[Change, ...], bool], web.Response]


class FleetRoutes:
    """The routes below /v1/fleet. ``who`` returns the name of the user who sends a request."""

    def __init__(self, control: Control, who: Callable[[web.Request], str], made: Made) -> None:
        self._control, self._who, self._made = control, who, made

    def handlers(self) -> dict[str, Handler]:
        """Return the handler of each route, by the route's name."""
        return {
            "fleet": self._overview,
            "fleetHistory": self._history,
            "fleetVersion": self._version,
            "fleetDiff": self._diff,
            "fleetCompare": self._compare,
            "fleetRollback": self._rollback,
            "fleetForget": self._forget,
            "fleetOrder": self._order,
        }

    async def _overview(self, request: web.Request) -> web.Response:
        parameters(request)
        return await self._shown()

    async def _shown(self) -> web.Response:
        found = await self._control.in_fleet().overview()
        return as_json(fleetviews.overview(found, time.time()))

    async def _history(self, request: web.Request) -> web.Response:
        given = parameters(request, requests.FLEET_HISTORY_PARAMETERS)
        fleet = self._control.in_fleet()
        entries = await fleet.history(requests.fleet_history(given))
        return as_json(fleetviews.history(entries, fleet.active))

    async def _version(self, request: web.Request) -> web.Response:
        parameters(request)
        number = requests.fleet_version(request.match_info["number"])
        fleet = self._control.in_fleet()
        entry, services = await fleet.version(number)
        active = fleet.active
        newest = number if active is None else active.newest
        entries = await fleet.history(max(newest - number, 0) + 1)
        return await asyncio.to_thread(  # there may be thousands of services
            lambda: as_json(fleetviews.version(entry, services, entries, active))
        )

    async def _forget(self, request: web.Request) -> web.Response:
        parameters(request)
        node = requests.forgotten(requests.json_object(await request.read()))
        await self._control.in_fleet().forget(node)
        return await self._shown()

    async def _diff(self, request: web.Request) -> web.Response:
        given = parameters(request, requests.DIFF_PARAMETERS)
        changes = await self._control.in_fleet().diff(*requests.diff_request(given))
        return as_json({"changes": views.changes(changes)})

    async def _compare(self, request: web.Request) -> web.Response:
        one, other = requests.compared(parameters(request, requests.COMPARE_PARAMETERS))
        found = await self._control.in_fleet().compare(one, other)
        return as_json(fleetviews.compared(one, other, found))

    async def _rollback(self, request: web.Request) -> web.Response:
        parameters(request)
        asked = requests.rollback_request(requests.json_object(await request.read()))
        how = asked.how
        author = Author(self._who(request), how.message)
        made = await self._control.fleet_rollback(
            asked.version, asked.service, how.dry_run, confirmed=how.confirmed, author=author
        )
        return self._made(made, not how.dry_run)

    async def _order(self, request: web.Request) -> web.Response:
        parameters(request)
        verb, body = request.match_info["verb"], await request.read()
        message = requests.fleet_order(verb, requests.json_object(body) if body else {})
        author = Author(self._who(request), message)
        fleet = self._control.in_fleet()
        if verb == "import":
            await fleet.import_services(author)
        elif verb == "freeze":
            await fleet.freeze(author)
        elif verb == "thaw":
            await fleet.thaw()
        else:
            await fleet.end_rollout(promote=verb == "promote", author=author)
        return await self._shown()
