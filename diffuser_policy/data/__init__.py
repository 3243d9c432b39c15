"""Data: recording datasets, reading them, and cutting them into windows."""
