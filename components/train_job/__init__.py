"""A training on several nodes as a TrainJob of Kubeflow Trainer; the only user of the Kubernetes client."""

from intern_components.train_job.run import TrainJobRun

__all__ = ["TrainJobRun"]
