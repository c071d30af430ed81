"""Who may ask: only one who has the address with its token, from this machine, and from no other page."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["POLICY", "Guard"]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class Guard:
    """Refuses with 403 what has another Host, another Origin, or not the token as the first part of its path.

    Args:
        app: What is guarded.
        token: The secret.
        hosts: The values of ``Host`` that are this server, such as "127.0.0.1:4321": a page whose name was made to
            point here has another.
    """

    def __init__(self, app: ASGIApp, token: str, hosts: Collection[str]) -> None:
        self._app, self._token, self._hosts = app, token, frozenset(hosts)
        self._origins = frozenset(f"http://{host}" for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send_guarded)
        else:
            await PlainTextResponse(f"{refusal}\n", 403)(scope, receive, send_guarded)

    def _refusal(self, scope: Any) -> str | None:
        if scope["type"] != "http":
            return "only HTTP is spoken here"
        headers = Headers(scope=scope)
        given = scope["path"].split("/")[1] if scope["path"].startswith("/") else ""
        if not secrets.compare_digest(given.encode(), self._token.encode()):
            return "the address lacks its token; open the one that the command printed"
        if headers.get("host") not in self._hosts:
            return "this server has another name"
        origin = headers.get("origin")
        needed = scope["method"] not in ("GET", "HEAD")
        if (origin is not None or needed) and origin not in self._origins:
            return "the request comes from another page"
        return None
