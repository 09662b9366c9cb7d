"""PyTorch kernels."""
