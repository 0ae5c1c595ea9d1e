"""Open-loop replay of workloads against a running server."""
