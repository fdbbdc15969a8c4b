"""Defines the shape of a service's settings of load, such as telemetry, affinity and scaling."""

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
    Scale,
    Telemetry,
    TelemetryKind,
)

_TELEMETRY, _NODE, _MODEL = Telemetry(), NodeTelemetry(), ModelLoaded("any")
_AFFINITY = Affinity()
_REBALANCE = Rebalance()
_SCALE = Scale()
EXPRESSIONS = ("running", "waiting", "kv_usage")


class TelemetrySection(Section):
    """What the engines report about their queues: requests running and waiting, KV cache in use.

    `least-load` counts the reported requests as connections, so it sees work that did not come
    through this balancer. A report older than three intervals does not count; open connections
    count instead.
    """

    type: Annotated[TelemetryKind, *kinds.choice(TelemetryKind)] = Field(
        _TELEMETRY.kind,
        description="The engine whose metrics are read. `prometheus`: any metrics page, by "
        "expressions. `agent-check`: HAProxy's text protocol, which gives a share of the weight "
        "and a state.",
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
        description="Whether the metrics are read over https; certificates are not checked.",
    )
    interval: kinds.ReportInterval = Field(
        _TELEMETRY.interval_s, description="Time between two reports."
    )
    timeout: kinds.ReportTimeout | None = Field(
        None,
        description="An answer that takes longer is ignored. Default: twice the interval, at most "
        "1s.",
    )
    running: kinds.Expression | None = Field(
        _TELEMETRY.running,
        description="For `prometheus`: an expression for the running requests, such as "
        '`my_running{queue="main"}`. Samples that match are summed. Expressions may have `+ - * / '
        "( )`, numbers, `max(…)`, `min(…)` and `avg(…)`.",
    )
    waiting: kinds.Expression | None = Field(
        _TELEMETRY.waiting, description="For `prometheus`: an expression for the waiting requests."
    )
    kv_usage: kinds.Expression | None = Field(
        _TELEMETRY.kv_usage,
        description="For `prometheus`: an expression for the share of the KV cache in use, 0 to 1.",
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
        """Return the model's value."""
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
    """What the hosts report about their GPUs.

    Throttled GPUs lower the weight of their backend. A backend with a GPU that is lost or needs a
    reset gets no new flows (`drain`).
    """

    type: Annotated[NodeKind, *kinds.choice(NodeKind)] = Field(
        _NODE.kind,
        description="What reports. `node-agent`: `lb-agent node` on the hosts. `dcgm`: NVIDIA's "
        "exporter.",
    )
    port: net.Port | None = Field(
        _NODE.port,
        description="Port of the metrics. Default: `9118` for `node-agent`, `9400` for `dcgm`.",
    )
    path: kinds.RequestPath = Field(_NODE.path, description="Path of the metrics.")
    interval: kinds.ReportInterval = Field(
        _NODE.interval_s, description="Time between two reports."
    )
    timeout: kinds.ReportTimeout = Field(
        _NODE.timeout_s, description="An answer that takes longer is ignored."
    )

    def model(self) -> NodeTelemetry:
        """Return the model's value."""
        return NodeTelemetry(self.type, self.port, self.path, self.interval, self.timeout)


class ModelSection(Section):
    """Which model a backend must have loaded to get new flows.

    So several services can share servers, and requests go where the model's weights are already
    loaded. While a backend does not report what it has loaded, its last report stays valid.
    """

    name: kinds.ModelName = Field(description="Name of the model, as the server lists it.")
    source: Annotated[ModelSource, *kinds.choice(ModelSource)] = Field(
        _MODEL.source,
        description="Where the servers list their models. `openai`: `/v1/models`, as vLLM, SGLang "
        "and TGI have it. `ollama`: `/api/ps`, the models in memory. `triton`: the repository "
        "index, the models that are `READY`.",
    )
    port: net.Port | None = Field(
        _MODEL.port, description="Port that is asked. Default: the port that health checks use."
    )
    interval: kinds.Interval = Field(_MODEL.interval_s, description="Time between two queries.")

    def model(self) -> ModelLoaded:
        """Return the model's value."""
        return ModelLoaded(self.name, self.source, self.port, self.interval)


class AffinitySection(Section):
    """For `least-load` of tcp: whether a client's new flows go to the same backend as its earlier
    ones.

    [Affinity](affinity.md) says how much this helps, and for which traffic.
    """

    by: Annotated[AffinityBy, *kinds.choice(AffinityBy)] = Field(
        _AFFINITY.by,
        description="`source`: the client's address determines its home, by weighted consistent "
        "hashing, and new flows go there unless its load is too high (see `escape`). `none`: they "
        "go where the load is least.",
    )
    prefix: kinds.PrefixBits | None = Field(
        _AFFINITY.prefix_bits,
        description="How many bits of the client's address count. With 24, clients of one IPv4 "
        "/24 have the same home. Default: all.",
    )
    escape: kinds.Escape = Field(
        _AFFINITY.escape_bytes,
        description="A new flow goes elsewhere if its home has this many more waiting bytes, "
        "relative to its weight, than the best of the backends compared. `auto`: as many as the "
        "home's cache saves, learned from how much sooner a backend answers clients that it has "
        "served before. Default: `auto`.",
    )

    def model(self) -> Affinity:
        """Return the model's value."""
        return Affinity(self.by, self.prefix, self.escape)


class RebalanceSection(Section):
    """Whether idle connections of overloaded backends are reset, so that clients connect again.

    [Long-lived connections](long-lived.md) says what this can do, and what it cannot.
    """

    rate: kinds.ResetRate = Field(
        _REBALANCE.rate_per_s,
        description="The most connections that are reset in a second. 0: none ever is.",
    )
    idle: kinds.IdleTime = Field(
        _REBALANCE.idle_s, description="Only connections that are silent for this long are reset."
    )
    skew: kinds.Skew = Field(
        _REBALANCE.skew,
        description="A backend is overloaded if it has more than this many times its share of the "
        "busy connections.",
    )

    def model(self) -> Rebalance:
        """Return the model's value."""
        return Rebalance(self.rate, self.idle, self.skew)


class ScaleSection(Section):
    """How much load one backend should have, for a scaler that starts and stops servers.

    From it the agent computes how many backends are wanted ([scaling](scaling.md)); it starts and
    stops none itself. The number is the load divided by the target, rounded up; with several
    targets, the largest one. Without targets, no number is computed.
    """

    connections: kinds.MostFlows = Field(
        _SCALE.connections, description="Connections (udp: flows) for each backend."
    )
    waiting_bytes: kinds.MostBytes = Field(
        _SCALE.waiting_bytes,
        description="For tcp: request bytes that wait for their answer, for each backend.",
    )
    requests: kinds.MostFlows = Field(
        _SCALE.requests,
        description="With `telemetry`: requests for each backend that run or wait in its engine.",
    )
    queued: kinds.MostFlows = Field(
        _SCALE.queued,
        description="With `telemetry`: requests for each backend that wait in its engine.",
    )
    min: kinds.FewestBackends = Field(
        _SCALE.min, description="The wanted number of backends is never lower."
    )
    max: kinds.MostFlows = Field(
        _SCALE.max, description="The wanted number of backends is never higher."
    )

    @model_validator(mode="after")
    def _has_an_order(self) -> Self:
        if self.max is not None and self.min > self.max:
            kinds.refuse(f"min is {self.min} and max is {self.max}", "make max at least min")
        return self

    def model(self) -> Scale:
        """Return the model's value."""
        return Scale(
            self.connections, self.waiting_bytes, self.requests, self.queued, self.min, self.max
        )
