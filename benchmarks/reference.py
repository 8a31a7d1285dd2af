"""What `make bench` runs: the packaged demo model, by the backend that `auto` chooses; options go to `runtime bench`."""

from __future__ import annotations

import sys

from runtime.cli import main

SIZES = ("--prefill", "256", "--decode", "16", "--depth", "0,512", "--batch", "1,8", "--repeat", "3")

if __name__ == "__main__":
    sys.exit(main(["bench", *SIZES, *sys.argv[1:]]))
