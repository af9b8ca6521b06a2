"""The mirror: a node's training state on a medium, sealed, whole at every instant."""
