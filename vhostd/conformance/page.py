"""The page of all checks: `python -m vhostd.conformance.page > CONFORMANCE.md`."""

import sys
from collections.abc import Iterator

from vhostd.conformance.check import Check, Group
from vhostd.conformance.groups import GROUPS

HEAD = """\
# Conformance

What `vhostctl check` looks at in a back-end, anybody's: each clause of the specifications that a front-end
can observe. [How to run it](docs/vhostctl.md#check). This page is generated from the checks:
`python -m vhostd.conformance.page`.

- A *must* is what the specification demands, or what keeps a hostile guest or front-end from taking the
  host's process or memory. Only a broken must makes a back-end fail.
- A *should* may be broken for a good reason, or is not noticed by front-ends in use.
- *Advice* is asked for by no specification.

A check keeps its number for ever. After each one the back-end must still serve a new front-end: one that has
died or hangs has failed that check, whatever it is about.
"""
COLUMNS = ("", "level", "section", "clause", "how it is observed")


def page() -> str:
    """The whole page, in Markdown."""
    return "\n".join([HEAD, *_contents(), *(line for group in GROUPS for line in _section(group))])


def _contents() -> Iterator[str]:
    for group in GROUPS:
        anchor = group.title.lower().replace(" ", "-").replace(",", "")
        yield f"- [{group.title}](#{anchor}): {len(group.checks)} checks"
    yield ""


def _section(group: Group) -> Iterator[str]:
    """A group: what its file argues, and its checks."""
    yield f"## {group.title}\n"
    yield f"{_argument(group)}\n"
    yield _row(COLUMNS)
    yield _row(["---"] * len(COLUMNS))
    for check in group:
        yield _row([check.id, check.level, _place(group, check), check.gist, check.how])
    yield ""


def _argument(group: Group) -> str:
    """The docstring of the file where the checks are."""
    return (sys.modules[group.checks[0].observe.__module__].__doc__ or "").strip()


def _place(group: Group, check: Check) -> str:
    """A section, with its specification if that is not vhost-user's."""
    name = group.specification.partition(",")[0]
    if name == "vhost-user" or check.section.startswith("virtio"):
        return check.section
    return f"{name}, {check.section}"


def _row(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    sys.stdout.write(page())
