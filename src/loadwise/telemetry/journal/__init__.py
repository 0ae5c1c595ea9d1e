"""The decision journal: what was decided, from what, and how it went, kept off the request path."""
