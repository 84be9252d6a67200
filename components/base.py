"""What every component shares: the image, and no installation at run time."""

import functools
import os

from kfp import dsl

import intern_vision

IMAGE = os.environ.get("INTERN_IMAGE", f"intern-vision:{intern_vision.__version__}")
"""Image that runs every step on a cluster; the local runner ignores it."""

component = functools.partial(dsl.component, base_image=IMAGE, install_kfp_package=False)
