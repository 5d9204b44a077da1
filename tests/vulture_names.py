"""Names that vulture cannot see the use of, and which this file uses for it; nobody imports it.

Specifications give names that no code has to use. Others stand in quoted annotations, or compiled code, only.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from io import FileIO

    from tests.net.echo import Datagrams, Streams
    from tests.wire.test_layout import Little
    from vhost_user_blk import protocol
    from vhost_user_blk.requests import Requests
    from vhost_user_console.protocol import Event, VirtioConsoleConfig
    from vhost_user_gpu import commands, edid, pixels
    from vhost_user_gpu.config import VirtioGpuConfig
    from vhost_user_input import config
    from vhost_user_vsock.switchboard import Switchboard
    from vhostd.frontend.drivers.net import Config, Header
    from vhostd.fuzz.operation import Await
    from vhostd.program.parser import Help, Parser
    from vhostd.ring import WriteLog
    from vhostd.trace.entries import Head
    from vhostd.vhost_user import gpu_messages, messages
    from vhostd.vhost_user.messages import ProtocolFeature
    from vhostd.virtio.vocabulary import DeviceType, Feature

    _annotations = (FileIO,)
    _of_asyncio = (AbstractEventLoop.slow_callback_duration,)
    _servers = (Datagrams.max_packet_size, Streams.daemon_threads, Streams.request_queue_size)
    _packets = (
        *(Header.gso_type, Header.hdr_len, Header.gso_size, Header.csum_start, Header.csum_offset),
        *(Config.max_virtqueue_pairs, Config.mtu, Config.mac),
    )
    _recorded = (Head.vhostd_trace,)
    _pydantic = (Await.model_config,)
    _compiled = (Requests.take_over, Switchboard.drained, Switchboard.requested, WriteLog.dirtied)
    _overridden = (Parser._print_message, Help._split_lines)
    _rows = (
        messages.NET_SET_MTU,
        messages.SET_VRING_ENDIAN,
        messages.CREATE_CRYPTO_SESSION,
        messages.CLOSE_CRYPTO_SESSION,
        messages.GET_SHMEM_CONFIG,
        messages.BACKEND_IOTLB_MSG,
        messages.VRING_HOST_NOTIFIER_MSG,
        messages.SHMEM_UNMAP,
    )
    _device_types = (
        DeviceType.NET,
        DeviceType.BALLOON,
        DeviceType.IOMEM,
        DeviceType.RPMSG,
        DeviceType.SCSI,
        DeviceType.MAC80211_WLAN,
        DeviceType.CAIF,
        DeviceType.MEMORY_BALLOON,
        DeviceType.CLOCK,
        DeviceType.VSOCK,
        DeviceType.CRYPTO,
        DeviceType.SIGNAL_DIST,
        DeviceType.PSTORE,
        DeviceType.IOMMU,
        DeviceType.MEM,
        DeviceType.SOUND,
        DeviceType.FS,
        DeviceType.PMEM,
        DeviceType.RPMB,
        DeviceType.MAC80211_HWSIM,
        DeviceType.VIDEO_ENCODER,
        DeviceType.VIDEO_DECODER,
        DeviceType.SCMI,
        DeviceType.NITRO_SEC_MOD,
        DeviceType.I2C_ADAPTER,
        DeviceType.WATCHDOG,
        DeviceType.CAN,
        DeviceType.PARAM_SERV,
        DeviceType.AUDIO_POLICY,
        DeviceType.BT,
        DeviceType.GPIO,
        DeviceType.RDMA,
        DeviceType.CAMERA,
        DeviceType.ISM,
        DeviceType.SPI,
    )
    _enumerated = (
        config.Select.UNSET,
        Event.PORT_REMOVE,
        Feature.LOG_ALL,
        ProtocolFeature.BACKEND_SEND_FD,
        ProtocolFeature.XEN_MMAP,
        ProtocolFeature.GET_VRING_BASE_INFLIGHT,
        ProtocolFeature.GPA_ADDRESSES,
    )
    _fields = (
        messages.Log.mmap_size,
        messages.Iotlb.iova,
        messages.Iotlb.permission,
        messages.Iotlb.padding,
        messages.SharedObject.uuid,
        messages.StateTransfer.direction,
        messages.StateTransfer.phase,
        messages.SharedMapping.shmid,
        messages.SharedMapping.fd_offset,
        messages.SharedMapping.shm_offset,
        messages.SharedMemoryConfig.num_regions,
        messages.SharedMemoryConfig.sizes,
        VirtioConsoleConfig.emerg_wr,
        protocol.VirtioBlkConfig.size_max,
        protocol.VirtioBlkConfig.alignment_offset,
        protocol.VirtioBlkConfig.opt_io_size,
        protocol.VirtioBlkConfig.unused0,
        protocol.VirtioBlkConfig.max_discard_sectors,
        protocol.VirtioBlkConfig.max_discard_seg,
        protocol.VirtioBlkConfig.max_write_zeroes_sectors,
        protocol.VirtioBlkConfig.max_write_zeroes_seg,
        protocol.VirtioBlkConfig.unused1,
        protocol.VirtioBlkConfig.max_secure_erase_sectors,
        protocol.VirtioBlkConfig.max_secure_erase_seg,
        protocol.VirtioBlkConfig.zoned,
        commands.GpuFeature.VIRGL,
        commands.GpuFeature.CONTEXT_INIT,
        commands.Response.OK_CAPSET,
        commands.Response.OK_MAP_INFO,
        commands.Response.ERR_INVALID_CONTEXT_ID,
        commands.GetCapset.capset_version,
        commands.ResourceCreateBlob.blob_flags,
        commands.SetScanoutBlob.more_strides,
        commands.SetScanoutBlob.more_offsets,
        commands.UpdateCursor.position_padding,
        VirtioGpuConfig.events_read,
        VirtioGpuConfig.events_clear,
        VirtioGpuConfig.num_scanouts,
        VirtioGpuConfig.num_capsets,
        VirtioGpuConfig.blob_alignment,
        edid.BaseBlock.week,
        edid.BaseBlock.year,
        edid.BaseBlock.input,
        edid.BaseBlock.width_cm,
        edid.BaseBlock.height_cm,
        edid.BaseBlock.gamma,
        edid.BaseBlock.chromaticities,
        edid.BaseBlock.established,
        edid.BaseBlock.standard,
        edid.BaseBlock.extensions,
        edid.Parameters.width_pixels,
        edid.Parameters.height_pixels,
        edid.Parameters.depth,
        pixels.Format.A8R8G8B8,
        pixels.Format.X8B8G8R8,
        pixels.Format.A8B8G8R8,
        gpu_messages.DmabufScanout.fd_width,
        gpu_messages.DmabufScanout.fd_height,
        gpu_messages.DmabufScanout.fd_stride,
        gpu_messages.DmabufScanout.fd_flags,
        gpu_messages.DmabufScanout.fd_drm_fourcc,
        gpu_messages.DmabufScanout2.dmabuf_scanout,
        gpu_messages.DmabufScanout2.modifier,
        config.VirtioInputConfig.reserved,
        config.VirtioInputConfig.u,
        config.VirtioInputDevids.bustype,
        config.VirtioInputDevids.vendor,
        config.VirtioInputDevids.product,
        config.VirtioInputAbsinfo.res,
        Little.fourth,
        Little.signed,
    )
