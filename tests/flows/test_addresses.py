"""Addresses, against real servers: one that speaks HTTP and has no page, one that speaks something else, and none."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator

import pytest

from flows.addresses import redact, responds


@pytest.fixture
def asked() -> list[str | None]:
    """The `Authorization` of each request that the server got."""
    return []


@pytest.fixture
def http_server(asked: list[str | None]) -> Iterator[str]:
    """Something that speaks HTTP and has no page: host:port."""

    class Nothing(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers["Authorization"])
            self.send_error(404)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Nothing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def other_server() -> Iterator[str]:
    """Something that greets as SSH does: host:port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def greet() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        thread.join()


def test_anything_that_speaks_http_responds(http_server: str) -> None:
    assert responds(f"http://{http_server}/health")


def test_a_user_and_a_password_do_not_hide_a_server_and_are_not_sent(http_server: str, asked: list[str | None]) -> None:
    assert responds(f"http://ann:hunter2@{http_server}/health")
    assert asked == [None]


def test_what_speaks_something_else_does_not_respond(other_server: str) -> None:
    assert not responds(f"http://{other_server}/health")


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/health", "http://ann:hunter2@127.0.0.1:9/health", "no address", "http://[::1/health"])
def test_nothing_does_not_respond(address: str) -> None:
    assert not responds(address)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://ann:se/cret@host/x", "https://ann:se/cret@host/x"),  # no address: a slash ends the host
        ("https://ann:se@cret@host/x", "https://***@host/x"),
        ("https://host/x?token=abc&size=3", "https://host/x?token=***&size=3"),
        ("two: s3://a:b@c and http://d:e@f", "two: s3://***@c and http://***@f"),
        ("/data/me@home/images", "/data/me@home/images"),
        ("https://host/x?monkeys=3", "https://host/x?monkeys=***"),  # rather one too many
    ],
)
def test_redact(text: str, expected: str) -> None:
    assert redact(text) == expected
