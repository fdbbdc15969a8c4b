"""What the keywords mean that are not converted: nothing here, or something that is lost."""

from __future__ import annotations

from lbctl.haproxy.grammar import Line

# The keywords of a proxy that the other modules read.
READ = frozenset({
    "balance", "bind", "default-server", "default_backend", "disabled", "enabled",
    "external-check", "hash-balance-factor", "hash-type", "http-check", "mode", "server",
    "server-template", "source", "stick", "stick-table", "tcp-check", "use_backend",
})  # fmt: skip
READ_WITH = frozenset({
    ("option", "allbackups"), ("option", "external-check"), ("option", "httpchk"),
    ("option", "ldap-check"), ("option", "mysql-check"), ("option", "pgsql-check"),
    ("option", "redis-check"), ("option", "smtpchk"), ("option", "spop-check"),
    ("option", "ssl-hello-chk"), ("option", "tcp-check"), ("option", "transparent"),
    ("timeout", "check"), ("timeout", "client"), ("timeout", "server"), ("timeout", "tunnel"),
})  # fmt: skip
# They only concern how HAProxy itself works: its sockets, queues, logs and pages of errors.
_IDLE = frozenset({
    "backlog", "capture", "clitcpka-cnt", "clitcpka-idle", "clitcpka-intvl", "declare",
    "description", "email-alert", "error-log-format", "errorfile", "errorfiles", "errorloc",
    "errorloc302", "errorloc303", "fullconn", "guid", "http-reuse", "id",
    "load-server-state-from-file", "log", "log-format", "log-format-sd", "log-steps", "log-tag",
    "max-keep-alive-queue", "max-session-srv-conns", "retries", "server-state-file-name",
    "srvtcpka-cnt", "srvtcpka-idle", "srvtcpka-intvl", "unique-id-format", "timeout",
})  # fmt: skip
_IDLE_OPTIONS = frozenset({
    "abortonclose", "accept-invalid-http-request", "accept-invalid-http-response",
    "accept-unsafe-violations-in-http-request", "accept-unsafe-violations-in-http-response",
    "clitcpka", "contstats", "disable-h2-upgrade", "dontlog-normal", "dontlognull",
    "h1-case-adjust-bogus-client", "h1-case-adjust-bogus-server", "http-buffer-request",
    "http-drop-request-trailers", "http-drop-response-trailers", "http-ignore-probes",
    "http-keep-alive", "http-no-delay", "http-pretend-keepalive", "http-restrict-req-hdr-names",
    "http-server-close", "http-use-htx", "http-use-proxy-header", "httpclose", "httplog",
    "httpslog", "idle-close-on-response", "independent-streams", "log-health-checks",
    "log-separate-errors", "logasap", "nolinger", "persist", "prefer-last-server", "redispatch",
    "socket-stats", "splice-auto", "splice-request", "splice-response", "srvtcpka",
    "tcp-smart-accept", "tcp-smart-connect", "tcpka", "tcplog",
})  # fmt: skip
_HTTP = "requests and answers are passed on as they are"
_ADDRESS = (
    "nothing is added to requests: with `fullnat` servers see the balancer's address; with `dsr` "
    "or `nat` they see the client's"
)
_STAY = (
    "cookies are not read; for a client that stays with its server, use the scheduler `source` or "
    "`affinity`"
)
# In mode tcp HAProxy itself takes no notice of these.
_OF_HTTP = {
    "compression": f"compression: {_HTTP}",
    "cookie": f"cookie: {_STAY}",
    "filter": f"filter: {_HTTP}",
    "force-persist": f"force-persist: {_STAY}",
    "http-after-response": f"http-after-response: {_HTTP}",
    "http-error": f"http-error: {_HTTP}",
    "http-request": f"http-request: {_HTTP}; `limits`, `allow` and `deny` go by clients' addresses",
    "http-response": f"http-response: {_HTTP}",
    "http-send-name-header": f"http-send-name-header: {_HTTP}",
    "ignore-persist": f"ignore-persist: {_STAY}",
    "monitor": "monitor: whether the balancer is well says `GET /healthz` where its metrics are",
    "monitor-uri": "monitor-uri: whether the balancer is well says `GET /healthz` where its "
    "metrics are",
    "redirect": f"redirect: {_HTTP}; let the servers redirect",
    "retry-on": f"retry-on: {_HTTP}, and none is repeated",
    "stats": "stats: `status_page` is a page for browsers, `metrics` are for Prometheus",
    "unique-id-header": f"unique-id-header: {_HTTP}",
    "use-fcgi-app": "use-fcgi-app: FastCGI needs a proxy",
}
_OPTIONS_OF_HTTP = {
    "checkcache": f"option checkcache: {_HTTP}",
    "forwardfor": f"option forwardfor: {_ADDRESS}",
    "forwarded": f"option forwarded: {_ADDRESS}",
    "originalto": f"option originalto: {_ADDRESS}",
}
_RULES = "no rules are evaluated; `limits`, `allow` and `deny` go by clients' addresses"
_LOST = {
    "acl": "acl: conditions are not evaluated",
    "dispatch": "dispatch: name a server instead",
    "maxconn": "maxconn: connections are not queued here; `limits` of the service refuse clients",
    "persist": f"persist: {_STAY}",
    "rate-limit": "rate-limit: `limits: {new_flows: …/s}` drops what HAProxy lets wait",
    "tcp-request": f"tcp-request: {_RULES}",
    "tcp-response": f"tcp-response: {_RULES}",
    "transparent": "transparent: name a server instead",
    "use-server": "use-server: conditions are not evaluated; the scheduler chooses the server",
}


def meaning(line: Line, http: bool) -> tuple[bool, str]:
    """Return whether a line of a proxy that was not read means nothing here, and its name or else
    the reason why it is lost.
    """
    name, second = line.name, line.word(1)
    title = f"{name} {second}" if name in ("option", "timeout") else name
    if line.off:
        return True, f"no {title}"
    if name in _LOST:
        return False, _LOST[name]
    if name == "option" and second in _OPTIONS_OF_HTTP:
        return not http, _OPTIONS_OF_HTTP[second] if http else title
    if name in _OF_HTTP:
        return not http, _OF_HTTP[name] if http else title
    if name in READ or (name, second) in READ_WITH:
        return False, f"{title}: nothing that is converted uses it"
    if name in _IDLE or (name == "option" and second in _IDLE_OPTIONS):
        return True, title
    return False, f"{title}: not known here"
