"""What boots next, chosen among what is there already."""

from typing import Any, NamedTuple

from oci2boot.errors import TargetError
from oci2boot.sysroot.bootdir_plan import plan_default
from oci2boot.sysroot.bootdir_steps import BootPlan
from oci2boot.workflows.machine.model import Deployment
from oci2boot.workflows.machine.place import Place, open_machine


class RolledBack(NamedTuple):
    chosen: Deployment
    boot: BootPlan

    def to_json(self) -> dict[str, Any]:
        named = "digest" if "digest" in self.chosen.facts else "root_hash"
        return {"id": self.chosen.id, named: self.chosen.id, "boot": self.boot.to_json()}


def rollback(place: Place, wanted: str | None = None, *, dry_run: bool = False) -> RolledBack:
    """Let another deployment boot next: the one named, or what runs if another is staged, or the one before."""
    with open_machine(place, writing=not dry_run) as machine:
        with machine.state() as state:
            chosen = state.find(wanted) if wanted else state.previous()
            if not chosen.whole:
                raise TargetError(f"the rootfs image of {chosen.id} is gone", hint="`oci2boot fsck` says more")
            if not chosen.entries:
                raise TargetError(
                    f"no boot entry starts {chosen.id}", hint="`oci2boot switch` installs its image again"
                )
            plan = plan_default(state.directory, chosen.entries[0].id)
        if not dry_run:
            machine.change_boot(plan)
    return RolledBack(chosen, plan)
