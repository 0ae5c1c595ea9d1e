"""The ASGI data plane and the /v1/optimization control plane."""
