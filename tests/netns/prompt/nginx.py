"""Writes nginx's configuration: TLS 1.2, TLS 1.3, HTTP/1.1 and HTTP/2 in front of the upstream.

nginx runs under its own folder, as a process of the lab, and touches nothing of the host's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.pki import Pair, self_signed

SERVER_NAME = "prompt.test"

_MAIN = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 512; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  client_max_body_size 16m;
  client_body_buffer_size 4m;
  keepalive_timeout 60s;
  ssl_certificate {certificate};
  ssl_certificate_key {key};
  {servers}
}}
"""

_SERVER = """
  server {{
    {listens}
    {more}
    location / {{
      proxy_pass http://127.0.0.1:{upstream};
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
"""


@dataclass(frozen=True, slots=True)
class Front:
    """A port of nginx. ``tls``: TLSv1.2, TLSv1.3, or nothing; ``http2``: also spoken there."""

    port: int
    tls: str = ""
    http2: bool = False


def _server(front: Front, upstream: int) -> str:
    words = [str(front.port), *(["ssl"] if front.tls else []), *(["http2"] if front.http2 else [])]
    listens = f"listen {' '.join(words)}; listen [::]:{' '.join(words)};"
    more = f"ssl_protocols {front.tls};" if front.tls else ""
    return _SERVER.format(listens=listens, more=more, upstream=upstream)


def make_certificate(folder: Path) -> Pair:
    """A certificate that signs itself, and its key."""
    return self_signed(folder, "prompt", SERVER_NAME)


def write_config(
    folder: Path, fronts: Sequence[Front], upstream: int, certificate: Path, key: Path
) -> Path:
    """Write ``nginx.conf`` and the folders that it names."""
    folder.mkdir(parents=True, exist_ok=True)
    servers = "".join(_server(front, upstream) for front in fronts)
    path = folder / "nginx.conf"
    path.write_text(_MAIN.format(folder=folder, certificate=certificate, key=key, servers=servers))
    return path
