"""loadwise keeps an LLM server fast and good while its load changes."""
