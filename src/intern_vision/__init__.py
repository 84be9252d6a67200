"""INTERN (arXiv 2111.08687) as a system: amateur, experts, generalist, adaptation.

The library imports neither kfp nor kubernetes; ``intern_components`` and
``intern_pipelines`` are thin skins over it.
"""

__version__ = "0.1.0"
