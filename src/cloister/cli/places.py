"""Where a node or a custodian finds its files: its plan and its own file, read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cloister.errors import ConfigError
from cloister.plan.custodian_site import CustodianSite, read_custodian_site
from cloister.plan.digest import digest_bytes
from cloister.plan.plan import Party, Plan, Role, plan_hash, read_plan
from cloister.plan.site import Address, Addresses, Site, parse_address, read_site

CUSTODIAN_FILE = "custodian.toml"
# In a run's directory.
AUDIT_NAME = "audit.jsonl"
MODEL_NAME = "model.safetensors.age"
GRAPH_NAME = "graph.pt2.age"
STATE_NAME = "state"
# Of a plan's hash, in the name of what was kept under it.
_HASH_DIGITS = 16
_MIRROR = ".mirror"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a node finds its files.

    Attributes:
        plan: The plan.
        plan_path: Its file; source files and consents lie beside it.
        site: The node's site.
        site_directory: What the site's paths are relative to.
    """

    plan: Plan
    plan_path: Path
    site: Site
    site_directory: Path

    @property
    def addresses(self) -> Addresses:
        """The server's ports; `read_place` checked that the site names them."""
        if self.site.addresses is None:
            raise RuntimeError("a recipient never meets the server")
        return self.site.addresses

    def at_site(self, path: str) -> Path:
        """Returns a path of the site file, resolved."""
        return (self.site_directory / path).resolve()

    @property
    def plan_directory(self) -> Path:
        """Where the plan lies."""
        return self.plan_path.parent

    @property
    def party(self) -> Party:
        """The node's party, as the plan has it."""
        return self.plan.find_party(self.site.party)

    @property
    def run_directory(self) -> Path:
        """Where this run's logs and artefacts go."""
        return self.at_site(self.site.paths.runs) / self._run

    @property
    def log_path(self) -> Path:
        """The node's log."""
        return self.run_directory / "logs" / f"{self.site.party}.jsonl"

    @property
    def model_path(self) -> Path:
        """Where the sealed model goes."""
        return self.run_directory / MODEL_NAME

    @property
    def graph_path(self) -> Path:
        """Where the sealed graph goes, if the plan has a worker seal one."""
        return self.run_directory / GRAPH_NAME

    @property
    def audit_path(self) -> Path:
        """The run's audit log, which its server writes."""
        return self.run_directory / AUDIT_NAME

    @property
    def state_directory(self) -> Path:
        """Where the node keeps its sealed state of this run."""
        own = self.site.mirror.directory
        if own is None:
            return self.run_directory / STATE_NAME
        return self.at_site(own) / self._run

    @property
    def mirror_path(self) -> Path:
        """The node's sealed state under this plan."""
        return self._mirror_under(plan_hash(self.plan))

    @property
    def former_mirror_path(self) -> Path | None:
        """The one under the plan that this plan amends; None if it amends none."""
        before = self.plan.predecessor
        return None if before is None else self._mirror_under(digest_bytes(before.plan))

    @property
    def every_mirror_path(self) -> Sequence[Path]:
        """What lies there of the node's state in this run, under whatever plan."""
        return sorted(self.state_directory.glob(f"{self.site.party}.*{_MIRROR}*"))

    @property
    def lock_path(self) -> Path:
        """Whose holder alone is this party's node in this run, on this machine."""
        return self.state_directory / f"{self.site.party}.lock"

    @property
    def _run(self) -> str:
        header = self.plan.plan
        # Neither may hold a dot, so no two runs share a directory.
        return f"{header.name}.{header.run}"

    def _mirror_under(self, digest: bytes) -> Path:
        named = f"{self.site.party}.{digest.hex()[:_HASH_DIGITS]}{_MIRROR}"
        return self.state_directory / named


@dataclass(frozen=True, slots=True, kw_only=True)
class CustodianPlace:
    """Where a custodian finds its files.

    Attributes:
        site: The custodian's file.
        directory: What its paths are relative to.
    """

    site: CustodianSite
    directory: Path

    def at(self, path: str) -> Path:
        """Returns a path of the custodian's file, resolved."""
        return (self.directory / path).resolve()

    @property
    def party(self) -> str:
        """Whose custodian it is."""
        return self.site.party

    @property
    def address(self) -> Address:
        """Where it listens."""
        return parse_address(self.site.address)

    @property
    def key_path(self) -> Path:
        """The party's key."""
        return self.at(self.site.key)

    @property
    def register_path(self) -> Path:
        """The custodian's register."""
        return self.at(self.site.database)

    @property
    def keyring_path(self) -> Path:
        """What seals the keys in the register."""
        return self.at(self.site.keyring.file)

    @property
    def log_path(self) -> Path:
        """The custodian's log."""
        return self.at(self.site.logs) / f"{self.party}-custodian.jsonl"


def default_site_path(plan_path: Path, party: str) -> Path:
    """Returns where `cloister init` puts a party's site file."""
    return plan_path.parent / "parties" / party / "site.toml"


def default_custodian_path(plan_path: Path, party: str) -> Path:
    """Returns where `cloister init` puts a custodian's file."""
    return plan_path.parent / "custodians" / party / CUSTODIAN_FILE


def custodians_beside(plan_path: Path) -> Sequence[Path]:
    """Returns the files of all custodians beside a plan, by name of the directory."""
    return sorted((plan_path.parent / "custodians").glob(f"*/{CUSTODIAN_FILE}"))


def read_place(
    plan_path: Path, *, role: Role, party: str | None, site_path: Path | None
) -> Place:
    """Reads the plan and the site of one node.

    Args:
        plan_path: The plan file.
        role: The node's role.
        party: Its party; None for the server, which the plan names alone.
        site_path: Its site file; None for where `init` puts it.

    Raises:
        ConfigError: If a file does not fit, the party has another role, or the site
            lacks what that role needs.
    """
    plan = read_plan(plan_path)
    found = plan.find_party(party) if party else plan.server
    if found.role != role:
        raise ConfigError(
            f"party {found.name!r} is not a {role}",
            code="role-differs",
            expected=", ".join(p.name for p in plan.party if p.role == role),
            got=f"{found.name}, a {found.role}",
        )
    path = site_path or default_site_path(plan_path, found.name)
    site = read_site(path)
    if site.party != found.name:
        raise ConfigError(
            f"the site file {path} is another party's",
            code="site-foreign",
            expected=found.name,
            got=site.party,
        )
    _check_addresses(site, role=role)
    return Place(
        plan=plan,
        plan_path=plan_path.resolve(),
        site=site,
        site_directory=path.resolve().parent,
    )


def _check_addresses(site: Site, *, role: Role) -> None:
    """Refuses a site without the server's ports, where they are needed; or with them.

    A recipient meets its custodian and nobody else.
    """
    needed = role != "recipient"
    if needed != (site.addresses is not None):
        raise ConfigError(
            "[addresses] in the site file does not fit the node's role",
            code="addresses-missing" if needed else "addresses-unused",
            expected=f"the server's ports for a {role}"
            if needed
            else f"no [addresses] for a {role}",
            got="none" if needed else "some",
            remedy="Correct [addresses] in site.toml.",
        )


def read_custodian_place(path: Path) -> CustodianPlace:
    """Reads a custodian's file.

    Args:
        path: The file, or the directory it lies in.

    Raises:
        ConfigError: If the file does not fit.
    """
    file = path / CUSTODIAN_FILE if path.is_dir() else path
    return CustodianPlace(
        site=read_custodian_site(file), directory=file.resolve().parent
    )
