"""A plan in words, for people who must decide whether to sign it."""

from __future__ import annotations

from cloister.attestation.policy_words import references_in_words, root_in_words
from cloister.cli.training_words import training_in_words
from cloister.plan.plan import Party, Plan, plan_hash


def describe(plan: Plan) -> list[str]:
    """Returns a plan in words, line by line."""
    workers = ", ".join(p.name for p in plan.workers)
    return [
        f"Run {plan.run_id}, plan {plan_hash(plan).hex()}",
        *_predecessor(plan),
        "",
        f"{plan.server.name} aggregates; {workers} train on their own data.",
        *_attested_recipients(plan),
        *training_in_words(plan),
        "",
        *_attestation(plan),
        "",
        *_admission(plan),
        *_keys(plan),
        "",
        *_kept(plan),
        "The host sees sizes, times, round numbers and aggregate metrics.",
        *_records(plan),
        *_evaluated(plan),
        *_predicted(plan),
        *_seen_by_workers(plan),
        *_sealed_to(plan),
    ]


def _attested_recipients(plan: Plan) -> list[str]:
    names = [p.name for p in plan.party if p.role == "recipient"]
    return [f"{', '.join(names)} may use the model in attested nodes."] if names else []


def _records(plan: Plan) -> list[str]:
    """Says whose records a host can read."""
    having = [party for party in plan.party if party.data is not None]
    sealed = ", ".join(it.name for it in having if it.data_key is not None)
    lying_open = ", ".join(it.name for it in having if it.data_key is None)
    lines: list[str] = []
    if sealed:
        lines.append(
            f"The records of {sealed} are sealed one by one: a host sees how many there"
            " are of which"
        )
        lines.append("shape, and in which order they are read.")
    if lying_open:
        lines.append(
            f"The records of {lying_open} are not sealed: whoever has the machine can"
            " read them."
        )
    return lines


def _evaluated(plan: Plan) -> list[str]:
    """Says what a recipient's host learns: whoever signs may know the records."""
    lines: list[str] = []
    for party in plan.party:
        if party.role == "recipient" and party.data is not None:
            lines += [
                f"The node of {party.name} evaluates the model on the records"
                f" {party.data}:",
                "its metrics over them appear in its log on its host.",
            ]
    return lines


def _predicted(plan: Plan) -> list[str]:
    """Says what the model is used on, and who reads the answers."""
    lines: list[str] = []
    for party in plan.party:
        if party.predictions_to is not None:
            lines += [
                f"The node of {party.name} predicts on whatever {party.name} sealed"
                " under its data key; what it predicts is sealed to",
                f"  {party.predictions_to}",
            ]
    return lines


def _seen_by_workers(plan: Plan) -> list[str]:
    fewest = 2  # and then what is not one's own is the other's
    lines = [
        "A worker sees the models of its rounds, and what it can compute from two of"
        " them: of the mean of all updates, what is not its own. It never sees"
        " another's records."
    ]
    if plan.least_contributors == fewest:
        update = "mean gradient" if plan.training.mode == "sync-sgd" else "update"
        lines.append(
            f"A round may have only two contributors: each learns the other's {update}."
        )
    return lines


def _sealed_to(plan: Plan) -> list[str]:
    lines = ["The model is sealed to:"]
    lines += [
        f"  {recipient}: whoever has the identity opens it anywhere"
        for recipient in plan.model.recipients
    ]
    lines += [
        f"  {party.recipient}: the custodian of {party.name} keeps the identity"
        for party in plan.party
        if party.recipient is not None
    ]
    if plan.model.graph is not None:
        lines.append(
            f"The node of {plan.model.graph} seals the network with the model's values"
            " to the same."
        )
    return lines


def _keys(plan: Plan) -> list[str]:
    """Says which custodian releases which key, and to what code."""
    lines: list[str] = []
    for party in plan.party:
        if party.data_key is not None:
            lines.append(
                f"{party.name} keeps the key of its data, and releases it to its own"
                f" {party.role} alone{_running(party)}."
            )
        if party.recipient is not None:
            lines.append(
                f"{party.name} keeps an identity that opens the model, and releases it"
                f" to its own recipient alone{_running(party)}."
            )
    if plan.shareholders:
        holders = ", ".join(party.name for party in plan.shareholders)
        lines += [
            f"{holders} keep a share each of the keys that seal the nodes' state, and"
            " release it to every attested node that trains or aggregates.",
            "No one of them alone can open the state; all of them together can.",
        ]
    return ["", "Custodians keep keys:", *lines] if lines else []


def _kept(plan: Plan) -> list[str]:
    """Says what a host keeps of a run, and what a crash costs."""
    every = plan.rounds.mirror_every
    when = "every round" if every == 1 else f"every {every} rounds"
    lost = "the round it is in" if every == 1 else f"{every} rounds at most"
    return [
        f"The server keeps its state sealed on its host's disk after {when}, and goes"
        " on from there:",
        f"what kills it costs {lost}, which are trained again.",
    ]


def _running(party: Party) -> str:
    if party.admit == "attested":
        return ", which must run exactly what is listed above"
    return ", whatever that runs"


def _predecessor(plan: Plan) -> list[str]:
    before = plan.predecessor
    if before is None:
        return []
    return [
        f"It takes over the run of plan {before.plan}",
        f"after round {before.round}, from state {before.state}.",
    ]


def _attestation(plan: Plan) -> list[str]:
    policies = {
        role: policy
        for role, policy in (
            ("server", plan.policy.server),
            ("worker", plan.policy.worker),
            ("recipient", plan.policy.recipient),
        )
        if policy is not None
    }
    by_identity = [p.name for p in plan.workers if p.admit == "identity"]
    lines = [
        "Every node must prove by attestation that it runs exactly:"
        if not by_identity
        else "Every node but those named below must prove by attestation that it runs"
        " exactly:"
    ]
    for role, policy in policies.items():
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
