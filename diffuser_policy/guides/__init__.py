"""Guides: test-time objectives of a plan, and where to find them by name.

The public names are those of the package: `from diffuser_policy import Guide,
make_guide, register_guide`.
"""
