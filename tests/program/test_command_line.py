import pytest

from vhostd.program.command_line import CommandLine


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/usr/bin/vhost-user-lamp", "vhost-user-lamp"),
        ("vhost-user-lamp", "vhost-user-lamp"),
        ("/x/vhost_user_lamp.py", "vhost-user-lamp"),
        ("/x/vhost_user_lamp/__main__.py", "vhost-user-lamp"),
    ],
)
def test_the_program_is_called_as_its_user_calls_it(path: str, name: str) -> None:
    command = CommandLine([path, "--option", "value"])
    assert (command.program, command.arguments) == (name, ["--option", "value"])
