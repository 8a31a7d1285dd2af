"""`python -m runtime_conformance`: the verb without the `runtime` command."""

from __future__ import annotations

import sys

from runtime_conformance.cli.conformance import main

if __name__ == "__main__":
    sys.exit(main())
