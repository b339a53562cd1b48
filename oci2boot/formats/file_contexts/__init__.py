"""SELinux file contexts: which label a path gets. selinux_file_context(5), as libselinux and composefs-rs read it."""
