"""Inside an engine's own server: entry points, a thread of ours, one optimizer for all processes."""
