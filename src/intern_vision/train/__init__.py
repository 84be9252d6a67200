"""The one training loop, its objectives, checkpoints and the launcher of its ranks."""
