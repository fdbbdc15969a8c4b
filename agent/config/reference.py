"""Makes docs/configuration.md from the schema."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, get_args

from pydantic.fields import FieldInfo

from agent.config.api_schema import ApiRolesSection, ApiSection
from agent.config.discover_schema import DiscoverSection, OverrideSection
from agent.config.durations import format_duration
from agent.config.failover_schema import (
    AnnouncementsSection,
    FailoverSection,
    InstanceSection,
    SyncSection,
    TrackedInterfaceSection,
    TrackedScriptSection,
    TrackSection,
)
from agent.config.fleet_schema import EtcdSection, FleetSection
from agent.config.kinds import Kind
from agent.config.schema import (
    AuditLogSection,
    CompanionSection,
    GlobalSection,
    GueSection,
    NatSection,
    SocketRolesSection,
    StatusPageSection,
    TablesSection,
    TunnelSourceSection,
)
from agent.config.section import Section
from agent.config.service_schema import (
    BackendSection,
    DefaultsSection,
    HealthSection,
    LimitsSection,
    OutlierSection,
    ServiceSection,
    SloSection,
    TimeoutsSection,
)
from agent.config.suricata_schema import SuricataSection
from agent.config.telemetry_schema import (
    AffinitySection,
    ModelSection,
    NodeSection,
    RebalanceSection,
    ScaleSection,
    TelemetrySection,
)

_ROOT = Path(__file__).resolve().parents[2]
TARGET = _ROOT / "docs" / "configuration.md"
EXAMPLE = _ROOT / "deploy" / "agent.example.yaml"

_INTRODUCTION = """\
# Configuration

<!-- Made from agent/config/ by `make docs`; do not edit. -->

The agent reads one YAML file, `/etc/steelyard/agent.yaml` unless `lb-agent run --config` names
another. `systemctl reload lb-agent` (SIGHUP) makes it read the file again.

- All errors in it are reported at once, each with file, line and remedy, and nothing is applied
  then. At a reload the running configuration stays, at a start the last good one is used (from
  `<state_dir>/<name>.running.yaml`), and `lbctl status` says so.
- A file whose last line does not end with a line feed is refused, because it may have been cut
  off there.
- A reload that removes a service, or more than half of the backends of one, while they have open
  flows is refused, with their number, until `lbctl reload --yes` confirms it.
- Unknown and duplicate keys are refused. A key without a value means its default.
- A duration is a number of seconds, or a text: `500ms`, `2s`, `15m`, `1h`.
- Changes that `lbctl` makes at run time go through the same checks and survive restarts. They hold
  until the file changes. Then the whole file is applied, the log names the runtime changes that
  were dropped, and these are kept in `<state_dir>/<name>.running.yaml.previous`.
  `lbctl export` prints the running configuration in the form of this file, passwords included.

## Example

```yaml
{example}```
"""

_RULES = """\
## Rules between values

- Names of services are unique. Names of backends are unique in their service, and so are their
  addresses (with `nat` and `fullnat`: their addresses and ports).
- A VIP, port and protocol belong to one service. Ranges of ports do not overlap. A single port
  inside a range may be another service, which wins over the range, but the range must not begin
  with it.
- Prefixes may lie within each other, and contain VIPs of one address: the longest match wins.
  No two VIPs begin with the same address.
- No backend and no source address of `nat` is a VIP, or within one.
- Backends have addresses of the VIP's family; with `ipip` and `gue`, of either family.
- Only backends of `nat` and `fullnat` have a `port`.
- `nat` tells answers apart by the backend's address, port and protocol: with it, these belong to
  one service, a backend of a service for several ports has no `port`, and the VIP is not a prefix.
  `fullnat` has no such limits.
- A setting that does not apply to the service's scheduler or protocol is refused.
- With `quic_server_id_bytes`, each backend has a `quic_server_id` of that length, and no two are
  the same.
- `health.timeout` is at most `health.interval`.
- A check of a udp service has a `health.port`, or type `udp`, `dns`, `ping`, `exec` or `none`. A
  check of a service for any port has a `health.port` or type `ping`, `exec` or `none`, unless all
  its backends have a `port`.
- `method`, `path`, `host` and `expect_status` are for http and https checks, `path` also for
  completion, `host` and `tls` for completion and grpc, `verify_tls` for https and with `tls`;
  `model`, `every` and `answer_within` for completion, `grpc_service` for grpc, `send` and
  `expect` for tcp and udp, `query` and `record` for dns, `command` for exec, which requires it. A
  check of type `none` may keep them.
- VIPs and backends are unicast addresses, not those of the loopback interface.
- The `zone` of a backend is one of `zones`, and each prefix of clients belongs to one zone. A
  service has a ring for each zone that its backends are in, and the rings of all services fit
  into `tables.zone_rings`.
- `telemetry` of type `prometheus` has `running`, `waiting` or both; other types have neither.
- With `telemetry` or `model`, a service for any port has a `port` there or in
  `health`, on which its servers are asked, unless all its backends have a `port`.
- Names of instances of `failover` are unique. An address is in one instance only, and is not a
  backend's. At most one instance leaves out `vips`. On an interface, a `vrid` belongs to one
  instance for each family. Version 2 has IPv4 VIPs only. Where `peers` are given, there is one for
  each family of the VIPs. Instances of a `group` have the same `method` and `priority`. `sync` and
  `authentication: hmac` need a `key_file`.
- Connections can be reset (`rebalance.rate`) only if the service is tcp, counts waiting bytes
  (`count_waiting`), and does not send clients back to where they were: its scheduler is not
  `source`, and it has no `affinity`. `affinity`, `slo` and `scale.waiting_bytes` need
  `count_waiting`.
- `scale.requests` and `scale.queued` need a `telemetry` whose engines report requests.
- The groups of `socket_roles` exist on the host on which the agent starts or reloads, and beside
  them there is no `socket_group`: its members are admins, so it belongs to `admin`.
- An `api` with a `listen` has a `certificate`, a `key_file`, a `client_ca` and at least one name in
  `roles`, none of them twice. The user exists on the host on which the agent starts or reloads.
- A `fleet` with a `name` has `etcd.endpoints`, all of them with TLS or none. A `cert_file` comes
  with a `key_file`, a `user` with a `password_file`.
- `suricata` has an `eve` if it has anything else, and no signature is both in `block_signatures`
  and in `log_signatures`.
- A `status_page` that listens beyond loopback addresses has a `token_file`, a `certificate` and a
  `key_file`.

## Changes while connections are open

`lbctl ... --dry-run` and `lbctl diff -f` say beforehand what a change does to open connections.
Two changes are refused, by `lbctl` and at a reload, because open flows could not continue: another
`forward` of a service with open flows, into, out of or between `nat` and `fullnat`; and removing
a source address of `fullnat` that such a flow may use. Drain the service's backends first, or
remove the service and add it again. Between `dsr`, `ipip` and `gue` open flows continue.
"""

SECTIONS: tuple[tuple[str, type[Section]], ...] = (
    ("Top level", GlobalSection),
    ("`socket_roles`", SocketRolesSection),
    ("`api`", ApiSection),
    ("`api.roles`", ApiRolesSection),
    ("`audit_log`", AuditLogSection),
    ("`suricata`", SuricataSection),
    ("`tables`", TablesSection),
    ("`status_page`", StatusPageSection),
    ("`tunnel_source`", TunnelSourceSection),
    ("`gue`", GueSection),
    ("`companion`", CompanionSection),
    ("`nat`", NatSection),
    ("`failover`", FailoverSection),
    ("`failover.instances[]`", InstanceSection),
    ("`failover.instances[].announcements`", AnnouncementsSection),
    ("`failover.instances[].track`", TrackSection),
    ("`failover.instances[].track.interfaces[]`", TrackedInterfaceSection),
    ("`failover.instances[].track.scripts[]`", TrackedScriptSection),
    ("`failover.sync`", SyncSection),
    ("`fleet`", FleetSection),
    ("`fleet.etcd`", EtcdSection),
    ("`services[]`", ServiceSection),
    ("`services[].backends[]`", BackendSection),
    ("`services[].health`", HealthSection),
    ("`services[].outlier`", OutlierSection),
    ("`services[].slo`", SloSection),
    ("`services[].scale`", ScaleSection),
    ("`services[].timeouts`", TimeoutsSection),
    ("`services[].limits`", LimitsSection),
    ("`services[].telemetry`", TelemetrySection),
    ("`services[].node`", NodeSection),
    ("`services[].model`", ModelSection),
    ("`services[].affinity`", AffinitySection),
    ("`services[].rebalance`", RebalanceSection),
    ("`services[].discover`", DiscoverSection),
    ("`services[].overrides[]`", OverrideSection),
    ("`defaults`", DefaultsSection),
)
_SERVICE_ORDER = ("name", "vip", "port", "protocol", "backends")


def reference(example: str) -> str:
    """Return the whole page."""
    parts = [_INTRODUCTION.format(example=example)]
    parts += ["\n".join(section_lines(title, section)) for title, section in SECTIONS]
    return "\n".join([*parts, _RULES])


def section_lines(title: str, section: type[Section]) -> Iterator[str]:
    """Yield the lines that describe one section: its text, and a table of its keys."""
    yield f"## {title}\n"
    yield f"{inspect.getdoc(section)}\n"
    fields = section.model_fields
    if section is DefaultsSection:
        names = ", ".join(f"`{name}`" for name in fields)
        yield f"Keys: {names}, as in `services[]`.\n"
        return
    if section is ServiceSection:
        fields = {name: fields[name] for name in _SERVICE_ORDER} | fields
    yield "| key | value | default | |"
    yield "|-|-|-|-|"
    for name, info in fields.items():
        yield f"| `{name}` | {_kind(info)} | {_default(info)} | {info.description} |"
    if section is GlobalSection:
        yield "| `defaults` | mapping | | Settings for every service that does not set its own. |"
        yield "| `services` | list | | The services. |"
    yield ""


def _kind(info: FieldInfo) -> str:
    found = next(_kinds([info.annotation, *info.metadata]), None)
    if found is not None:
        return found.text
    if info.annotation is bool:
        return "`true` \\| `false`"
    return "list" if "tuple" in str(info.annotation) else "mapping"


def _kinds(annotations: Sequence[Any]) -> Iterator[Kind]:
    for annotation in annotations:
        if isinstance(annotation, Kind):
            yield annotation
        elif not isinstance(annotation, str | bytes):
            yield from _kinds([*get_args(annotation), *getattr(annotation, "__metadata__", ())])


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "**required**"
    value = info.default
    if info.default_factory is not None or value is None or value == ():
        return ""
    return f"`{_shown(value, info)}`"


def _shown(value: object, info: FieldInfo) -> object:
    match value:
        case enum.Enum():
            return value.value
        case bool():
            return str(value).lower()
        case str() | int() | Path() | IPv4Address() | IPv6Address():
            return value
        case float() if "duration" in _kind(info):
            return format_duration(value)
        case (str(host), int(port)):
            return f"{host}:{port}"
        case ((int(low), int(high)),) | (int(low), int(high)):
            return f"{low}-{high}"
    return value


def files() -> dict[Path, str]:
    """Return the text of each file."""
    return {TARGET: reference(EXAMPLE.read_text(encoding="utf-8"))}
