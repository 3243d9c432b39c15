"""Training a planner: loss, averaged weights, exact resume, presets."""
