"""A plan in words, for people who must decide whether to sign it."""

from __future__ import annotations

from cloister.attestation.policy_words import references_in_words, root_in_words
from cloister.plan.plan import Plan, plan_hash


def describe(plan: Plan) -> list[str]:
    """Returns a plan in words, line by line."""
    training, workers = plan.training, ", ".join(p.name for p in plan.workers)
    return [
        f"Run {plan.run_id}, plan {plan_hash(plan).hex()}",
        *_predecessor(plan),
        "",
        f"{plan.server.name} aggregates; {workers} train on their own data.",
        f"{training.rounds} rounds of synchronous SGD, {training.batch_size} examples"
        f" a worker and round, in {training.precision}, all workers every round.",
        f"The task is {plan.task.class_} in {plan.task.file}"
        f" with {dict(plan.task.options)}.",
        "",
        *_attestation(plan),
        "",
        *_admission(plan),
        "The host sees sizes, times, round numbers and aggregate metrics.",
        "A worker sees every round's model, and what it can compute from two of them:"
        " of only two workers, each learns the other's mean gradient. It never sees"
        " another's records.",
        "The model is sealed to:",
        *(f"  {recipient}" for recipient in plan.model.recipients),
    ]


def _predecessor(plan: Plan) -> list[str]:
    before = plan.predecessor
    if before is None:
        return []
    return [
        f"It takes over the run of plan {before.plan}",
        f"after round {before.round}, from state {before.state}.",
    ]


def _attestation(plan: Plan) -> list[str]:
    policies = [("server", plan.policy.server)]
    if plan.policy.worker is not None:
        policies.append(("worker", plan.policy.worker))
    by_identity = [p.name for p in plan.workers if p.admit == "identity"]
    lines = [
        "Every node must prove by attestation that it runs exactly:"
        if not by_identity
        else "Every node but those named below must prove by attestation that it runs"
        " exactly:"
    ]
    for role, policy in policies:
        lines += [f"  {role}: {line}" for line in references_in_words(policy)]
    lines += [
        f"on {root_in_words(plan.policy.server)}.",
        *_platforms(plan),
        "`cloister policy explain PLAN` says all that a policy asks for.",
    ]
    return lines + (_identity(plan, by_identity) if by_identity else [])


def _platforms(plan: Plan) -> list[str]:
    lines: list[str] = []
    for party in plan.party:
        if party.admit == "attested":
            listed = plan.policy_of(party.name).platforms
            if isinstance(listed, tuple):
                lines += [f"  {party.name} on the platform {it}" for it in listed]
    if lines:
        lines.insert(0, "Nodes may run on these machines alone:")
    if plan.unpinned:
        names = ", ".join(party.name for party in plan.unpinned)
        lines += [
            f"CAUTION: the plan does not say on which machines {names} may run. Whoever"
            " has a platform of",
            "that kind, and reaches their custodians, can run the same code in their"
            " place.",
        ]
    return lines


def _identity(plan: Plan, names: list[str]) -> list[str]:
    tolerated = plan.rounds.tolerated_colluders
    return [
        "",
        f"CAUTION: {', '.join(names)} prove only whose they are, by their party's key.",
        "What they run is not known: they may send anything, and their owners may look"
        " at everything that they receive.",
        f"At most {tolerated} of the parties may pool what they see: the sum of the"
        " others' updates is all that they learn then."
        if tolerated
        else "The plan tolerates no colluder (0): it trusts every owner not to look.",
    ]


def _admission(plan: Plan) -> list[str]:
    admission = plan.admission
    return [
        f"A worker proves itself anew after {admission.life_seconds / 3600:g} hours or"
        f" {admission.rounds} rounds."
    ]
