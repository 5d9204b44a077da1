"""vhost-user back-ends: the manifest of a program, and, when first used, every name of author.py.

An import of this package alone costs next to nothing, since it is on the way to each `--print-capabilities`.
"""

from vhostd.program.manifest import Manifest as Manifest

__version__ = "0.2.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vhostd.author import *  # noqa: F403
else:

    def __getattr__(name: str) -> object:
        import vhostd.author as author  # now that something of it is used

        try:
            return getattr(author, name)
        except AttributeError:
            raise AttributeError(f"module 'vhostd' has no attribute {name!r}") from None
