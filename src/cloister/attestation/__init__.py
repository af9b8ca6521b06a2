"""From quote bytes to a verdict: is it genuine, and is it what I want?

`evidence` parses and believes nothing; `verify` turns genuine evidence into `Claims`;
`policy` appraises claims. `platforms` are where a node's own quotes come from.
"""
