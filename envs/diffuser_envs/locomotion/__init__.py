"""Demonstrations by Gymnasium's robots, which are registered by Gymnasium."""
