"""Guides: test-time objectives of a plan, and where to find them by name."""
