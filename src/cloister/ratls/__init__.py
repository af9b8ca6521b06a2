"""Attested channels: identity, evidence certificates, the challenge, admission."""
