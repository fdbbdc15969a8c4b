"""Decides where the status page may be served: beyond this host only with a token and TLS."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

from agent.config.document import Problem
from agent.config.schema import StatusPageSection

_AT = ("status_page",)


def check(page: StatusPageSection, metrics: tuple[str, int] | None) -> Iterator[Problem]:
    """Yield the settings of the page that are missing, or that mean nothing."""
    given = [n for n in ("token_file", "certificate", "key_file") if getattr(page, n) is not None]
    if page.listen is None:
        if given:
            yield Problem(
                (*_AT, given[0]),
                "the status page is off, so this has no effect",
                "give `listen`, such as 127.0.0.1:9180, or leave this out",
            )
        return
    if (page.certificate is None) != (page.key_file is None):
        missing = "key_file" if page.key_file is None else "certificate"
        yield Problem(
            (*_AT, given[-1]), f"TLS needs a {missing}, too", f"give `{missing}`, or leave both out"
        )
        return
    host, port = page.listen
    if page.listen == metrics:
        yield Problem(
            (*_AT, "listen"), "this is where `metrics` are served", f"give another port than {port}"
        )
    if not ip_address(host).is_loopback and len(given) < 3:
        yield Problem(
            (*_AT, "listen"),
            f"{host} can be reached from other hosts, and the page has no "
            f"{'TLS' if page.token_file else 'token'}",
            "give `token_file`, `certificate` and `key_file`; or listen on 127.0.0.1 and connect "
            f"by `ssh -L {port}:127.0.0.1:{port}`",
        )
