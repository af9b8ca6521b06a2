"""How updates become a new model: pure functions over arrays."""
