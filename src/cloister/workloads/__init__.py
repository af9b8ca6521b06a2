"""Framework adapters, the reference task, and the data the demo trains on.

The only room that imports a machine-learning framework, and only in the module named
after it: `torch` and what builds on it. `numpy` and `shards` need none.
"""
