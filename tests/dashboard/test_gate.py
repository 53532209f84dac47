"""What the gate decides by the address that a request came to; the rest is seen on a running server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dashboard.gate import Gate


def _status(gate: Gate, host: str, server: tuple[str, int]) -> int:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request"}

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", host.encode())], "server": server}
    asyncio.run(gate(scope, receive, send))
    return int(sent[0]["status"])


async def _page(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


@pytest.mark.parametrize(
    ("address", "host", "server", "status"),
    [
        ("0.0.0.0", "10.0.0.5:8501", "10.0.0.5", 200),
        ("::", "10.0.0.5:8501", "::ffff:10.0.0.5", 200),
        ("0.0.0.0", "gpu-box:8501", "10.0.0.5", 403),
        ("0.0.0.0", "0.0.0.0:8501", "10.0.0.5", 403),
        ("gpu-box", "GPU-box:8501", "10.0.0.5", 200),
        ("10.0.0.5", "localhost:8501", "10.0.0.5", 200),  # through a tunnel
        ("127.0.0.1", "10.0.0.5:8501", "127.0.0.1", 403),
    ],
)
def test_of_a_wildcard_the_address_that_a_request_came_to_counts(
    address: str, host: str, server: str, status: int
) -> None:
    assert _status(Gate(_page, address), host, (server, 8501)) == status
