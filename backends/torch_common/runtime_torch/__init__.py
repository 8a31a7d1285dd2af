"""What the torch-based backends share: device memory, kernels in Triton, whole steps; by torch's device type."""
