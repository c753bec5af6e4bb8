"""Painting finished generators: ONNX Runtime sessions, providers, regions."""
