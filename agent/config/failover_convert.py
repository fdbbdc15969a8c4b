"""Converts sections of `failover` that passed every check into the model."""

from __future__ import annotations

from agent.config.failover_schema import FailoverSection, InstanceSection, TrackSection
from agent.failover.model import (
    Announcements,
    Failover,
    FlowSync,
    Instance,
    Track,
    TrackedInterface,
    TrackedScript,
)
from agent.failover.times import SYNCED_PREEMPT_DELAY_S


def to_failover(section: FailoverSection, script_user: str | None = None) -> Failover:
    """Return the model of a section; ``script_user`` runs its scripts."""
    sync = section.sync
    return Failover(
        socket=section.socket,
        key_file=section.key_file,
        instances=tuple(
            _instance(instance, bool(sync.peers), script_user) for instance in section.instances
        ),
        sync=FlowSync(
            peers=sync.peers,
            listen=sync.listen,
            port=sync.port,
            interval_s=sync.interval,
            rate_bytes_per_s=sync.rate,
            witness=sync.witness,
        ),
    )


def _instance(section: InstanceSection, synced: bool, script_user: str | None) -> Instance:
    announced, delay_s = section.announcements, section.preempt_delay
    if delay_s is None:
        delay_s = SYNCED_PREEMPT_DELAY_S if synced and section.preempt else 0.0
    return Instance(
        name=section.name,
        method=section.method,
        vrid=section.vrid,
        interface=section.interface,
        version=section.version,
        priority=section.priority,
        interval_s=section.advert_interval,
        preempt=section.preempt,
        preempt_delay_s=delay_s,
        accept=section.accept,
        vips=section.vips,
        group=section.group,
        peers=section.peers,
        source=section.source,
        authentication=section.authentication,
        password=section.password,
        checksum=section.checksum,
        virtual_mac=section.virtual_mac,
        announcements=Announcements(announced.repeat, announced.delay, announced.refresh),
        track=_track(section.track, script_user),
    )


def _track(section: TrackSection, script_user: str | None) -> Track:
    return Track(
        interfaces=tuple(TrackedInterface(i.name, i.weight) for i in section.interfaces),
        scripts=tuple(
            TrackedScript(
                name=script.name,
                command=script.command,
                interval_s=script.interval,
                timeout_s=script.timeout,
                rise=script.rise,
                fall=script.fall,
                weight=script.weight,
                run_as=script_user,
            )
            for script in section.scripts
        ),
        services=section.services,
        dataplane=section.dataplane,
        agent=section.agent,
        agent_grace_s=section.agent_grace,
    )
