"""Tests of the pure core; they share the facts of `build`."""
