"""Log-probabilities of chosen tokens and of the best alternatives; launched by `sampling.token_logprobs`."""
