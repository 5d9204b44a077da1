"""How a program was called: the one place that looks at that."""

import os


class CommandLine:
    """The program's name, as its user calls it, and what it is told."""

    __slots__ = ("arguments", "program")

    def __init__(self, words: list[str]) -> None:
        """The words are as in sys.argv, also when started as `python -m vhost_user_rng`."""
        path, *self.arguments = words
        folder, file = os.path.split(path)
        name = os.path.basename(folder) if file == "__main__.py" else file.removesuffix(".py")
        self.program = name.replace("_", "-")
