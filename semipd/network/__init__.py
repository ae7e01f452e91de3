"""The network: what one forward pass computes, and how."""
