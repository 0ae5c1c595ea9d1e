"""Continuous batching over transformers models, small and readable; knows nothing above it."""
