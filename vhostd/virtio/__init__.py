"""What a virtio device is, on any transport."""
