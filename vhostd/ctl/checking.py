"""vhostctl check at work: the back-end that is named, the checks that are wanted, and what is printed."""

import argparse
import asyncio
import os
import shlex
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

from vhostd.conformance.check import matching
from vhostd.conformance.groups import GROUPS
from vhostd.conformance.report import broken, junit, report, row, summary, tap, tap_plan
from vhostd.conformance.runner import Result
from vhostd.conformance.runner import run as run_checks
from vhostd.conformance.subject import PATIENCE, Subject
from vhostd.conformance.verdict import Level
from vhostd.ctl.libvirt.answer import ask
from vhostd.ctl.libvirt.json_text import NotJson, read_as_libvirt
from vhostd.ctl.output import printable, show, show_json
from vhostd.ctl.shown import Shown
from vhostd.ctl.target_options import words_of
from vhostd.errors import SetupError, UsageError
from vhostd.virtio.vocabulary import DeviceType

TYPELESS = "The type of its device is not known, so no request of one was tried: give it by --type."


def check(options: argparse.Namespace) -> int:
    """Prints what the options ask for; the exit status."""
    _expect_known(options.only)
    if options.patience is not None and options.patience <= 0:
        raise UsageError("--patience: it takes more than 0 seconds")
    if options.json and (options.tap or options.junit or options.trace or options.list):
        raise UsageError("--json goes with no other format, and not with --list")
    _expect_type(options.type)
    if options.list:
        checks = matching(GROUPS, options.only, options.type or "")
        show(f"{check.id:<9}{check.level:<8}{check.gist} ({check.section})" for check in checks)
        return 0
    results = asyncio.run(_check(options))
    return 1 if broken(results, Level.MUST) else 0


def _expect_known(wanted: Sequence[str]) -> None:
    """Raises UsageError for a name that is no check, and no group."""
    known = {group.prefix for group in GROUPS} | {check.id for group in GROUPS for check in group}
    if strange := [name for name in wanted if name.upper() not in known]:
        raise UsageError(f"--only: there is no check or group {', '.join(strange)}; --list prints them")


def _expect_type(wanted: str | None) -> None:
    """Raises UsageError for a type that no device has: the checks of its own type would be left out."""
    types = sorted(kind.description_type for kind in DeviceType.known())
    if wanted is not None and wanted not in types:
        raise UsageError(f"--type: there is no type {wanted!r}; it is one of {', '.join(types)}")


async def _check(options: argparse.Namespace) -> list[Result]:
    """Runs the checks and prints what was asked for, each as soon as it is known."""
    name, command, kind = _backend(options)
    checks = matching(GROUPS, options.only, kind)
    if not checks:
        raise UsageError(f"--only: none of these is a check of a device of type {kind}")
    subject = Subject(
        command=command,
        socket=options.socket,
        kind=kind,
        patience=options.patience or PATIENCE,
        **({"through": Shown(kind)} if options.trace else {}),
    )
    results: list[Result] = []
    if options.tap:
        show(tap_plan(len(checks)))
    async with subject, aclosing(run_checks(subject, checks, destructive=options.destructive)) as running:
        async for result in running:
            results.append(result)
            if options.tap:
                show(tap(len(results), result))
            elif not (options.json or options.junit):
                show(row(result))
    if options.json:
        show_json(report(name, kind, results))
    elif options.junit:
        show([junit(name, results)])
    elif not options.tap:
        show(["", *([] if kind else [TYPELESS]), summary(results)])
    return results


def _backend(options: argparse.Namespace) -> tuple[str, str, str]:
    """What to call the back-end, the command that starts it, if there is one, and its type."""
    if options.socket is not None:
        return printable(options.socket), "", options.type or ""
    if options.description is not None:
        binary, kind = _described(options.description)
        command = shlex.join([binary, "--socket-path={socket}"])
        return printable(binary), command, options.type or kind
    if options.exec is None:
        raise UsageError("say which back-end: --exec CMD, --socket PATH or --description FILE")
    words = words_of(options.exec)
    return printable(words[0]), options.exec, options.type or _type_of(words[0])


def _described(path: Path) -> tuple[str, str]:
    """The program of a description, and the type of its device."""
    try:
        members = _members(path.read_bytes())
    except OSError as error:
        raise SetupError(f"{path}: {error.strerror}") from None
    if not isinstance(binary := members.get("binary"), str):
        raise SetupError(f"{path}: it names no binary; see vhostctl validate")
    return binary, str(members.get("type", ""))


def _type_of(binary: str) -> str:
    """The type that a program prints by --print-capabilities; empty if it does not."""
    return str(_members(ask(os.path.abspath(binary) if "/" in binary else binary).output).get("type", ""))


def _members(text: bytes) -> dict[str, object]:
    try:
        document = read_as_libvirt(text)
    except NotJson:
        return {}
    return document if isinstance(document, dict) else {}
