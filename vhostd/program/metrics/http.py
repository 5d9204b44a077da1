"""The part of HTTP that one page needs (RFC 9110, RFC 9112): turns a request's head into a response.

Every response ends its connection. So the part of a request after its head does not matter.
"""

import re
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus

Page = Callable[[str], tuple[str, bytes]]  # from the Accept field to the content's type and the content

PATH = "/metrics"
END = b"\r\n\r\n"  # the end of a request's head
MAX_HEAD = 8192

REQUEST_LINE = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~]+) HTTP/(\d)\.(\d)")
FIELD = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([\t -~\x80-\xff]*)")
AUTHORITY = re.compile(r"http://[^/?]+", re.IGNORECASE)


class Refusal(Exception):
    """A request that is answered by an error status."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status.phrase)
        self.status = status


def respond(head: bytes, page: Page) -> bytes:
    """The whole response to a request; `head` has the request's first bytes, up to MAX_HEAD."""
    method = ""
    try:
        method, target, fields = _parse(head)
        _check(method, target)
        kind, content = page(fields.get("accept", ""))
        status = HTTPStatus.OK
    except Refusal as refusal:
        status = refusal.status
        kind, content = "text/plain; charset=utf-8", f"{status.value} {status.phrase}\n".encode()
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Date: {formatdate(usegmt=True)}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(content)}",
        "Connection: close",
    ]
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        lines.append("Allow: GET, HEAD")
    answer = "\r\n".join([*lines, "", ""]).encode("latin-1")
    return answer if method == "HEAD" else answer + content


def _parse(head: bytes) -> tuple[str, str, dict[str, str]]:
    """Method, target and fields of a request; raises Refusal if the head is incomplete or wrong."""
    whole, end, _ = head.partition(END)
    if not end:
        too_long = len(head) >= MAX_HEAD
        raise Refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE if too_long else HTTPStatus.BAD_REQUEST)
    first, *rest = whole.decode("latin-1").split("\r\n")
    line = REQUEST_LINE.fullmatch(first)
    if line is None:
        raise Refusal(HTTPStatus.BAD_REQUEST)
    method, target, major, minor = line.groups()
    if major != "1":
        raise Refusal(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
    found = [FIELD.fullmatch(text) for text in rest]
    if not all(found):
        raise Refusal(HTTPStatus.BAD_REQUEST)
    pairs = [(field[1].lower(), field[2].strip()) for field in found if field is not None]
    hosts = sum(name == "host" for name, _ in pairs)
    if hosts > 1 or (minor != "0" and not hosts):  # RFC 9112, 3.2
        raise Refusal(HTTPStatus.BAD_REQUEST)
    return method, target, dict(pairs)


def _check(method: str, target: str) -> None:
    """Raises Refusal for another target or method. The target's query is ignored."""
    if AUTHORITY.sub("", target, count=1).partition("?")[0] != PATH:
        raise Refusal(HTTPStatus.NOT_FOUND)
    if method not in ("GET", "HEAD"):
        raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED)
