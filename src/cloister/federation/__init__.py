"""Rounds between attested nodes: wire protocol, strategies, server and worker."""
