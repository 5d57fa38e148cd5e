"""Imagenette: three users of three of its ten classes."""
