"""Filters of a manifest: rules that take rows out and say why."""
