"""A checkpoint in one GGUF file: its head, its configuration and its tensors in the words of Hugging Face."""
