"""Kernels in Triton, one file per family; what is torch's own best (topk, sorting, dense products) is left to torch.

The same source is compiled for a chip and interpreted on the processor; sizes of tiles come from `runtime_torch.tiles`.
"""
