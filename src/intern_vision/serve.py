"""The ``serve`` command: a registered model behind MLflow's scoring server, in this process.

The application is the one that ``mlflow models serve --env-manager local`` runs: JSON or CSV to ``/invocations``,
``/ping`` for health. Added here: a limit on the size of a request, and a port that is held before the model loads.
"""

import errno
import ipaddress
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing, suppress
from typing import Any

from intern_vision.errors import ConfigError
from intern_vision.pictures import ALLOW_VARIABLE, SERVED_DEFAULT, Sources
from intern_vision.servers import port_holder

MAX_REQUEST_BYTES = 2**27
_GRACE_S = 10

Scope = dict[str, Any]
App = Callable[[Scope, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens at a port; who connects before the model is loaded waits.

    Args:
        host: address or name of this machine to listen at.
        port: 0 to 65535; 0 takes a free one.

    Raises:
        ConfigError: the port is taken or not allowed, or the host is not this machine's.
    """
    if not 0 <= port <= 65535:  # the resolver would take its remainder
        raise ConfigError(f"--port: expected a number from 0 to 65535, got {port}")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        held = socket.socket(family, kind)
    except OSError as error:
        raise ConfigError(f"--host {host} --port {port}: not an address of this machine ({error})") from None
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        held.bind(address)
        held.listen()
    except OSError as error:
        held.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"--port {port}: taken by {port_holder(port)}; choose another with --port") from None
        raise ConfigError(f"--host {host} --port {port}: {error.strerror or error}") from None
    return held


def is_open(held: socket.socket) -> bool:
    """Whether other machines may reach a bound socket."""
    return not ipaddress.ip_address(held.getsockname()[0]).is_loopback


def allow(kinds: Sequence[str]) -> None:
    """Says what rows may name besides the request's own bytes, see ``Sources.served``.

    Args:
        kinds: fields of ``Sources``, or ``none``; empty leaves what the environment says, else public addresses.

    Raises:
        ConfigError: there is no such kind.
    """
    os.environ[ALLOW_VARIABLE] = ",".join(kinds) or os.environ.get(ALLOW_VARIABLE) or SERVED_DEFAULT
    Sources.served()


def run(model: Any, held: socket.socket, on_ready: Callable[[str], None]) -> None:
    """Serves a model until SIGINT or SIGTERM; requests that are being answered are finished first.

    Args:
        model: MLflow's ``PyFuncModel``.
        held: from ``bind``; closed at the end.
        on_ready: called with the server's address once it answers.
    """
    import uvicorn
    from mlflow.pyfunc import scoring_server

    host, port = held.getsockname()[:2]

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            on_ready(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")

    app = limited(scoring_server.init(model), MAX_REQUEST_BYTES)
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=_GRACE_S)
    # After a clean end uvicorn raises the signal that ended it once more.
    with closing(held), suppress(KeyboardInterrupt):
        Server(config).run(sockets=[held])


def limited(app: App, max_bytes: int) -> App:
    """An ASGI application that answers 413 where a request's body is larger, and 411 where its size is not said."""

    async def checked(scope: Scope, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]):
        if scope["type"] == "http" and scope["method"] == "POST":
            headers = dict(scope["headers"])
            length = headers.get(b"content-length", b"").decode("latin-1")
            if not length.isdigit():
                return await _refuse(send, 411, "Content-Length: expected the size of the request, got none")
            if int(length) > max_bytes:
                return await _refuse(send, 413, f"request of {length} bytes: expected at most {max_bytes}")
        return await app(scope, receive, send)

    return checked


async def _refuse(send: Callable[[Any], Awaitable[None]], status: int, line: str) -> None:
    headers = [(b"content-type", b"text/plain"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": line.encode()})


def curl_line(address: str) -> str:
    """What to type to ask a server about one picture."""
    body = """printf '{"inputs": {"image": ["%s"]}}' "$(base64 < PICTURE.jpg | tr -d '\\n')\""""
    return f"{body} | curl -s -H 'Content-Type: application/json' -d @- {address}/invocations"
