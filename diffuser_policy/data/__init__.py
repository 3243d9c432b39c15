"""Data: recorded, read once, and cut into windows."""
