"""What `make bench` runs: the packaged demo model on the best backend; options go to `runtime bench`."""

from __future__ import annotations

import sys

from runtime.cli import main

SIZES = ("--prefill", "128", "--decode", "8", "--depth", "0,256", "--batch", "1,4", "--repeat", "3")

if __name__ == "__main__":
    sys.exit(main(["bench", *SIZES, *sys.argv[1:]]))
