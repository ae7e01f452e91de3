"""The KV pool as numbers: which block belongs to whom, and which prefixes can be reused."""
