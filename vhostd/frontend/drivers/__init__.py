"""Guests' drivers to script: one file for each type of device, with the numbers of its specification."""

from vhostd.frontend.drivers.block import BlockDriver
from vhostd.frontend.drivers.console import ConsoleDriver
from vhostd.frontend.drivers.gpu import Framebuffer, GpuDriver
from vhostd.frontend.drivers.gpu_display import GpuDisplay
from vhostd.frontend.drivers.input import InputDriver
from vhostd.frontend.drivers.net import NetDriver
from vhostd.frontend.drivers.rng import RngDriver
from vhostd.frontend.drivers.vsock import VsockDriver

__all__ = [
    "BlockDriver",
    "ConsoleDriver",
    "Framebuffer",
    "GpuDisplay",
    "GpuDriver",
    "InputDriver",
    "NetDriver",
    "RngDriver",
    "VsockDriver",
]
