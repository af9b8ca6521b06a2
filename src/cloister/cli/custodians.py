"""Builds a custodian from its file: its party's key, its register, how it judges."""

from __future__ import annotations

from datetime import timedelta

from structlog.typing import FilteringBoundLogger

from cloister.cli.host_time import utc_now
from cloister.cli.passphrases import ask_passphrase, read_passphrase
from cloister.cli.places import CustodianPlace
from cloister.cli.trust import collateral_source, read_root, root_name_in
from cloister.custody.custodian import Custodian
from cloister.custody.key_store import RegisterKeys
from cloister.custody.keyring import IdentityFile, Lock
from cloister.custody.party_key import read_party_key
from cloister.custody.register import Register
from cloister.errors import ConfigError
from cloister.plan.plan import Plan, PlanHash, parse_plan, plan_hash
from cloister.plan.policy_file import read_policy
from cloister.ratls.appraiser import Appraiser
from cloister.ratls.clock import FlooredClock


def open_register(place: CustodianPlace) -> Register:
    """Returns a custodian's register; the caller closes it.

    Raises:
        ConfigError: If it is another party's.
        StorageError: If it is missing, damaged, or cannot be written.
    """
    register = Register.open(place.register_path)
    if register.party != place.party:
        register.close()
        raise ConfigError(
            f"the database {place.register_path} is another party's",
            code="custodian-foreign",
            expected=place.party,
            got=register.party,
            remedy="party and database in custodian.toml must be of one custodian.",
        )
    return register


def open_keys(place: CustodianPlace, register: Register) -> RegisterKeys:
    """Returns a custodian's keys; may ask a person for the passphrase.

    Raises:
        ConfigError: If what is to open the keyring does not, or is not there.
        StorageError: If the keyring is not the register's, or is damaged.
    """
    return RegisterKeys.open(register, path=place.keyring_path, lock=_lock_of(place))


def _lock_of(place: CustodianPlace) -> Lock:
    section = place.site.keyring
    if section.identity is not None:
        return IdentityFile(path=place.at(section.identity))
    if section.passphrase_file is not None:
        return read_passphrase(place.at(section.passphrase_file))
    return ask_passphrase(place.keyring_path)


class UnpinnedPlans:
    """Warns of plans that leave open on which machines the party's node runs.

    Once for each plan: it is looked at whenever a node comes.

    Args:
        log: Gets the warnings.
    """

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        self._told: set[PlanHash] = set()

    def __call__(self, plan: Plan) -> None:
        """Warns of a plan."""
        digest = plan_hash(plan)
        if digest in self._told:
            return
        self._told.add(digest)
        self._log.warning(
            "platforms-not-pinned",
            run=plan.run_id,
            plan=digest.hex()[:16],
            reason="whoever has a platform of the kind that the plan accepts, and"
            " reaches this custodian, can take the place of this party's node;"
            " list the party's platforms in the plan, or in a policy of its own",
        )


def look_at_plans(custodian: Custodian) -> None:
    """Warns of every plan in force that leaves the party's machines open.

    Raises:
        StorageError: If the register cannot be read.
    """
    for row in custodian.register.plans():
        if row.state == "active":
            custodian.look_at_platforms(parse_plan(row.plan))


def build_custodian(
    place: CustodianPlace, register: Register, *, log: FilteringBoundLogger
) -> Custodian:
    """Returns a custodian that decides by its register.

    Raises:
        CloisterError: If any part is missing or cannot be used.
    """
    section, clock = place.site.collateral, FlooredClock(utc_now)
    root = read_root(section, wanted=_root_name(place, register), at=place.at)
    policy = place.site.policy
    return Custodian(
        party=place.party,
        key=read_party_key(place.key_path),
        register=register,
        keys=open_keys(place, register),
        appraiser=Appraiser(
            root=root,
            collateral=collateral_source(section, root, at=place.at, clock=clock),
            clock=clock,
        ),
        local_policy=read_policy(place.at(policy), root=root.name) if policy else None,
        warrant_life=timedelta(hours=place.site.warrant_hours),
        on_unpinned=UnpinnedPlans(log),
    )


def _root_name(place: CustodianPlace, register: Register) -> str:
    """Returns how plans name the custodian's root.

    The certificate does not say whether it is a simulation's or Intel's for machines
    that are not for sale. So the plans that were signed say it.
    """
    found = root_name_in(place.site.collateral, place.at)
    digest = found.rpartition(":")[2]
    for row in register.plans():
        name = parse_plan(row.plan).policy.server.root
        if name.rpartition(":")[2] == digest:
            return name
    return found
