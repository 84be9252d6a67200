"""Duplicates of images: exact, perceptual and by embedding; groups of them, and what leaks from benchmark sets."""
