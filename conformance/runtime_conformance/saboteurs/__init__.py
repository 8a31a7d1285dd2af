"""Wrong backends, each with a plausible fault of a real driver, and honest ones: the suite is tested by them."""
