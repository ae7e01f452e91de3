"""Who goes next and who has to yield: plain data in, plain data out."""
