"""The parts of `audit_verification`: what each kind of record of a run must be."""
