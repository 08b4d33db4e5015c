"""Figures: on the caller's Axes, or on a figure of their own."""
