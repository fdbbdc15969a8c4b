"""Defines the shape of `failover`: instances and their VIPs, tracking, announcements, flow sync."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from agent.config import failover_kinds as own
from agent.config import kinds
from agent.config import network_kinds as net
from agent.config.section import Section
from agent.failover.model import (
    Announcements,
    Authentication,
    Checksum,
    FlowSync,
    Instance,
    Method,
    Track,
    TrackedInterface,
    TrackedScript,
)

_INSTANCE, _TRACK, _SYNC = Instance("any"), Track(), FlowSync()
_SCRIPT, _INTERFACE, _ANNOUNCED = TrackedScript("any", ()), TrackedInterface("any"), Announcements()
_V2_PASSWORD_BYTES = 8
_V3_LONGEST_S = 40.95  # 12 bits of centiseconds
# The keys that only an election uses.
_VRRP_KEYS = (
    "vrid",
    "version",
    "priority",
    "advert_interval",
    "preempt",
    "preempt_delay",
    "accept",
    "peers",
    "source",
    "authentication",
    "password",
    "checksum",
    "virtual_mac",
    "announcements",
)


class AnnouncementsSection(Section):
    """Gratuitous ARP and unsolicited neighbour advertisements.

    With these a new master announces to the segment where the VIPs are now.
    """

    repeat: own.Repeats = Field(
        _ANNOUNCED.repeat,
        description="How many are sent at once for each VIP, and again after `delay`.",
    )
    delay: own.Delay = Field(_ANNOUNCED.delay_s, description="Time until they are repeated.")
    refresh: own.Delay = Field(
        _ANNOUNCED.refresh_s,
        description="How often a master sends one again for each VIP. `0s`: never.",
    )


class TrackedInterfaceSection(Section):
    """An interface that has to be up."""

    name: net.InterfaceName = Field(description="The interface.")
    weight: own.Lost = Field(
        _INTERFACE.weight,
        description="Priority lost while it is down. 0: the node cannot be master while it is "
        "down.",
    )


class TrackedScriptSection(Section):
    """A command whose exit status says whether all is well: 0 means yes."""

    name: kinds.Name = Field(description="Its name in the status and in metrics.")
    command: own.Command = Field(
        description="The program and its arguments; no shell. It runs as `script_user`, or else "
        "as the user of the failover process, which is usually root."
    )
    interval: kinds.Interval = Field(_SCRIPT.interval_s, description="Time between two runs.")
    timeout: kinds.CheckTimeout = Field(
        _SCRIPT.timeout_s, description="A run that takes longer is killed, and counts as failed."
    )
    rise: kinds.Count = Field(
        _SCRIPT.rise, description="Successes in a row after which it is good."
    )
    fall: kinds.Count = Field(_SCRIPT.fall, description="Failures in a row after which it is bad.")
    weight: own.Change = Field(
        _SCRIPT.weight,
        description="0: the node cannot be master while it is bad. Below 0: added to the priority "
        "while it is bad; above 0: while it is good.",
    )

    @model_validator(mode="after")
    def _ends_before_the_next(self) -> Self:
        if self.timeout > self.interval:
            kinds.refuse("timeout is longer than interval", "lower timeout, or raise interval")
        return self


class TrackSection(Section):
    """What a node's priority depends on, apart from its own interface, which has to be up."""

    interfaces: tuple[TrackedInterfaceSection, ...] = Field(
        (), description="More interfaces that have to be up."
    )
    scripts: tuple[TrackedScriptSection, ...] = Field(
        (), description="Commands that check the node."
    )
    services: own.Lost = Field(
        _TRACK.services,
        description="Priority lost while no service of these VIPs has a backend that is up. 0: "
        "services do not matter.",
    )
    dataplane: bool = Field(
        _TRACK.dataplane,
        description="Whether the agent's XDP or tc program has to be attached for the node to be "
        "master.",
    )
    agent: own.Lost = Field(
        _TRACK.agent,
        description="Priority lost once the agent has been away for `agent_grace`: the data plane "
        "continues without it, but nothing checks the backends. 0: the agent does not matter.",
    )
    agent_grace: own.Delay = Field(
        _TRACK.agent_grace_s,
        description="How long a restart of the agent may take. Less than 2s counts as 2s.",
    )


class InstanceSection(Section):
    """VIPs that move together from one balancer to another.

    `vrrp`: one balancer is master and has the VIPs, as with keepalived, whose instances can be its
    peers. An instance with VIPs of both families is two virtual routers with the same `vrid`, which
    move together. `announce`: every balancer that is fit has the VIPs, on `lo`, and a routing
    daemon announces them (docs/active-active.md); only `interface`, `vips`, `group` and `track`
    apply then.
    """

    name: kinds.Name = Field(
        description="Name of the instance: unique, and the same on all balancers, which use it "
        "when they ask each other for the instance."
    )
    method: Annotated[Method, *kinds.choice(Method)] = Field(
        _INSTANCE.method, description="How it is decided which balancer has the VIPs."
    )
    vrid: own.Vrid = Field(
        _INSTANCE.vrid,
        description="Virtual router id: the same on every balancer of the group, and used by no "
        "other group on the segment.",
    )
    interface: net.InterfaceName | None = Field(
        _INSTANCE.interface,
        description="The interface that has the VIPs and exchanges adverts. Default: the "
        "`interface` above; with `announce`, `lo`.",
    )
    vips: net.Addresses = Field(
        _INSTANCE.vips,
        description="The addresses. Default: the VIPs of all services and the sources of `nat` "
        "that no other instance names.",
    )
    version: own.Version = Field(
        _INSTANCE.version,
        description="Version of VRRP: 3 (RFC 9568), or 2 (RFC 3768), which is for IPv4 only.",
    )
    priority: own.Priority = Field(
        _INSTANCE.priority,
        description="The balancer with the highest priority is master. 255: the owner of the "
        "addresses.",
    )
    advert_interval: own.AdvertInterval = Field(
        _INSTANCE.interval_s,
        description="Time between two adverts. A backup misses the master after three intervals. "
        "`10ms` to `40.95s`; in version 2 whole seconds, and the same on every balancer.",
    )
    preempt: bool = Field(
        _INSTANCE.preempt,
        description="Whether a balancer with a higher priority takes over from a master that "
        "works.",
    )
    preempt_delay: own.Delay | None = Field(
        None,
        description="How long it waits before it preempts, from its start or from when it first "
        "hears the lower-priority master. Default: `0s`; with `sync`, `2s`, during which the "
        "agent asks the master to hand over.",
    )
    accept: bool = Field(
        _INSTANCE.accept,
        description="Whether the master's host itself receives packets to the VIPs that are for "
        "no service, such as pings. `false`: it does not have the addresses, and only answers ARP "
        "and neighbour discovery for them.",
    )
    group: kinds.Name | None = Field(
        _INSTANCE.group,
        description="Instances with the same group move together, as in keepalived's "
        "vrrp_sync_group.",
    )
    peers: net.Addresses = Field(
        _INSTANCE.peers,
        description="The other balancers, for unicast adverts. Without peers, adverts are "
        "multicast.",
    )
    source: net.UnicastAddress | None = Field(
        _INSTANCE.source,
        description="Source address of adverts. Default: the interface's first address; for IPv6 "
        "its link-local address, or with `peers` its first one.",
    )
    authentication: Annotated[Authentication, *kinds.choice(Authentication)] = Field(
        _INSTANCE.authentication,
        description="How adverts are authenticated. `password` and `ah`: version 2, as in "
        "keepalived. `hmac`: version 3, between Steelyard balancers, with the secret of "
        "`key_file`.",
    )
    password: own.Password | None = Field(
        _INSTANCE.password,
        description="For `password` and `ah`: at most 8 bytes. With `password`, everybody on the "
        "segment can read it.",
    )
    checksum: Annotated[Checksum, *kinds.choice(Checksum)] = Field(
        _INSTANCE.checksum,
        description="What the checksum of a version 3 advert over IPv4 covers. `v3`: the "
        "pseudo-header too (RFC 9568). `v2`: the advert alone, as keepalived's "
        "`v3_checksum_as_v2` does.",
    )
    virtual_mac: bool = Field(
        _INSTANCE.virtual_mac,
        description="Whether the VIPs have the MAC 00:00:5e:00:01:VRID (IPv6: 02:VRID), so that a "
        "failover changes no neighbour table. Needs macvlan devices.",
    )
    announcements: AnnouncementsSection = Field(
        default_factory=lambda: AnnouncementsSection.model_validate({}),
        description="How a master announces the VIPs.",
    )
    track: TrackSection = Field(
        default_factory=lambda: TrackSection.model_validate({}),
        description="What the priority depends on.",
    )

    @model_validator(mode="after")
    def _fits_its_method(self) -> Self:
        if self.method is Method.ANNOUNCE:
            given = [key for key in _VRRP_KEYS if key in self.model_fields_set]
            if given:
                kinds.refuse(
                    f"{given[0]} means nothing for method announce",
                    "remove it, or set method to vrrp",
                )
        return self

    @model_validator(mode="after")
    def _interval_fits_its_version(self) -> Self:
        if self.version == 2 and (self.advert_interval < 1 or self.advert_interval % 1):
            kinds.refuse(
                "version 2 only has whole seconds",
                "set advert_interval to 1s, or version to 3",
            )
        if self.version == 3 and self.advert_interval > _V3_LONGEST_S:
            kinds.refuse("version 3 allows at most 40.95s", "lower advert_interval")
        return self

    @model_validator(mode="after")
    def _authentication_fits_its_version(self) -> Self:
        kind = self.authentication
        wants = {Authentication.PASSWORD: 2, Authentication.AH: 2, Authentication.HMAC: 3}
        if wants.get(kind, self.version) != self.version:
            kinds.refuse(
                f"authentication {kind.value} needs version {wants[kind]}",
                f"set version to {wants[kind]}, or authentication to none",
            )
        if self.checksum is Checksum.V2 and self.version != 3:
            kinds.refuse("checksum means nothing in version 2", "remove it")
        needs = kind in (Authentication.PASSWORD, Authentication.AH)
        if needs and self.password is None:
            kinds.refuse(f"authentication {kind.value} needs a password", "add `password:`")
        if self.password is not None and not needs:
            kinds.refuse(
                f"password means nothing with authentication {kind.value}",
                "remove it, or set authentication to password or ah",
            )
        if self.password is not None and len(self.password.encode()) > _V2_PASSWORD_BYTES:
            kinds.refuse("password is longer than 8 bytes", "shorten it: VRRP has room for 8")
        return self

    @model_validator(mode="after")
    def _means_something(self) -> Self:
        if self.preempt_delay and not self.preempt:
            kinds.refuse("preempt_delay means nothing without preempt", "remove one of the two")
        if self.version == 2 and any(vip.version == 6 for vip in self.vips):
            kinds.refuse("version 2 is for IPv4 only", "set version to 3")
        return self


class SyncSection(Section):
    """Sends the established flows to the other balancers, so that connections continue there.

    See docs/flow-sync.md.
    """

    peers: net.Addresses = Field(
        _SYNC.peers, description="The other balancers. Without peers, nothing is sent or accepted."
    )
    listen: net.UnicastAddress | None = Field(
        _SYNC.listen, description="Address to listen on. Default: all addresses of the host."
    )
    port: net.Port = Field(_SYNC.port, description="TCP port, on this balancer and on the peers.")
    interval: own.SyncInterval = Field(
        _SYNC.interval_s, description="Time between two checks for changed flows."
    )
    rate: own.Rate = Field(
        _SYNC.rate_bytes_per_s, description="The most bytes a second that are sent to each peer."
    )
    witness: bool = Field(
        _SYNC.witness,
        description="Whether a backup that hears by flow sync that the master works does not take "
        "over when only adverts are lost.",
    )


class FailoverSection(Section):
    """Makes two or more balancers behave as one. See docs/failover.md.

    The agent reads this, and so does the process `lb-agent failover`, which holds the election,
    adds the VIPs and removes them.
    """

    socket: kinds.SocketPath | None = Field(
        None,
        description="Unix socket of the failover process. Default: in the same directory as "
        "`socket`.",
    )
    key_file: kinds.AbsolutePath | None = Field(
        None,
        description="File with a secret of at least 16 bytes that the balancers share; only its "
        "owner may read it. It is used by `sync`, by `authentication: hmac`, and for the choice "
        "of backends (`hash_seed`).",
    )
    instances: tuple[InstanceSection, ...] = Field((), description="The instances.")
    sync: SyncSection = Field(
        default_factory=lambda: SyncSection.model_validate({}),
        description="Where established flows are sent.",
    )
