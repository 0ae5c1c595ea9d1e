"""One file per engine: its metrics in, requests out."""
