"""Arguments of the kernel that are like ours and are none."""

# The digests in composefs-rs's own tests of its kernel arguments (crates/composefs-boot, cmdline.rs).
SHA256 = "8b7df143d91c716ecfa5fc1730022f6b421b05cedee8fd52b1fc65a96030ad52"
REFUSED = [
    "composefs",
    "composefs=",
    "composefs=?",
    f"Composefs={SHA256}",
    f"composefs={SHA256.upper()}",
    f'"composefs={SHA256}"',
    f'composefs="{SHA256}"',
    f"composefs={SHA256[1:]}",
    f"composefs={SHA256}0",
    f"composefs={SHA256}?",
    f"composefs=v1-sha256-12:{SHA256}",
    f"composefs.digest={SHA256}",
    f"composefs.digest=v3-sha256-12:{SHA256}",
    f"composefs.digest=v1-sha256-16:{SHA256}",
    f"composefs.digest=v1-sha512-12:{SHA256}",
    f"composefs.digest=v1-?sha256-12:{SHA256}",
    "composefs.digest",
    "composefs.other=1",
]
