"""Demonstrations in the environments of OGBench, which are registered by OGBench."""
