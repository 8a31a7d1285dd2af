"""What runs in a worker, on the device under test: cases, laws, checks of the device itself, timing."""
