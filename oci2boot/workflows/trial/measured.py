"""What the TPM of a machine holds, compared with what its UKI gives, and what lies beside it."""

from oci2boot.boot import pcr
from oci2boot.boot.beside import predict_pcr_12
from oci2boot.errors import FormatError
from oci2boot.workflows.trial.report import Booted, Case
from oci2boot.workflows.verify.esp import EspFiles


def compare(
    booted: Booted,
    esp: EspFiles,
    uki: str,
    *,
    secure_boot: bool,
    demanded: bool,
) -> Case:
    """Say whether the TPM holds what the UKI at this path, its addons and its credentials give.

    Where there is nothing to compare the case is skipped, and failed if it was `demanded`.
    """

    def verdict(evidence: str, *, ok: bool, asked: bool = True) -> Case:
        return Case("measured", ok, evidence, booted.seconds, skipped=not asked and not demanded)

    found = booted.pcrs
    if not booted.report:
        return verdict("the machine sent no report: that takes systemd 256", ok=False, asked=False)
    if "11" not in found or "12" not in found:
        return verdict("the machine shows no TPM: its kernel has no driver for it", ok=False, asked=False)
    try:
        expected = _phases(esp[uki]())
    except FormatError as error:
        return verdict(error.message, ok=False, asked=False)
    if found["11"] not in expected:
        return verdict(f"PCR 11 is {found['11']}; this UKI gives {' or '.join(expected)}", ok=False)
    evidence = f"PCR 11 is {found['11']}, which this UKI gives {expected[found['11']]}"
    try:
        added = predict_pcr_12(esp, uki, secure_boot=secure_boot).hex()
    except FormatError as error:
        return verdict(f"{evidence}; {error.message}", ok=True)
    if found["12"] != added:
        return verdict(f"PCR 12 is {found['12']}; what lies beside the UKI gives {added}", ok=False)
    return verdict(f"{evidence}; PCR 12 is {added}, which what lies beside it gives", ok=True)


def _phases(uki: bytes) -> dict[str, str]:
    """Return the PCR 11 that a machine can have once multi-user.target is reached, and after which phases.

    All of them have passed by then; those of the initramfs, or of all, count where it has the units and TPM support.
    """
    value = pcr.uki_pcr(uki)
    early, late = pcr.PHASES[:2], pcr.PHASES[2:]
    ways = ((), early, late, (*early, *late))
    return {
        pcr.after(value, phases).hex(): f"after {':'.join(phases)}" if phases else "with no phase measured by the image"
        for phases in ways
    }
