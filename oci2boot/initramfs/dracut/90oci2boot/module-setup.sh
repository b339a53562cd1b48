#!/bin/bash
# dracut module, for /usr/lib/dracut/modules.d/90oci2boot/. The image also has setup-root, grow, restart and both
# witnesses in /usr/lib/oci2boot/, and oci2boot-setup-root.service, oci2boot-restart.service and oci2boot-restart.target
# in /usr/lib/systemd/system/. Installed means included: it has no off switch.

check() {
    require_binaries mount umount mkdir cat ln || return 1
    return 0
}

depends() {
    echo systemd-initrd fs-lib
}

installkernel() {
    hostonly='' instmods erofs overlay loop ext4 virtio_blk
}

# shellcheck disable=SC2154 # dracut sets initdir and systemdsystemunitdir
install() {
    inst_multiple mount umount mkdir cat ln /usr/lib/oci2boot/{setup-root,grow,restart,witness-sha256,witness-sha512}
    inst_multiple -o chroot dmesg insmod modprobe
    inst_multiple -o /{usr/lib,etc}/composefs/setup-root-conf.toml /{usr/lib,etc}/ostree/prepare-root.conf \
        /usr/lib/composefs/rootfs.digest
    inst_simple "$systemdsystemunitdir/oci2boot-setup-root.service"
    mkdir -p "$initdir$systemdsystemunitdir/initrd-root-fs.target.requires"
    ln -sf ../oci2boot-setup-root.service "$initdir$systemdsystemunitdir/initrd-root-fs.target.requires/"
    # Where the boot fails, the machine restarts, and gives no shell.
    local name own=$systemdsystemunitdir/oci2boot-restart units=/etc/systemd/system
    for name in {emergency,rescue,dracut-emergency,debug-shell}.service {emergency,rescue}.target; do
        inst_simple "$own.${name##*.}" "$units/$name"
    done
    for name in sysroot.mount initrd{-root-device,-root-fs,-fs,}.target; do
        mkdir -p "$initdir$units/$name.d"
        printf '[Unit]\nOnFailure=emergency.target\nOnFailureJobMode=replace-irreversibly\n' \
            >"$initdir$units/$name.d/zz-oci2boot.conf"
    done
}
