"""Worker processes: a crash or a hang is a row, and the device never sees the oracle."""
