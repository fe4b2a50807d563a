"""The device seam and the devices: plain torch, and native CPU kernels."""
