"""The SMs divided: green contexts, a stream for each lane and split, proof of where kernels run."""
