"""Finished generators as files: the generator file (safetensors)."""
