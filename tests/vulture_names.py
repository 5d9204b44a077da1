"""Names that vulture cannot see the use of, and which this file uses for it; nobody imports it.

Specifications give names that no code has to use. Others stand in quoted annotations only.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from io import FileIO

    from tests.test_layout import Little
    from vhost_user_input import config
    from vhostd import messages
    from vhostd.messages import ProtocolFeature
    from vhostd.virtio import DeviceType, Feature

    _annotations = (FileIO,)
    _enumerated = (
        config.Select.UNSET,
        DeviceType.NET,
        DeviceType.BLOCK,
        DeviceType.CONSOLE,
        DeviceType.BALLOON,
        DeviceType.RPMSG,
        DeviceType.SCSI,
        DeviceType.RPROC_SERIAL,
        DeviceType.CAIF,
        DeviceType.GPU,
        DeviceType.VSOCK,
        DeviceType.CRYPTO,
        DeviceType.FS,
        Feature.LOG_ALL,
        ProtocolFeature.BACKEND_SEND_FD,
        ProtocolFeature.XEN_MMAP,
        ProtocolFeature.GET_VRING_BASE_INFLIGHT,
        ProtocolFeature.GPA_ADDRESSES,
        messages.BACKEND_IOTLB_MSG,
        messages.BACKEND_VRING_CALL,
        messages.BACKEND_VRING_ERR,
    )
    _fields = (
        messages.Log.mmap_size,
        messages.Iotlb.iova,
        messages.Iotlb.permission,
        messages.Iotlb.padding,
        messages.Inflight.num_queues,
        messages.Inflight.queue_size,
        messages.SharedObject.uuid,
        messages.StateTransfer.direction,
        messages.StateTransfer.phase,
        messages.SharedMapping.shmid,
        messages.SharedMapping.fd_offset,
        messages.SharedMapping.shm_offset,
        messages.SharedMemoryConfig.num_regions,
        messages.SharedMemoryConfig.sizes,
        config.ConfigSpace.reserved,
        config.ConfigSpace.u,
        config.DevIds.bustype,
        config.DevIds.vendor,
        config.DevIds.product,
        config.AxisInfo.res,
        Little.fourth,
        Little.signed,
    )
