"""What the daemon reads of a checkpoint: tokenizer, chat template, defaults; and text made of tokens."""
