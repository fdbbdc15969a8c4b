"""The shape of what a service says of its servers' load: telemetry, models, rebalancing."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from agent.config import kinds
from agent.config import network_kinds as net
from agent.config.defaults import default_report_timeout
from agent.config.section import Section
from agent.model import (
    Affinity,
    AffinityBy,
    ModelLoaded,
    ModelSource,
    NodeKind,
    NodeTelemetry,
    Rebalance,
    Telemetry,
    TelemetryKind,
)

_TELEMETRY, _NODE, _MODEL = Telemetry(), NodeTelemetry(), ModelLoaded("any")
_AFFINITY = Affinity()
_REBALANCE = Rebalance()
EXPRESSIONS = ("running", "waiting", "kv_usage")


class TelemetrySection(Section):
    """What the engines report of their queues: requests running and waiting, KV cache in use.

    `least-load` counts what is reported as its connections, so that it sees work that did not
    come through this balancer. A report that is older than three intervals counts no more, and
    the connections that are open do instead.
    """

    type: Annotated[TelemetryKind, *kinds.choice(TelemetryKind)] = Field(
        _TELEMETRY.kind,
        description="The engine whose metrics are read. `prometheus`: any page, by expressions. "
        "`agent-check`: HAProxy's text protocol, which gives a share of the weight and a state.",
    )
    port: net.Port | None = Field(
        _TELEMETRY.port,
        description="Port of the metrics. Default: `8002` for `triton`, `8080` for `ray-serve`, "
        "`9119` for `agent-check`, else the port that health checks use.",
    )
    path: kinds.RequestPath | None = Field(
        _TELEMETRY.path,
        description="Path of the metrics. Default: `/v1/metrics` for `nim`, "
        "`/prometheus/metrics` for `trtllm`, `/api/ps` for `ollama`, else `/metrics`.",
    )
    tls: bool = Field(
        _TELEMETRY.tls,
        description="Whether the metrics are read by https; certificates are not checked.",
    )
    interval: kinds.ReportInterval = Field(
        _TELEMETRY.interval_s, description="Time from one report to the next."
    )
    timeout: kinds.ReportTimeout | None = Field(
        None,
        description="An answer that takes longer is none. Default: twice the interval, at most 1s.",
    )
    running: kinds.Expression | None = Field(
        _TELEMETRY.running,
        description='For `prometheus`: requests that run, as `my_running{queue="main"}`. Samples '
        "that match are summed; `+ - * / ( )`, numbers, `max(…)`, `min(…)` and `avg(…)` are known.",
    )
    waiting: kinds.Expression | None = Field(
        _TELEMETRY.waiting, description="For `prometheus`: requests that wait to run."
    )
    kv_usage: kinds.Expression | None = Field(
        _TELEMETRY.kv_usage,
        description="For `prometheus`: share of the KV cache in use, 0 to 1.",
    )

    @model_validator(mode="after")
    def _has_what_its_type_needs(self) -> Self:
        given = [name for name in EXPRESSIONS if getattr(self, name) is not None]
        if self.type is TelemetryKind.PROMETHEUS:
            if self.running is None and self.waiting is None:
                kinds.refuse("type prometheus needs an expression", "give running, waiting or both")
        elif given and self.type is not TelemetryKind.NONE:
            kinds.refuse(
                f"{given[0]} means nothing for type {self.type.value}",
                "set type to prometheus, or remove it",
            )
        return self

    def model(self) -> Telemetry:
        """The frozen value."""
        timeout_s = default_report_timeout(self.interval) if self.timeout is None else self.timeout
        return Telemetry(
            kind=self.type,
            port=self.port,
            path=self.path,
            tls=self.tls,
            interval_s=self.interval,
            timeout_s=timeout_s,
            running=self.running,
            waiting=self.waiting,
            kv_usage=self.kv_usage,
        )


class NodeSection(Section):
    """What the hosts report of their GPUs.

    Throttled GPUs lower the weight of their backend, a lost one or one that wants a reset takes
    it out of new flows (`drain`).
    """

    type: Annotated[NodeKind, *kinds.choice(NodeKind)] = Field(
        _NODE.kind,
        description="`node-agent`: `lb-agent node` runs on the hosts. `dcgm`: NVIDIA's exporter.",
    )
    port: net.Port | None = Field(
        _NODE.port, description="Default: `9118` for `node-agent`, `9400` for `dcgm`."
    )
    path: kinds.RequestPath = Field(_NODE.path, description="Path of the metrics.")
    interval: kinds.ReportInterval = Field(
        _NODE.interval_s, description="Time from one report to the next."
    )
    timeout: kinds.ReportTimeout = Field(
        _NODE.timeout_s, description="An answer that takes longer is none."
    )

    def model(self) -> NodeTelemetry:
        """The frozen value."""
        return NodeTelemetry(self.type, self.port, self.path, self.interval, self.timeout)


class ModelSection(Section):
    """Which model a backend must have loaded to get new flows.

    So several services can share servers, and requests go where the weights are already. While
    a backend does not say what it has loaded, what it said last holds.
    """

    name: kinds.ModelName = Field(description="Name of the model, as the server lists it.")
    source: Annotated[ModelSource, *kinds.choice(ModelSource)] = Field(
        _MODEL.source,
        description="`openai`: `/v1/models`, as vLLM, SGLang and TGI have it. `ollama`: what is "
        "in memory, `/api/ps`. `triton`: the repository index, models that are `READY`.",
    )
    port: net.Port | None = Field(
        _MODEL.port, description="Default: the port that health checks use."
    )
    interval: kinds.Interval = Field(
        _MODEL.interval_s, description="Time from one question to the next."
    )

    def model(self) -> ModelLoaded:
        """The frozen value."""
        return ModelLoaded(self.name, self.source, self.port, self.interval)


class AffinitySection(Section):
    """For `least-load` of tcp: whether a client's new flows go where its earlier ones went.

    What it is worth, and to whom: [affinity](affinity.md).
    """

    by: Annotated[AffinityBy, *kinds.choice(AffinityBy)] = Field(
        _AFFINITY.by,
        description="`source`: the client's address names its home, by weighted consistent "
        "hashing, and new flows go there while nothing speaks against it. `none`: they go where "
        "the load is least.",
    )
    prefix: kinds.PrefixBits | None = Field(
        _AFFINITY.prefix_bits,
        description="How many bits of the client's address count: with 24, clients of one IPv4 "
        "/24 have one home. Default: all.",
    )
    escape: kinds.Escape = Field(
        _AFFINITY.escape_bytes,
        description="A new flow goes elsewhere when its home has so many more waiting bytes in "
        "front of it than the best of the backends compared, by weight. `auto`: as many as the "
        "home's cache saves, learned from how much sooner clients that a backend knows are "
        "answered. Default: `auto`.",
    )

    def model(self) -> Affinity:
        """The frozen value."""
        return Affinity(self.by, self.prefix, self.escape)


class RebalanceSection(Section):
    """Whether idle connections of overloaded backends are reset, so that clients connect anew.

    What it can do and what not: [long-lived connections](long-lived.md).
    """

    rate: kinds.ResetRate = Field(
        _REBALANCE.rate_per_s,
        description="Connections that are reset, a second at most. 0: none ever is.",
    )
    idle: kinds.IdleTime = Field(
        _REBALANCE.idle_s, description="Only connections that are silent for so long are reset."
    )
    skew: kinds.Skew = Field(
        _REBALANCE.skew,
        description="A backend with more than this times its share of the busy connections is "
        "overloaded.",
    )

    def model(self) -> Rebalance:
        """The frozen value."""
        return Rebalance(self.rate, self.idle, self.skew)
