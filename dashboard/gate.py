"""Who gets an answer: browsers that ask for this dashboard by a name of its own, from a page of its own."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104
_NOBODY = "(nobody)"
# Should a page hold markup in spite of all care: the browser fetches nothing from elsewhere for it, and shows it in no
# foreign page. Streamlit's own pages need inline styles, and Plotly makes functions from text.
_POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'self'"
)


class Gate:
    """ASGI middleware that refuses requests with a foreign ``Host`` or ``Origin``, websockets included.

    The page of a stranger can have a browser ask this server for anything: by a name of the stranger's that leads here
    (DNS rebinding, told by ``Host``), or outright (told by ``Origin``). Streamlit's own check compares hosts for
    websockets alone, lets in the pages of other servers on this machine, and asks an outside service for the machine's
    address before it refuses one.
    """

    def __init__(self, app: ASGIApp, address: str, hosts: Iterable[str] = ()) -> None:
        """Wraps an application.

        Args:
            app: What answers in the end.
            address: What the server listens on. With a wildcard, the address that a request came to counts.
            hosts: Further names, such as a proxy's. For proxies that put a name of their own into ``Host``, they are
                good as ``Origin`` as well.
        """
        self._app = app
        self._given = {host.lower() for host in hosts}
        self._names = _LOOPBACK | self._given | ({address.lower()} - _WILDCARDS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers or refuses one request."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or _name(hosts[0]) not in self._names | {_arrived_at(scope)}:
            answer = "The dashboard does not answer to this host name; start it with --allow-host NAME if it should."
            await PlainTextResponse(answer, 403)(scope, receive, send)
            return
        foreign = [origin for origin in origins if _place(origin) != hosts[0].lower()]
        if any(_name(_place(origin)) not in self._given for origin in foreign):
            await PlainTextResponse("The dashboard does not answer pages of other origins.", 403)(scope, receive, send)
            return
        if foreign:
            # Allowed here, by a name that Streamlit's own check does not know.
            scope = {**scope, "headers": [entry for entry in scope["headers"] if entry[0] != b"origin"]}
        await self._app(scope, receive, _with_policy(send))


def _name(place: str) -> str:
    """The host of ``host:port`` without the port; for anything else a name that nobody has."""
    try:
        parts = urlsplit(f"//{place}")
        _ = parts.port  # raises for what is no port
    except ValueError:
        return _NOBODY
    if parts.netloc != place or "@" in place:
        return _NOBODY
    return (parts.hostname or _NOBODY).rstrip(".") or _NOBODY


def _place(origin: str) -> str:
    """The ``host:port`` of an origin; empty for ``null``."""
    return origin.partition("://")[2].lower()


def _arrived_at(scope: Scope) -> str:
    """The address of this machine that a request came to. It is safe to answer to: what is rebound are names."""
    server: tuple[str, int | None] | None = scope.get("server")
    return server[0].removeprefix("::ffff:") if server else "localhost"


def _with_policy(send: Send) -> Send:
    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["content-security-policy"] = _POLICY
        await send(message)

    return guarded
