"""Metrics, alerts and reports."""
