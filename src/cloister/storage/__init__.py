"""Everything at rest: data sets as records, and the sealed model.

Keys arrive from outside; nothing here knows who may have them.
"""
