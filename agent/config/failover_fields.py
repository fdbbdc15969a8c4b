"""Writes `failover` and `fleet` as documents, the inverse of ``failover_schema`` and
``fleet_schema``.
"""

from __future__ import annotations

from agent.config.durations import format_duration
from agent.failover.model import (
    Announcements,
    Failover,
    FlowSync,
    Instance,
    Track,
)
from agent.model import Etcd, Fleet

type _Document = dict[str, object]


def failover_document(failover: Failover) -> _Document:
    """Return the document that loads as ``failover``. Defaults are left out, so it may be
    ``{}``.
    """
    document = _without_defaults(
        {
            "socket": None if failover.socket is None else str(failover.socket),
            "key_file": None if failover.key_file is None else str(failover.key_file),
        },
        {"socket": None, "key_file": None},
    )
    if failover.instances:
        document["instances"] = [_instance_document(i) for i in failover.instances]
    if sync := _without_defaults(_sync(failover.sync), _sync(FlowSync())):
        document["sync"] = sync
    return document


def fleet_document(fleet: Fleet) -> _Document:
    """Return the document that loads as ``fleet``, without what is the default."""
    document = _without_defaults(_fleet(fleet), _fleet(Fleet()))
    if etcd := _without_defaults(_etcd(fleet.etcd), _etcd(Etcd())):
        document["etcd"] = etcd
    return document


def _fleet(fleet: Fleet) -> _Document:
    return {
        "name": fleet.name,
        "node": fleet.node,
        "history": fleet.history,
        "lease": format_duration(fleet.lease_s),
        "report": format_duration(fleet.report_s),
    }


def _etcd(etcd: Etcd) -> _Document:
    paths = ("ca_file", "cert_file", "key_file", "password_file")
    given = {key: path and str(path) for key in paths for path in [getattr(etcd, key)]}
    return {"endpoints": list(etcd.endpoints), "user": etcd.user, "prefix": etcd.prefix, **given}


def _instance_document(instance: Instance) -> _Document:
    default = Instance(instance.name)
    document: _Document = {"name": instance.name}
    document |= _without_defaults(_plain(instance), _plain(default))
    announced = _without_defaults(
        _announcements(instance.announcements), _announcements(default.announcements)
    )
    if announced:
        document["announcements"] = announced
    if track := _track_document(instance.track):
        document["track"] = track
    return document


def _plain(instance: Instance) -> _Document:
    return {
        "method": instance.method.value,
        "vrid": instance.vrid,
        "interface": instance.interface,
        "version": instance.version,
        "priority": instance.priority,
        "advert_interval": format_duration(instance.interval_s),
        "preempt": instance.preempt,
        "preempt_delay": format_duration(instance.preempt_delay_s),
        "accept": instance.accept,
        "vips": [str(vip) for vip in instance.vips],
        "group": instance.group,
        "peers": [str(peer) for peer in instance.peers],
        "source": None if instance.source is None else str(instance.source),
        "authentication": instance.authentication.value,
        "password": instance.password,
        "checksum": instance.checksum.value,
        "virtual_mac": instance.virtual_mac,
    }


def _announcements(announced: Announcements) -> _Document:
    return {
        "repeat": announced.repeat,
        "delay": format_duration(announced.delay_s),
        "refresh": format_duration(announced.refresh_s),
    }


def _track_document(track: Track) -> _Document:
    document = _without_defaults(_track_plain(track), _track_plain(Track()))
    if track.interfaces:
        document["interfaces"] = [
            {"name": interface.name, "weight": interface.weight} for interface in track.interfaces
        ]
    if track.scripts:
        document["scripts"] = [
            {
                "name": script.name,
                "command": list(script.command),
                "interval": format_duration(script.interval_s),
                "timeout": format_duration(script.timeout_s),
                "rise": script.rise,
                "fall": script.fall,
                "weight": script.weight,
            }
            for script in track.scripts
        ]
    return document


def _track_plain(track: Track) -> _Document:
    return {
        "services": track.services,
        "dataplane": track.dataplane,
        "agent": track.agent,
        "agent_grace": format_duration(track.agent_grace_s),
    }


def _sync(sync: FlowSync) -> _Document:
    return {
        "peers": [str(peer) for peer in sync.peers],
        "listen": None if sync.listen is None else str(sync.listen),
        "port": sync.port,
        "interval": format_duration(sync.interval_s),
        "rate": sync.rate_bytes_per_s,
        "witness": sync.witness,
    }


def _without_defaults(fields: _Document, default: _Document) -> _Document:
    return {key: value for key, value in fields.items() if value != default[key]}
