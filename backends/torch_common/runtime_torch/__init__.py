"""What the torch-based backends share: memory, kernels in Triton, whole-step executables; parameterised by torch device."""
