"""The machine: processes, memory, the allocator, kernels, and what is recorded of the host."""
