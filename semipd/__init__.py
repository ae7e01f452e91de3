"""semipd: an LLM serving daemon whose prefill and decode lanes share one copy of weights and KV."""

__version__ = "0.1.0"
