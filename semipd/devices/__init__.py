"""Devices: who runs the plans. One contract, several kinds of hardware."""
