"""The partition table of a plan, onto a disk."""

from oci2boot.formats.gpt import Partition as GptPartition
from oci2boot.formats.gpt_writer import pack_gpt
from oci2boot.target.plan import DiskPlan
from oci2boot.target.volume import pwrite_all


def write_table(plan: DiskPlan, fd: int) -> None:
    """Write the backup, then the primary one: it is the one that a firmware looks at first."""
    partitions = [
        GptPartition(
            number=part.number,
            type=part.type,
            guid=part.guid,
            start=part.start,
            size=part.size,
            attributes=part.attributes,
            name=part.label,
        )
        for part in plan.partitions
    ]
    head, tail = pack_gpt(plan.guid, partitions, plan.size, plan.sector)
    pwrite_all(fd, tail, plan.size - len(tail))
    pwrite_all(fd, head, 0)
