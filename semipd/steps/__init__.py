"""One step of a lane: the sequences it knows, the rows it computes, the tokens it takes."""
