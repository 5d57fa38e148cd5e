"""ImageNet-1k: users of 5 to 100 of its classes."""
