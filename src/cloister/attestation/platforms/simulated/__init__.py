"""A TEE in software, for development: real formats under a root of one's own.

It protects nothing from the host. It exists so that every node speaks, and every check
sees, exactly what real hardware would send. A policy accepts it only by the hash of
one development root, which is made per deployment and never leaves it.
"""
