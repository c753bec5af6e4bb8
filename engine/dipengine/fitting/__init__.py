"""Fitting: settings, placement, the loop, stopping, roll-back, metrics, record."""
