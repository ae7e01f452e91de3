"""The first screen's panels: pure functions from a picture and a size to lines."""
