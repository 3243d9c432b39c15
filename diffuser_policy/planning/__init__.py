"""From samples to plans, and from plans to actions."""
