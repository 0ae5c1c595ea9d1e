"""The origin's classes: they hold state, call the core, act and record."""
