"""Columns of a trajectory: their layout, units, derived features and labels."""
