"""What we ask of the operating system: child processes, files, waiting, logs. No torch, no asyncio."""
