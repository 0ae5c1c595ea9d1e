"""The pure core: facts in, decisions with reasons out. No clock, chance, logging, I/O or third party."""
