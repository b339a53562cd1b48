#!/bin/bash
# dracut module, for /usr/lib/dracut/modules.d/90oci2boot/. The image also has setup-root, grow and both witnesses in
# /usr/lib/oci2boot/, and oci2boot-setup-root.service in /usr/lib/systemd/system/. Installed means included: it has no
# off switch.

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
    inst_multiple mount umount mkdir cat ln /usr/lib/oci2boot/{setup-root,grow,witness-sha256,witness-sha512}
    inst_multiple -o chroot dmesg insmod modprobe
    inst_multiple -o /{usr/lib,etc}/composefs/setup-root-conf.toml /{usr/lib,etc}/ostree/prepare-root.conf \
        /usr/lib/composefs/rootfs.digest
    inst_simple "$systemdsystemunitdir/oci2boot-setup-root.service"
    mkdir -p "$initdir$systemdsystemunitdir/initrd-root-fs.target.requires"
    ln -sf ../oci2boot-setup-root.service "$initdir$systemdsystemunitdir/initrd-root-fs.target.requires/"
}
