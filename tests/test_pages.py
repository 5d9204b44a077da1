"""The pages hold together: links lead somewhere, and what is quoted is in the source."""

import ast
import errno
import json
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import pytest
from evdev import ecodes
from prometheus_client import CollectorRegistry, ProcessCollector

from vhost_user_input.description import VIRTUAL
from vhost_user_input.event_lines import EventLines
from vhostd.program.metrics.collector import ProgramCollector
from vhostd.program.metrics.meter import BOUNDS, Histogram, Meter, Meters
from vhostd.virtio.device import Device
from vhostd.virtio.state import VirtioState

CHECKOUT = Path(__file__).parents[1]
README = CHECKOUT / "README.md"
DOCS = CHECKOUT / "docs"
GUIDES = sorted(DOCS.glob("*.md"))
PAGES = [*sorted(CHECKOUT.glob("*.md")), *GUIDES]
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
MESSAGE = re.compile(r"^(?:vhost-user-\w+|vhostctl): (?:error|[A-Z]+): (?:refused: )?(.*)$", re.MULTILINE)
METRIC = re.compile(r"\b(?:vhost_user|process)_\w+")
DOMAIN = re.compile(r"^```\n(<domain .*?</domain>)\n```$", re.MULTILINE | re.DOTALL)
EVENTS = re.compile(r"(?:^E: .*\n)+", re.MULTILINE)
KEY = re.compile(r"\| (?:`+ ?)?([^|`]+|`)(?: ?`+)? \| `(00[0-9a-f]{2})` (?=\|)")
CONTINUED = re.compile(r'"\s*\n\s*f?"')  # a string that goes on in the next line
GAP = "..."  # in a quoted message: what is different each time


def page_name(page: Path) -> str:
    return page.name


def prose(page: Path) -> str:
    """The page without its examples, of which a `#` begins no heading."""
    return FENCE.sub("", page.read_text())


@cache
def anchors(page: Path) -> set[str]:
    """What a link may have after its `#`: the headings, as sites that show Markdown write them."""
    headings = HEADING.findall(prose(page))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert target.resolve().is_relative_to(CHECKOUT), link
        assert not anchor or anchor in anchors(target), link


def test_the_readme_leads_to_every_page() -> None:
    links = set(LINK.findall(prose(README)))
    assert {f"docs/{page.name}" for page in GUIDES} <= links


def test_the_readme_s_domain_is_that_of_the_page() -> None:
    short, whole = (set(elements(page)) for page in (README, DOCS / "libvirt.md"))
    assert short <= whole


def elements(page: Path) -> Iterator[tuple[str, str]]:
    """The elements of the domain in a page, with their attributes."""
    (domain,) = DOMAIN.findall(page.read_text())
    for element in ElementTree.fromstring(domain).iter():
        if element.tag != "domain":
            yield element.tag, json.dumps(element.attrib, sort_keys=True)


@cache
def texts_of_the_source() -> list[str]:
    """All string constants of the programs, also between the values of a message; the system's errors."""
    found = [os.strerror(number) for number in errno.errorcode]
    for path in (*(CHECKOUT / "vhostd").rglob("*.py"), *(CHECKOUT / "devices").rglob("*.py")):
        constants = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant))
        found += (constant.value for constant in constants if isinstance(constant.value, str))
    native = (path.read_text() for path in (CHECKOUT / "vhostd").rglob("*.pyx"))
    return found + [CONTINUED.sub("", text) for text in native]


def quoted_messages() -> list[str]:
    return MESSAGE.findall((DOCS / "troubleshooting.md").read_text())


@pytest.mark.parametrize("message", quoted_messages())
def test_quoted_messages_are_in_the_source(message: str) -> None:
    for piece in message.split(GAP):
        assert any(piece in text for text in texts_of_the_source()) or is_error(piece), piece


def is_error(piece: str) -> bool:
    """Whether it is what the system says of an error, after what it is about."""
    return piece.removeprefix(": ") in texts_of_the_source()


class Counting(Device):
    """A device that counts something."""

    def counts(self) -> dict[str, int]:
        return {"packets": 1}


class Served:
    """A program without a front-end."""

    state: VirtioState | None = None
    connections = 0
    device: Device = Counting()


def metrics() -> set[str]:
    """The names of all that a program with --metrics shows."""
    meters = Meters()
    meters[0] = Meter()  # of a ring that has run
    registry = CollectorRegistry()
    registry.register(ProgramCollector({}, Served(), meters, Histogram(BOUNDS)))
    ProcessCollector(registry=registry)
    families = list(registry.collect())
    return {sample.name for family in families for sample in family.samples}


def test_the_dashboard_shows_metrics_that_there_are() -> None:
    dashboard = json.loads((DOCS / "grafana-dashboard.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    named = set(METRIC.findall(" ".join(expressions)))
    assert named
    assert named <= metrics()
    queries = [
        variable["definition"] for variable in dashboard["templating"]["list"] if "definition" in variable
    ]
    assert set(METRIC.findall(" ".join(queries))) <= metrics()


def test_the_page_of_metrics_explains_all_of_ours() -> None:
    text = (DOCS / "metrics.md").read_text()
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in metrics()}
    assert {name for name in families if name.startswith("vhost_user")} <= set(METRIC.findall(text))
    assert set(METRIC.findall(text)) <= metrics() | families


@pytest.mark.parametrize("device", ["mouse", "tablet", "touchscreen"])
def test_the_examples_of_events_are_events_of_their_device(device: str) -> None:
    text = (DOCS / "vhost-user-input.md").read_text()
    (example,) = EVENTS.findall(text.partition(f"--event-device={device}")[2].partition("\n## ")[0])
    parsed = EventLines(VIRTUAL[device]()).feed(example.encode())
    assert not parsed.errors
    assert parsed.reports


def test_the_table_of_keys_is_that_of_linux() -> None:
    text = (DOCS / "vhost-user-input.md").read_text().partition("## Common keys")[2].partition("\n## ")[0]
    found = dict(KEY.findall(text))
    named = {key: code for key, code in found.items() if f"KEY_{key.upper()}" in ecodes.ecodes}
    assert len(named) > 60
    assert all(ecodes.ecodes[f"KEY_{key.upper()}"] == int(code, 16) for key, code in named.items())
