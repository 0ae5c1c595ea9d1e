"""The life of a compiled model: build, verify, measure, promote, revert."""
