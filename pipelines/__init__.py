"""The pipelines: wirings of components, one definition for a laptop and for a cluster."""
