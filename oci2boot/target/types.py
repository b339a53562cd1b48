"""What partitions are for, as their types say it. UEFI 2.10, 5.3.3; UAPI.2, Discoverable Partitions Specification."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from oci2boot.errors import TargetError

ESP_TYPE: Final = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
LINUX_TYPE: Final = "0fc63daf-8483-4772-8e79-3d69d8477de4"
STATE_LABEL: Final = "oci2boot-state"
"""Name of the partition, and of its file system, that a machine with its root under dm-verity writes to."""
READ_ONLY: Final = 1 << 60
"""The attribute of a partition that is mounted without being written."""


@dataclass(frozen=True, slots=True)
class RootTypes:
    """Of one architecture: the root file system, its hash tree, the signature of its root hash."""

    root: str
    verity: str
    signature: str


TYPES: Final[Mapping[str, RootTypes]] = MappingProxyType(
    {
        "386": RootTypes(
            "44479540-f297-41b2-9af7-d131d5f0458a",
            "d13c5d3b-b5d1-422a-b29f-9454fdc89d76",
            "5996fc05-109c-48de-808b-23fa0830b676",
        ),
        "amd64": RootTypes(
            "4f68bce3-e8cd-4db1-96e7-fbcaf984b709",
            "2c7357ed-ebd2-46d9-aec1-23d437ec2bf5",
            "41092b05-9fc8-4523-994f-2def0408b176",
        ),
        "arm": RootTypes(
            "69dad710-2ce4-4e3c-b16c-21a1d49abed3",
            "7386cdf2-203c-47a9-a498-f2ecce45a2d6",
            "42b0455f-eb11-491d-98d3-56145ba9d037",
        ),
        "arm64": RootTypes(
            "b921b045-1df0-41c3-af44-4c6f280d3fae",
            "df3300ce-d69f-4c92-978c-9bfb0f38d820",
            "6db69de6-29f4-4758-a7a5-962190f00ce3",
        ),
        "loong64": RootTypes(
            "77055800-792c-4f94-b39a-98c91b762bb6",
            "f3393b22-e9af-4613-a948-9d3bfbd0c535",
            "5afb67eb-ecc8-4f85-ae8e-ac1e7c50e7d0",
        ),
        "ppc64le": RootTypes(
            "c31c45e6-3f39-412e-80fb-4809c4980599",
            "906bd944-4589-4aae-a4e4-dd983917446a",
            "d4a236e7-e873-4c07-bf1d-bf6cf7f1c3c6",
        ),
        "riscv64": RootTypes(
            "72ec70a6-cf74-40e6-bd49-4bda08e8f224",
            "b6ed5582-440b-4209-b8da-5ff7c419ea3d",
            "efe0f087-ea8d-4469-821a-4c2a96a8386a",
        ),
        "s390x": RootTypes(
            "5eead9a9-fe09-4a1e-a1d7-520d00531306",
            "b325bfbe-c7be-4ab8-8357-139e652d2f6b",
            "c80187a5-73a3-491a-901a-017c3fa953e9",
        ),
    }
)
"""By the architecture names of OCI image configurations."""
ROOT_TYPES: Final = frozenset(types.root for types in TYPES.values())
VERITY_TYPES: Final = frozenset(types.verity for types in TYPES.values())
SIGNATURE_TYPES: Final = frozenset(types.signature for types in TYPES.values())


def types_of(architecture: str) -> RootTypes:
    found = TYPES.get(architecture)
    if found is None:
        raise TargetError(
            f"there is no root partition type for the architecture {architecture!r}",
            hint=f"known are {', '.join(TYPES)}",
        )
    return found
