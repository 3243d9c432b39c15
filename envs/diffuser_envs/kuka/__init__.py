"""Block stacking with a KUKA arm."""
