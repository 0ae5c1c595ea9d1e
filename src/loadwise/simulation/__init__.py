"""Virtual time: queueing engines, seeded workloads, trace loaders."""
