"""One file per build backend."""
