"""The ground floor: plain data that every room shares. No torch, no asyncio, no clock."""
