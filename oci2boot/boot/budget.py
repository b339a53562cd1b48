"""How much the boot loader has to load, part by part, and what limits there are: for every flow the same."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

from oci2boot.boot.initrd import GOAL
from oci2boot.errors import LimitError
from oci2boot.formats import pe

BUDGETS: Final = (64 << 20, 32 << 20)
"""Of some devices, for all that the firmware loads."""
_SECTIONS: Final[Mapping[str, tuple[bytes, ...]]] = {
    "kernel": (b".linux",),
    "cmdline": (b".cmdline",),
    "devicetree": (b".dtb", b".dtbauto"),
    "initramfs": (b".initrd", b".ucode"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Bytes."""

    kernel: int
    cmdline: int
    devicetree: int
    initramfs: int
    """With microcode and glue."""
    other: int = 0
    """In and beside a UKI: its stub, what describes it, its addons."""

    @property
    def total(self) -> int:
        return self.kernel + self.cmdline + self.devicetree + self.initramfs + self.other

    def to_json(self) -> dict[str, int]:
        return {**asdict(self), "total": self.total}

    def __str__(self) -> str:
        goal = f"{'more' if self.initramfs > GOAL else 'not more'} than the goal of {GOAL >> 20}"
        words = [f"kernel {self.kernel / 2**20:.1f}"]
        if self.devicetree:
            words.append(f"device tree {self.devicetree / 2**20:.2f}")
        words.append(f"initramfs {self.initramfs / 2**20:.1f} ({goal})")
        if self.other:
            words.append(f"stub and the like {self.other / 2**20:.1f}")
        return f"MiB: {', '.join(words)}, all {self.total / 2**20:.1f}; command line {self.cmdline} bytes"


def sizes_of_uki(uki: bytes, beside: int = 0) -> Sizes:
    """Return what a UKI is made of; `beside` are the bytes of its addons."""
    sections = pe.parse(uki).sections
    found = {
        part: sum(section.virtual_size for section in sections if section.name in names)
        for part, names in _SECTIONS.items()
    }
    return Sizes(**found, other=max(len(uki) - sum(found.values()), 0) + beside)


def check_budget(sizes: Sizes, limit: int | None) -> tuple[str, ...]:
    """Return what is to be said of a size; `LimitError` where it is beyond what the user allows."""
    if limit is not None and sizes.total > limit:
        raise LimitError(
            f"what the boot loader loads has {sizes.total} bytes, {limit} are allowed ({sizes})",
            hint="build a smaller initramfs in the image, for this kind of machine only",
        )
    budget = next((budget for budget in BUDGETS if sizes.total > budget), None)
    if budget is None:
        return ()
    return (f"what the boot loader loads is larger than the {budget >> 20} MiB that some firmware takes ({sizes})",)
