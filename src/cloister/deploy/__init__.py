"""Renders what a platform needs to start a node."""
