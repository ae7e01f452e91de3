"""Start-up of the device, and the device itself."""
