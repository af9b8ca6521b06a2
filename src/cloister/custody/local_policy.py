"""A party's own policy, and what it asks of the nodes of other parties.

Written out in `docs/spec/custodian.md`. It is judged beside the plan's policy, never in
its place, so whatever it says can only refuse more.
"""

from __future__ import annotations

import msgspec

from cloister.attestation.policy import Policy


def for_another_party(local: Policy, *, plans: Policy) -> Policy:
    """Returns what a party's own policy asks of a node of another party.

    It is written for the party's own node, and names that node's code and machines.
    Other parties' nodes have other roles and other machines: these the plan names. How
    good their machines must be, the party says all the same.

    From the plan: references (`sgx`, `sgx_exact`, `tdx`), `mrservicetd` and
    `platforms`. From the party: all else, what a later version adds included; of
    `sept_ve_disable`, only where both speak of trust domains.

    Args:
        local: The party's own policy.
        plans: The plan's for the other party.
    """
    if local.root != plans.root:
        # Refuses it as it is, by its root; and under another one the plan's machines
        # may make no policy.
        return local
    of_domains = local if local.tdx and plans.tdx else plans
    return msgspec.structs.replace(
        local,
        sgx=plans.sgx,
        sgx_exact=plans.sgx_exact,
        tdx=plans.tdx,
        mrservicetd=plans.mrservicetd,
        platforms=plans.platforms,
        sept_ve_disable=of_domains.sept_ve_disable,
    )
