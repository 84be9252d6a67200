"""Stages as seen by Kubeflow Pipelines: components whose bodies import the package and call one function."""
