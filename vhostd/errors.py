"""Every exception of vhostd, and what each one costs.

    VhostdError
      FrontendError          the peer on the socket broke the protocol
        MalformedMessage       the bytes or fds are not a message: log, close the connection
        RefusedRequest         a well-formed request that cannot be honoured: non-zero ack if one was
                               asked for, else close the connection
          UnknownRequest         not a request of ours: non-zero ack if one was asked for, else ignore it,
                                 unless the peer now waits for a reply of its own: then close
          NoGuestMemory          the front-end shares none: non-zero ack if one was asked for, else nothing
          RefusedDriver          not the front-end's wish, but the driver's: the same
        FrontendGone           the peer went while its request was served: log, close the connection
        MemoryLost             shared memory vanished under us: log, close the connection
      NotThereYet            the front-end has not said yet where an address of the driver's lies, or has not
                             brought its page: the ring waits for that
      GuestError             the driver broke a ring or a request: that ring stops and its err fd is
                             signalled; the program and the other rings live on
        BadRing                  an index or a flag of the ring itself
        BadDescriptor            a descriptor chain
        BadRequest               what the chain says
      DeviceError            what a device, or its back-end, did wrong: to whoever plays the front-end
      SetupError             files, sockets, activation: one line on stderr, exit status 1
        UsageError               the command line: one line on stderr, exit status 2

Anything else that is raised is our own bug: traceback, close the connection.
"""


class VhostdError(Exception):
    """The root of all that vhostd raises on purpose."""


class FrontendError(VhostdError):
    """The front-end broke the vhost-user protocol."""


class MalformedMessage(FrontendError):
    """The bytes or the fds received are not a message of the protocol."""


class RefusedRequest(FrontendError):
    """A well-formed request asks for what cannot be done now, or not at all."""


class UnknownRequest(RefusedRequest):
    """The request's number, or the feature that it needs, was never agreed on."""


class NoGuestMemory(RefusedRequest):
    """A ring cannot start, for the front-end shares no guest memory at all."""


class RefusedDriver(RefusedRequest):
    """The front-end passes on what the driver wants of the device, and cannot have."""


class FrontendGone(FrontendError):
    """The peer went before its request was served."""


class MemoryLost(FrontendError):
    """The file behind a memory region shrank while it was mapped."""


class NotThereYet(VhostdError):
    """An I/O virtual address has no translation yet, or a page of guest memory has not come yet."""


class GuestError(VhostdError):
    """The driver in the guest broke the rules of a ring or of a request."""


class BadRing(GuestError):
    """An index or a flag of the ring itself cannot be right."""


class BadDescriptor(GuestError):
    """A descriptor chain cannot be followed."""


class BadRequest(GuestError):
    """A chain was followed, and its content is not a request of the device."""


class DeviceError(VhostdError):
    """A device, or its back-end, did what none may, or said no. A front-end of ours raises it."""


class SetupError(VhostdError):
    """The program cannot start, or go on, in these surroundings."""


class UsageError(SetupError):
    """The command line makes no sense: one line on stderr, exit status 2."""


def forget(error: BaseException) -> None:
    """Lets go of what the frames in its traceback hold: requests, and with them guest memory.

    That goes for all that led to it as well. An error and its frames may refer to each other in a circle.
    """
    left, seen = [error], set[int]()
    while left:
        each = left.pop()
        if id(each) not in seen:
            seen.add(id(each))
            each.__traceback__ = None
            behind = (each.__cause__, each.__context__, *getattr(each, "exceptions", ()))
            left += (other for other in behind if other is not None)
