"""Formats what is reported and learned about a backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agent import humanise

type Row = Mapping[str, Any]

SHOWN_SKEW = 1.5  # a service below this is called even


def queue(row: Row) -> str:
    """Return the requests that run + wait in the engine; a dash if not reported, or too old."""
    report = row["reported"]
    if report is None or report["age_s"] is None:
        return "-"
    if not report["fresh"]:
        return "stale"
    parts = (report["requests_running"], report["requests_waiting"])
    shown = "+".join("?" if part is None else f"{part:g}" for part in parts)
    if parts == (None, None):
        return "-"
    return f"{shown} hot" if row["hot"] else shown


def telemetry(service: Row) -> str:
    """Return what is asked about the backends of a service, and how many have answered."""
    asked = []
    if service["telemetry"] != "none":
        reports = [backend["reported"] for backend in service["backends"]]
        fresh = sum(bool(report and report["fresh"]) for report in reports)
        asked.append(f"{service['telemetry']}, {fresh} of {len(reports)} backends report")
    if service["node_telemetry"] != "none":
        asked.append(f"GPUs by {service['node_telemetry']}")
    return "; ".join(asked) or "none"


def weights(service: Row) -> str:
    """Return what the effective weights follow."""
    follow = []
    if service["learns_speed"]:
        speeds = [backend["learned"] for backend in service["backends"]]
        known = sum(bool(speed and speed["confidence"]) for speed in speeds)
        follow.append(f"the learned speed, known of {known} of {len(speeds)} backends")
    if service["telemetry"] == "agent-check":
        follow.append("agent-check")
    if service["node_telemetry"] != "none":
        follow.append("throttled GPUs")
    return f"follow {', and '.join(follow)}" if follow else "as configured"


def engine(row: Row) -> str:
    """Return the engine's report as a sentence."""
    report = row["reported"]
    if report is None or report["source"] == "none":
        return "not asked"
    problem = f"; no answer since then: {report['problem']}" if report["problem"] else ""
    if report["age_s"] is None:
        return f"{report['source']}: nothing yet{problem}"
    parts = []
    if report["requests_running"] is not None:
        parts.append(f"{report['requests_running']:g} running")
    if report["requests_waiting"] is not None:
        parts.append(f"{report['requests_waiting']:g} waiting")
    if report["kv_cache_used_ratio"] is not None:
        parts.append(f"{humanise.percent(report['kv_cache_used_ratio'])}% of the KV cache in use")
    if report["cached_ratio"] is not None:
        share = humanise.percent(report["cached_ratio"])
        parts.append(f"{share}% of the prompt tokens of the last minute from its prefix cache")
    if report["models_in_gpu_memory_ratio"] is not None:
        share = humanise.percent(report["models_in_gpu_memory_ratio"])
        parts.append(f"{share}% of the loaded models in GPU memory")
    if report["values_dropped"]:
        parts.append(humanise.plural(report["values_dropped"], "impossible value") + " ignored")
    if row["hot"]:
        parts.append("hot: picked only if all the compared backends are")
    age = humanise.milliseconds(report["age_s"] * 1000)
    stale = "" if report["fresh"] else ", too old to count"
    every = ""
    if report["asked_every_s"] is not None:
        every = f", asked every {humanise.milliseconds(report['asked_every_s'] * 1000)}"
    words = ", ".join(parts) or "no queue reported"
    return f"{report['source']}: {words} ({age} ago{every}{stale}){problem}"


def cached(row: Row) -> str:
    """Return the share that came from the engine's prefix cache; a dash if it is not reported."""
    report = row["reported"]
    if report is None or report["cached_ratio"] is None or not report["fresh"]:
        return "-"
    return f"{humanise.percent(report['cached_ratio'])}%"


def gpus(row: Row) -> str:
    """Return the state of the GPUs as a sentence, those in trouble first."""
    report = row["reported"]
    if report is None or report["gpus_source"] == "none":
        return "not asked"
    problem = f"; no answer since then: {report['gpus_problem']}" if report["gpus_problem"] else ""
    if report["gpus_age_s"] is None:
        return f"{report['gpus_source']}: nothing yet{problem}"
    if not report["gpus"]:
        return f"{report['gpus_source']}: the host has none{problem}"
    ordered = sorted(report["gpus"], key=lambda gpu: not _trouble(gpu))
    shown = [_gpu(gpu) for gpu in ordered[:8]]
    more = len(ordered) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "") + problem


def learned(row: Row) -> str:
    """Return what the packet path's samples show of the backend's speed, as a sentence."""
    speed = row["learned"]
    if speed is None:
        return "off"
    if not speed["confidence"]:
        return "nothing yet: too few answers"
    worth = speed["bytes_per_connection"]
    as_connection = f"; {worth} bytes weigh as much as one connection" if worth else ""
    return (
        f"weight x {speed['weight_ratio']:.2f}{as_connection}"
        f" ({speed['us_per_byte']:.2f} µs per waiting byte, {speed['ms_per_connection']:.2f} ms per"
        f" connection, {speed['base_ms']:.0f} ms at least; confidence"
        f" {humanise.percent(speed['confidence'])}%, {speed['samples']:.0f} samples)"
    )


def skew(service: Row) -> str:
    """Return how unevenly the busy connections are distributed, as a sentence."""
    data = service["skew"]
    busy = humanise.plural(service["busy_connections"], "busy connection")
    if data is None:
        return f"{busy}: too few to say"
    if data["ratio"] < SHOWN_SKEW:
        return f"{busy}, evenly"
    return (
        f"{busy}; {data['backend']} has {data['busy_connections']}, {data['ratio']:.1f} times its"
        f" share ({data['busy_connections_at_the_mean']:.0f})"
    )


def failures(row: Row) -> str:
    """Return the requests that failed at a backend, as a sentence."""
    parts = []
    if row["error_answers_total"] is None:
        parts.append("not counted")
    if row["error_answers_total"]:
        share = row["error_answers_total"] / max(row["answers_total"], 1)
        parts.append(
            f"{humanise.plural(row['error_answers_total'], 'answer')} with status 429 or 5xx "
            f"({humanise.percent(min(share, 1.0))}% of all)"
        )
    if row["hangups_total"]:
        parts.append(f"{humanise.plural(row['hangups_total'], 'request')} left without an answer")
    if row["ejections_total"]:
        parts.append(f"ejected {humanise.plural(row['ejections_total'], 'time')}")
    return ", ".join(parts) or "none seen"


def outlier(rules: Row) -> str:
    """Return when a backend is ejected, as a sentence."""
    many = f"{rules['threshold']:.0%} of {rules['requests']} or more"
    return (
        f"a backend at which {many} requests or connections fail gets no new flows for "
        f"{humanise.duration(rules['eject_s'])} (at most {rules['most_ejected']} at the same time)"
    )


def objectives(slos: Sequence[Row]) -> str:
    """Return what was promised and what clients got, one sentence for each objective."""
    parts = []
    for each in slos:
        within, share = humanise.duration(each["within_s"]), each["late_share_last_minute"]
        text = f"{each['percentile']}% of answers begin within {within}"
        if share is None:
            text += " (none in the last minute)"
        else:
            said = "MISSED" if each["is_missed"] else "kept"
            answers = humanise.plural(each["answers_last_minute"], "answer")
            text += f": {said}, {1 - share:.1%} of {answers} of the last minute did"
        parts.append(text)
    return "; ".join(parts)


def affinity(data: Row) -> str:
    """Return where a service's clients' new flows go, as a sentence."""
    named = "their client's address selects"
    if data["prefix"]:
        named = f"the first {data['prefix']} bits of their client's address select"
    how = "as configured"
    if data["escape"] == "auto":
        how = "as learned" if data["known_ms"] is not None else "until more is known"
    text = (
        f"new flows go to the backend that {named}, unless it has "
        f"{humanise.quantity(data['escape_bytes'], 'B')} more waiting than another ({how})"
    )
    if data["known_ratio"] is not None:
        text += f"; {data['known_ratio']:.0%} of requests came to a backend that knew their client"
    if data["known_ms"] is not None:
        text += (
            f", where a usual request takes {humanise.milliseconds(data['known_ms'])} by itself, "
            f"elsewhere {humanise.milliseconds(data['new_ms'])}"
        )
    return text


def hottest(flows: Sequence[Row]) -> str:
    """Return the flows that keep a backend busiest."""
    shown = []
    for flow in flows:
        waits = flow["awaiting_answer"] and flow["waiting_bytes"]
        waiting = f", {humanise.quantity(flow['waiting_bytes'], 'B')} waiting" if waits else ""
        client = humanise.endpoint(flow["client"], flow["client_port"])
        shown.append(f"{client} (open for {humanise.age(flow['age_s'])}{waiting})")
    return ", ".join(shown)


def _trouble(gpu: Row) -> str:
    if gpu["lost"]:
        return "lost"
    if gpu["recovery_action"] is not None:
        return f"wants {gpu['recovery_action']}"
    if gpu["xid"] is not None:
        return f"XID {gpu['xid']}"
    return f"throttled ({', '.join(gpu['throttled_by'])})" if gpu["throttled_by"] else ""


def _gpu(gpu: Row) -> str:
    parts = [_trouble(gpu)]
    if gpu["utilization_ratio"] is not None:
        parts.append(f"{humanise.percent(gpu['utilization_ratio'])}% busy")
    if gpu["clock_ratio"] is not None:
        parts.append(f"clock {humanise.percent(gpu['clock_ratio'])}%")
    if gpu["temperature_c"] is not None:
        parts.append(f"{gpu['temperature_c']:g} °C")
    return f"GPU {gpu['gpu']}: {', '.join(part for part in parts if part) or 'no figures'}"
