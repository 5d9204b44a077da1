"""Runs a virtual machine with devices of ours: starts their programs, then QEMU, and ends all with QEMU.

A device's value is its source, and then options of its program without their dashes: `--disk
disk.img,cache=direct,read-only`. A comma of a name is written twice. `--disk=help` shows the options of a
disk, and so do the others. Each may be given several times. QEMU gets shared memory, of the size of its -m,
and an argument for each device; its other arguments are as they are given. The exit status is QEMU's.

A disk or a network card whose program ends is started again, and QEMU connects to it again. Programs log
warnings and errors only, unless the option `log-level` says otherwise. With --file the devices and QEMU's
arguments of the file come first; arguments after -- are added to those of the file, or replace them if they
name QEMU's program.
"""

import argparse
import os
from pathlib import Path

from vhostd.ctl.machine.command import Machine, qemu_version
from vhostd.ctl.machine.devices import Wish, devices
from vhostd.ctl.machine.domain import commands, domain
from vhostd.ctl.machine.kinds import KINDS, Kind
from vhostd.ctl.machine.machine_file import MachineFile, load
from vhostd.ctl.machine.script import script
from vhostd.ctl.machine.words import is_qemu, words
from vhostd.ctl.output import printable, show
from vhostd.program.log import write_line

USAGE = "%(prog)s [DEVICE ...] [--file FILE] [--print | --libvirt] -- QEMU [ARGUMENT ...]"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.usage = USAGE
    for kind in KINDS:
        parser.add_argument(
            f"--{kind.name}",
            metavar=kind.metavar,
            type=_value,
            nargs=None if kind.needs_value else "?",
            const=None if kind.needs_value else "",
            action="append",
            default=[],
            help=kind.help,
        )
    parser.add_argument("--file", metavar="FILE", help="take devices and QEMU's arguments from a TOML file")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--print", action="store_true", help="only print the commands, for a shell")
    instead.add_argument("--libvirt", action="store_true", help="only print a libvirt domain's XML")
    parser.add_argument(
        "qemu", metavar="QEMU", nargs="...", help="QEMU's program and its arguments, after --"
    )


def _value(text: str) -> str:
    """A device's value. The program after an option without a value would be taken for one."""
    if is_qemu(text):
        raise argparse.ArgumentTypeError(f"write -- before {text}")
    return text


def run(options: argparse.Namespace) -> int:
    """Runs the machine, or prints what it would be; returns QEMU's exit status."""
    # Here, since no other command of vhostctl needs an event loop.
    from vhostd.ctl.machine.running import run_machine, runtime_folder

    machine = _machine(options)
    machine.check()
    if options.libvirt:
        show([domain(machine)])
        _tell_of_programs(machine)
    elif options.print:
        folder = Path(runtime_folder()) / f"vhostctl-{os.getpid()}"
        version = qemu_version(machine.words, machine.folder)
        show(script(machine, machine.command(folder, version), folder))
    else:
        if machine.is_unseen:
            _tell("no graphical session here: QEMU has no window (-monitor stdio has screendump)")
        return run_machine(machine, _tell)
    return 0


def _tell_of_programs(machine: Machine) -> None:
    """Says who starts the programs of a domain."""
    if any(device.kind.is_display for device in machine.devices):
        _tell("libvirt starts the display's program itself, without the options given here")
    for kind in KINDS:
        if any(kind.since) and any(device.kind is kind for device in machine.devices):
            _tell(f"--{kind.name} needs QEMU {'.'.join(map(str, kind.since))}")
    for number, command in enumerate(commands(machine)):
        if not number:
            _tell("to be started before the domain:")
        write_line(f"  {command}")


def _machine(options: argparse.Namespace) -> Machine:
    here = Path.cwd()
    kept = load(options.file) if options.file else MachineFile(here)
    wishes = [
        *kept.wishes,
        *(_wish(kind, text, here) for kind in KINDS for text in getattr(options, kind.name)),
    ]
    given = tuple(options.qemu[1:] if options.qemu[:1] == ["--"] else options.qemu)
    added = not given or given[0].startswith("-")
    arguments = (*kept.qemu, *given) if added else given
    folder = kept.folder if added and kept.qemu else here
    made = devices(wishes)  # first, for some ask for help
    return Machine(words(arguments), folder, made)


def _wish(kind: Kind, text: str, folder: Path) -> Wish:
    return Wish(kind, f"--{kind.name}={text}" if text else f"--{kind.name}", folder, text)


def _tell(line: str) -> None:
    write_line(f"vhostctl: {printable(line)}")
