"""What everybody signs, and what each node alone knows."""
