"""Defines the section ``suricata``: which alerts of an intrusion detection system block their
source.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from agent.config import kinds
from agent.config import network_kinds as net
from agent.config.document import Problem
from agent.config.section import Section
from agent.model import Suricata

_DEFAULT = Suricata()
_AT = ("suricata",)


class SuricataSection(Section):
    """Alerts of a Suricata on this host, which can block the sources that caused them.

    With `eve` alone, alerts are only shown (`lbctl threats`). An alert blocks only if it is about a
    request in a connection whose client must be at its address; [the guard's
    page](guard.md#alerts-of-suricata) says when that is so, and what Suricata needs. A reload
    changes all of this.
    """

    eve: kinds.AbsolutePath | None = Field(
        _DEFAULT.eve,
        description="The file to which Suricata writes its events (`eve-log`), such as "
        "`/var/log/suricata/eve.json`. It may be rotated. Default: no alerts are read.",
    )
    block_severity: kinds.Severity = Field(
        _DEFAULT.block_severity,
        description="Alerts of this severity, or of a worse one (1 is the worst), block their "
        "source. `none`: the severity blocks nobody.",
    )
    block_signatures: kinds.Signatures = Field(
        _DEFAULT.block_signatures,
        description="Signatures (`sid`) whose alerts block their source, whatever their severity.",
    )
    log_signatures: kinds.Signatures = Field(
        _DEFAULT.log_signatures,
        description="Signatures whose alerts block nobody, whatever their severity.",
    )
    block_for: kinds.BlockTime = Field(
        _DEFAULT.block_for_s, description="How long a source stays blocked."
    )
    most_blocked: kinds.Share = Field(
        _DEFAULT.most_blocked,
        description="The largest share of the active sources that alerts may block at the same "
        "time, so that a signature that fires for everybody does not block everybody. Active are "
        "the sources with connections to services with `detect`. Five may always be blocked, "
        "unless this is 0.",
    )
    proxies: net.Proxies = Field(
        _DEFAULT.proxies,
        description="Proxies in front of the services, such as the nodes of the tier. In an alert "
        "about a request of theirs, the client is the one that they name in `X-Forwarded-For`.",
    )

    def model(self) -> Suricata:
        """Return the section as the model has it."""
        return Suricata(
            self.eve,
            self.block_severity,
            self.block_signatures,
            self.log_signatures,
            self.block_for,
            self.most_blocked,
            self.proxies,
        )


def check(section: SuricataSection) -> Iterator[Problem]:
    """Yield the settings that mean nothing, or contradict each other."""
    given = [name for name in type(section).model_fields if name in section.model_fields_set]
    if section.eve is None and given and (others := [n for n in given if n != "eve"]):
        yield Problem(
            (*_AT, others[0]),
            "no alerts are read, so this has no effect",
            "give `eve`, such as /var/log/suricata/eve.json, or leave this out",
        )
    both = set(section.block_signatures) & set(section.log_signatures)
    if both:
        yield Problem(
            (*_AT, "log_signatures"),
            f"{min(both)} is in `block_signatures`, too",
            "remove one of the two",
        )
