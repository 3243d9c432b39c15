"""Networks, and how they are run."""
