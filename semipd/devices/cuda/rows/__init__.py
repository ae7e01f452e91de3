"""The rows of a step: sequences in slots, and everything that goes up to the device."""
