"""Noise models: what is known of the noise, and what that knowledge is good for."""
