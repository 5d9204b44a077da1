"""Requests for the page, and everything else that can come in their place."""

from email.utils import parsedate_to_datetime

import pytest

from tests.program.metrics.scraping import GET, Response
from vhostd.program.metrics.http import MAX_HEAD, respond

CONTENT = b"vhost_user_requests_total 1\n"


def page(accepted: str) -> tuple[str, bytes]:
    return f"text/plain; accepted={accepted}", CONTENT


def answer(head: bytes) -> Response:
    return Response.parse(respond(head, page))


@pytest.mark.parametrize(
    "head",
    [
        GET,
        b"GET /metrics HTTP/1.0\r\n\r\n",
        b"GET /metrics?name[]=up HTTP/1.1\r\nHost: here\r\n\r\n",
        b"GET http://here:9100/metrics HTTP/1.1\r\nHost: here:9100\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nhost:here\r\nEmpty:\r\nSpaced: \t a b \t\r\nBytes: \xff\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: here\r\nContent-Length: 4\r\n\r\nbody",
    ],
)
def test_the_page(head: bytes) -> None:
    response = answer(head)
    assert (response.status, response.content) == (200, CONTENT)
    assert response.fields["content-length"] == str(len(CONTENT))
    assert response.fields["connection"] == "close"
    assert parsedate_to_datetime(response.fields["date"]).tzinfo


def test_the_page_is_told_what_is_accepted() -> None:
    head = b"GET /metrics HTTP/1.1\r\nHost: here\r\nACCEPT: \t application/openmetrics-text \r\n\r\n"
    assert answer(head).fields["content-type"] == "text/plain; accepted=application/openmetrics-text"


def test_a_head_without_its_page() -> None:
    response = answer(b"HEAD /metrics HTTP/1.1\r\nHost: here\r\n\r\n")
    assert (response.status, response.content) == (200, b"")
    assert response.fields["content-length"] == str(len(CONTENT))


@pytest.mark.parametrize(
    "target", ["/", "/metrics/", "/Metrics", "*", "//metrics", "http://here/", "here:80"]
)
def test_another_place(target: str) -> None:
    response = answer(f"GET {target} HTTP/1.1\r\nHost: here\r\n\r\n".encode())
    assert (response.status, response.content) == (404, b"404 Not Found\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "get", "PRI"])
def test_another_method(method: str) -> None:
    response = answer(f"{method} /metrics HTTP/1.1\r\nHost: here\r\n\r\n".encode())
    assert (response.status, response.fields["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "head",
    [
        b"G",
        b"GET /metrics HTTP/1.1\r\nHost: here\r\n",
        b"GET /metrics\r\n\r\n",
        b"GET  /metrics HTTP/1.1\r\nHost: here\r\n\r\n",
        b"GET /met\trics HTTP/1.1\r\nHost: here\r\n\r\n",
        b"GET /metrics HTTP/1.1 \r\nHost: here\r\n\r\n",
        b"GET /metrics http/1.1\r\nHost: here\r\n\r\n",
        b"GET /metrics HTTP/1.1\nHost: here\n\n\r\n\r\n",
        b"\r\nGET /metrics HTTP/1.1\r\nHost: here\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: here\r\nHost: there\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost : here\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: here\r\n folded\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: he\0re\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: here\rX: y\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: here\r\nAccept: a\nSet-Cookie: b\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: here\r\nnothing\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        bytes(100),
    ],
)
def test_what_is_no_request(head: bytes) -> None:
    assert answer(head).status == 400


def test_another_version() -> None:
    assert answer(b"PRI * HTTP/2.0\r\n\r\n").status == 505


def test_a_head_that_does_not_end() -> None:
    assert answer(GET[:-2].ljust(MAX_HEAD, b"x")).status == 431


def test_a_field_of_nothing_but_spaces_costs_no_time() -> None:
    """Where an expression that can be matched in many ways would try them all."""
    assert answer(b"GET /metrics HTTP/1.1\r\nHost:" + b" " * 8000 + b"\0\r\n\r\n").status == 400
