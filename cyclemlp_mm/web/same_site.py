"""Rejects requests that another web site makes through a visitor's browser."""

import ipaddress
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class SameSite:
    """ASGI middleware that answers 403 to foreign ``Host`` and ``Origin`` headers.

    A page elsewhere could send requests here, and read the answers by a name of its own. Numeric
    addresses, this machine's names and ``names`` are taken; an ``Origin`` must be the same host.
    """

    def __init__(self, app: ASGIApp, names: Sequence[str] = ()) -> None:
        self.app = app
        own = socket.gethostname()
        self.names = {name.lower() for name in ('localhost', own, f'{own}.local', *names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        answer = self.app
        if scope['type'] in ('http', 'websocket'):
            headers = Headers(scope=scope)
            host, origin = headers.get('host', ''), headers.get('origin')
            if not self._is_own(host):
                answer = PlainTextResponse('unknown host: start with --allow-host NAME', 403)
            elif origin is not None and urlsplit(origin).netloc.lower() != host.lower():
                answer = PlainTextResponse('requests from other sites are rejected', 403)
        await answer(scope, receive, send)

    def _is_own(self, host: str) -> bool:
        try:
            name = urlsplit(f'//{host}').hostname or ''
            return name in self.names or bool(ipaddress.ip_address(name))
        except ValueError:
            return False
