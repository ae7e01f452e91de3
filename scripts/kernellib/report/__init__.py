"""What the compiler made of the kernels, without a GPU."""
