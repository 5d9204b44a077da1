"""A device as a program: its options, its log, what it has open, and the event loop."""

import asyncio
import gc
from contextlib import ExitStack, closing
from threading import Thread

import uvloop

from vhostd import __version__
from vhostd.errors import SetupError
from vhostd.host.grants import Grants
from vhostd.program import log, sandbox
from vhostd.program.activation import Notifier, activated_fd
from vhostd.program.command_line import CommandLine
from vhostd.program.endpoint import Endpoint, adopt, choose, listen
from vhostd.program.manifest import Manifest
from vhostd.program.metrics.address import Address
from vhostd.program.options import parse
from vhostd.program.server import Metrics, serve
from vhostd.ring import notify
from vhostd.vhost_user.messages import ProtocolFeature
from vhostd.vhost_user.offer import Offer
from vhostd.vhost_user.postcopy import Postcopy
from vhostd.virtio.device import Device
from vhostd.virtio.vocabulary import DeviceType, mask


def run(kind: type[Device]) -> int:
    """Runs a device as a program that has no manifest, and returns its exit status."""
    return Manifest(DeviceType(kind.kind).description_type, kind).main()


def load(device: str | type[object]) -> type[Device]:
    """The class that a manifest names, or has."""
    if isinstance(device, str):
        module, _, name = device.partition(":")
        device = getattr(__import__(module, fromlist=[name]), name)  # as a statement, for -X importtime
    if not (isinstance(device, type) and issubclass(device, Device)):
        raise TypeError(f"{device!r} is no class derived from Device")
    return device


def serve_device(kind: type[Device], command: CommandLine) -> None:
    """Makes the device as the options say, and serves until the end is asked for; raises SetupError."""
    options = parse(kind, command)
    log.set_up(command.program, options.log_level)
    with ExitStack() as stack:
        notifier = stack.enter_context(closing(Notifier()))
        notifier.tell_now("STATUS=starting")
        place = choose(options.socket_path, options.fd, activated_fd())
        if not isinstance(place, str):  # first, so that it is closed whatever fails
            endpoint = stack.enter_context(closing(adopt(place)))
        device = stack.enter_context(closing(kind.from_options(options)))
        metrics = None
        if options.metrics is not None:
            metrics = stack.enter_context(closing(_open_metrics(kind, command.program, options.metrics)))
        if isinstance(place, str):  # last: whoever can connect is served
            endpoint = listen(place, mode=options.socket_mode, group=options.socket_group)
            stack.enter_context(closing(endpoint))
        if options.sandbox != "none":  # with everything open, and nobody served
            _give_up_the_rest(device, endpoint, metrics, options.offer)
        for line in (str(endpoint), *device.places()):
            log.tell_person(command.program, line)
        gc.freeze()  # what is there stays
        gc.enable()
        _loop(device, endpoint, notifier, metrics, options.offer)


def _open_metrics(kind: type[Device], program: str, address: Address) -> Metrics:
    try:  # here, since few want metrics, and not everybody has what they take
        from vhostd.program.metrics.metrics import open_metrics
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        raise SetupError(
            f"--metrics needs {library}, which is not installed: Debian's python3-prometheus-client, "
            "or PyPI's prometheus-client"
        ) from None
    about = {"program": program, "device": DeviceType(kind.kind).name.lower(), "version": __version__}
    return open_metrics(address, about)


def _give_up_the_rest(device: Device, endpoint: Endpoint, metrics: Metrics | None, offer: Offer) -> None:
    needs = [each.grants() for each in (device, endpoint, metrics) if each is not None]
    if offer.protocol_features(mask(ProtocolFeature.PAGEFAULT)):
        needs.append(Postcopy.grants(device))
    sandbox.confine(Grants.together(needs))


def _loop(
    device: Device, endpoint: Endpoint, notifier: Notifier, metrics: Metrics | None, offer: Offer
) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(serve(device, endpoint, notifier, metrics, offer))
        finally:
            Thread(target=notify.end_aio, daemon=True).start()  # which takes as long as all that is left
