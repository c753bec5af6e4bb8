"""What `dipengine bench` runs: measurements of the engine beside plain PyTorch, and what they have in common."""
