"""Shows the plan of a change, asks where necessary, and reports what was done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from agent.api.client import ApiNotFoundError, ApiUnconfirmedError
from agent.errors import SteelyardError
from agent.humanise import age
from lbctl.environment import Agent, Environment, Output
from lbctl.output import Data, emit, page
from lbctl.suggest import did_you_mean

SIGNS = {"add": ("+", "green"), "change": ("~", "yellow"), "remove": ("-", "red")}
PAST = {"add": "added", "change": "changed", "remove": "removed"}
PLANNED = {action: f"would be {done}" for action, done in PAST.items()}


class RefusedError(SteelyardError):
    """Something that lbctl only does when it is confirmed."""


@dataclass(frozen=True, slots=True)
class Order:
    """One edit, in the form that ``POST /v1/edit`` takes."""

    op: str
    service: str | None = None
    backend: str | None = None
    values: Mapping[str, object] | None = None

    @property
    def target(self) -> str:
        return "/".join(name for name in (self.service, self.backend) if name)

    @property
    def edit(self) -> dict[str, object]:
        return {
            "op": self.op,
            "service": self.service,
            "backend": self.backend,
            "values": dict(self.values or {}),
        }

    def body(self, env: Environment, *, dry_run: bool) -> dict[str, object]:
        return self.edit | {"dry_run": dry_run} | message_of(env)


def message_of(env: Environment) -> dict[str, object]:
    """Return the request field with the person's message about the change; empty without one."""
    return {"message": env.message} if env.message else {}


def change(env: Environment, *orders: Order, dry_run: bool, for_s: float | None = None) -> None:
    """Carry out orders that remove nothing, all or none, and show what they changed.

    ``for_s``: how long the change holds; None: until it is changed again.
    """
    report(env, _post(env, env.agent_to_change(), *orders, dry_run=dry_run, for_s=for_s))
    if for_s is not None and not dry_run:
        env.note(f"it ends in {age(for_s)}; `lbctl backend show` says what comes back then")


def remove(
    env: Environment,
    order: Order,
    *,
    dry_run: bool,
    yes: bool,
    first: Callable[[], None] = lambda: None,
) -> None:
    """Carry out a removal. Show it and ask first, unless ``yes``; call ``first`` before it."""
    if not (dry_run or yes or env.interactive):
        raise RefusedError(
            f"not removing {order.target} without a confirmation: there is no terminal to ask on",
            remedy="--yes removes without asking, --dry-run shows what would happen",
        )
    agent = env.agent_to_change()
    if dry_run:
        report(env, _post(env, agent, order, dry_run=True))
        return
    if yes:
        first()
        report(env, _post(env, agent, order, dry_run=False))
        return
    show_plan(env, _post(env, agent, order, dry_run=True))
    ask(env, f"Remove {order.target}?")
    first()
    report_done(env, _post(env, agent, order, dry_run=False))


def order_cut(
    env: Environment, agent: Agent, path: str, body: Mapping[str, object], *, yes: bool
) -> dict[str, Any]:
    """Give an order that may cut open flows; if it would, ask first, unless ``yes``."""
    if not yes:
        try:
            return agent.post(path, body)
        except ApiUnconfirmedError as refusal:
            if not env.interactive:
                raise
            for problem in refusal.problems:
                env.note(f"{problem.where}: {problem.message}")
            ask(env, "Cut them?")
    return agent.post(path, {**body, "confirmed": True})


def change_silently(env: Environment, order: Order) -> None:
    """Carry out an order that is part of another one, without a report."""
    _post(env, env.agent_to_change(), order, dry_run=False)


def carry_out(
    env: Environment,
    agent: Agent,
    path: str,
    body: Mapping[str, object],
    *,
    plan: dict[str, Any],
    what: str,
    yes: bool,
    may_ask: bool = True,
) -> None:
    """Give an order that may remove something, with its ``plan`` already known.

    Show the plan and ask first, unless ``yes``; without a terminal, refuse if anything would be
    removed. ``what`` is the verb for the question.
    """
    if not plan["changes"]:
        report(env, plan | {"applied": True})
        return
    if yes:
        report(env, order_cut(env, agent, path, body, yes=True))
        return
    if env.interactive and may_ask:
        show_plan(env, plan)
        ask(env, f"{what}: {counted(plan['changes'])}?")
        report_done(env, order_cut(env, agent, path, body, yes=False))
        return
    removals = [change for change in plan["changes"] if change["action"] == "remove"]
    if removals:
        show_plan(env, plan)
        raise RefusedError(
            f"not done without a confirmation, with {counted(removals)}: no terminal to ask on",
            remedy="--yes does it without asking",
        )
    report(env, order_cut(env, agent, path, body, yes=False))


def ask(env: Environment, question: str) -> None:
    """Return only if the person says yes."""
    if not env.confirm(question):
        raise RefusedError("nothing was changed")


def _post(
    env: Environment, agent: Agent, *orders: Order, dry_run: bool, for_s: float | None = None
) -> dict[str, Any]:
    first = orders[0]
    body = first.body(env, dry_run=dry_run)
    if len(orders) > 1:
        body = {"edits": [order.edit for order in orders], "dry_run": dry_run} | message_of(env)
    if for_s is not None:
        body["for_s"] = for_s
    try:
        return agent.post("/v1/edit", body)
    except ApiNotFoundError as error:
        if not error.remedy and first.service and len(orders) == 1:
            error.remedy = guess(agent, first.service, first.backend)
        raise


def guess(agent: Agent, service: str, backend: str | None) -> str:
    """Return the remedy for a service or backend that the agent does not know."""
    services = {view["name"]: view for view in agent.get("/v1/services")["services"]}
    if service not in services or backend is None:
        return did_you_mean(service, services, what="services")
    names = [f"{service}/{view['name']}" for view in services[service]["backends"]]
    return did_you_mean(f"{service}/{backend}", names, what="backends in it")


def report(env: Environment, result: Data) -> None:
    """Write the changes to standard output, and a note whether they were made."""
    emit(env, result, lambda data: change_lines(data["changes"]) or ["no change"])
    _summary(env, result)


def show_plan(env: Environment, result: Data) -> None:
    """Show what is about to happen: as data in a table, or as a message if JSON will follow."""
    text = page(env, change_lines(result["changes"]) or ["no change"])
    if env.output is Output.TABLE:
        env.write(text)
    else:
        env.note(text.rstrip())


def report_done(env: Environment, result: Data) -> None:
    """Report that a plan which was already shown has been carried out."""
    if env.output is not Output.TABLE:
        emit(env, result, lambda _: [])
    _summary(env, result)


def _summary(env: Environment, result: Data) -> None:
    if result["changes"]:
        if result["applied"]:
            env.note(f"done: {counted(result['changes'])}")
            if problem := result.get("unsaved_problem"):
                env.note(f"in memory only, a restart of the agent forgets it: {problem}")
        else:
            env.note(f"dry run, nothing was changed: {counted(result['changes'], PLANNED)}")


SETTINGS = "settings"  # the kind of a change that belongs to neither a service nor a backend


def counted(changes: Sequence[Data], words: Mapping[str, str] = PAST) -> str:
    """Return "1 backend added, 2 services changed", or the same in the words of a plan."""
    tally = Counter((entry["kind"], entry["action"]) for entry in changes)
    return ", ".join(
        f"{_number_of(kind, number)} {words[action]}" for (kind, action), number in tally.items()
    )


def _number_of(kind: str, number: int) -> str:
    if kind == SETTINGS:
        return kind
    return f"{number} {kind}{'' if number == 1 else 's'}"


def change_lines(changes: Sequence[Data], *, effects: bool = True) -> list[object]:
    """Return a plan as lines: sign, object, changed fields, and the effect on traffic."""
    from rich.text import Text

    result: list[object] = []
    for entry in changes:
        sign, style = SIGNS[entry["action"]]
        name = "/".join(part for part in (entry["service"], entry["backend"]) if part)
        fields = _fields(entry["action"], entry["fields"])
        result.append(
            Text.assemble(
                (f"{sign} {entry['kind']} {name}".rstrip(), style), f": {fields}" if fields else ""
            )
        )
        if effects and entry["effect"]:
            result.append(Text(f"    {entry['effect']}", "dim"))
    return result


def _fields(action: str, fields: Sequence[Data]) -> str:
    if action == "remove":
        return ""
    if action == "add":
        return ", ".join(f"{field['field']} {value(field['new'])}" for field in fields)
    return ", ".join(
        f"{field['field']} {value(field['old'])} → {value(field['new'])}" for field in fields
    )


def value(given: object) -> str:
    """Return a configured value on one line."""
    if given is None:
        return "(default)"
    if isinstance(given, bool):
        return "true" if given else "false"
    if isinstance(given, Mapping):
        return "{" + ", ".join(f"{key}: {value(item)}" for key, item in given.items()) + "}"
    if isinstance(given, list | tuple):
        return "[" + ", ".join(value(item) for item in given) + "]"
    return str(given)


def require(values: Mapping[str, object], ctx: click.Context) -> None:
    """Raise UsageError if a ``set`` command sets nothing."""
    if not values:
        raise click.UsageError("nothing to set: give at least one option", ctx)
