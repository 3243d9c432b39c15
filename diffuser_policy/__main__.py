"""`python -m diffuser_policy` is the command `diffuser-policy`."""

from __future__ import annotations

import sys

from diffuser_policy.cli import main

if __name__ == "__main__":
    sys.exit(main())
