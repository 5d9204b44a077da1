"""What a parser declares, read as data."""

from tests.ctl.commands import tool
from vhostd.ctl.installation.commandline import Command, Option, read

HELP = Option(("-h", "--help"), "", "show this help message and exit", ())


def test_everything_is_read() -> None:
    command = read(tool(), "a-tool")
    assert (command.name, command.description, command.epilog) == (
        "a-tool",
        "Does `this`.",
        "It's the end.",
    )
    verbose = Option(("--verbose", "-v"), "", 'say [more]: it\'s $HOME `id` \\ "all"', ())
    assert command.groups == {"options": [HELP, verbose]}
    run, stop = command.commands
    assert run.groups == {
        "positional arguments": [Option((), "FILE", "what to run", ())],
        "options": [
            HELP,
            Option(("--colour",), "{red,green}", "default: red", ("red", "green")),
            Option(("--into",), "DIR", ".a folder", ()),
            Option(("--group",), "GROUP", "'a group", ()),
            Option(("--number",), "N [N ...]", "numbers", ()),
        ],
    }
    assert stop == Command("stop", "Stops it.", "", {"options": [HELP]}, ())
    assert run.options == [*run.groups["positional arguments"], *run.groups["options"]]


def test_the_kind_of_a_value() -> None:
    kinds = [option.kind for option in read(tool(), "a-tool").commands[0].options]
    assert kinds == ["FILE", "", "red", "DIR", "GROUP", "N"]
