"""Cloister: confidential federated learning between parties who trust no host."""

__version__ = "0.1.0"
