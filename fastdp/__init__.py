"""Frames in the kernel: a VXLAN device and two programs on it that forward by what we decide."""
