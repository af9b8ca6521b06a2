"""Attested channels: node identity, evidence certificates, the mutual challenge, admission."""
