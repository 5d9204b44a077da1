"""The vhost-user protocol: one transport for virtio devices."""
