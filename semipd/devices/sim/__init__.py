"""A named GPU and a named model as arithmetic: step times from a roofline, made-up tokens, no hardware."""
