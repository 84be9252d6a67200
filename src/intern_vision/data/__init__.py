"""GV-D at working size: manifests, shards, the loader, augmentation and the made world."""
