"""OpenAI's interface: completions, chat, tokenizing, models."""
