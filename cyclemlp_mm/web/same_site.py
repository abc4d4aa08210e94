"""Refuses requests that another web site makes through a visitor's browser."""

import ipaddress
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class SameSite:
    """ASGI middleware that answers 403 to foreign ``Host`` and ``Origin`` headers.

    A page elsewhere can send requests to this address, and by a name of its own that it points
    here it could read the answers. Addresses in numbers, this machine's names and those that are
    allowed are taken as ``Host``; a request with an ``Origin`` must come from the same host.

    Args:
        app (ASGIApp): What answers.
        names (Sequence[str]): More names of this server.
    """

    def __init__(self, app: ASGIApp, names: Sequence[str] = ()) -> None:
        self.app = app
        own = socket.gethostname()
        self.names = {name.lower() for name in ('localhost', own, f'{own}.local', *names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        if scope['type'] in ('http', 'websocket'):
            headers = Headers(scope=scope)
            host, origin = headers.get('host', ''), headers.get('origin')
            if not self._is_own(host):
                refusal = 'this server is not known by that name: start it with --allow-host NAME'
            elif origin is not None and urlsplit(origin).netloc.lower() != host.lower():
                refusal = 'requests from other sites are refused'
            else:
                refusal = None
            if refusal:
                await PlainTextResponse(refusal, 403)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _is_own(self, host: str) -> bool:
        try:
            name = urlsplit(f'//{host}').hostname or ''
            if name in self.names:
                return True
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True
