"""Options of `--initrd dracut`, called as dracut's own."""

from typing import Annotated

import typer

Install = Annotated[
    list[str] | None,
    typer.Option(
        "--dracut-install",
        metavar="PATHS",
        help='files of the image for the initramfs of --initrd dracut to have: "/a /b"; may be repeated',
        show_default=False,
    ),
]
AddDrivers = Annotated[
    list[str] | None,
    typer.Option(
        "--dracut-add-driver",
        metavar="NAMES",
        help="kernel modules for it to have; may be repeated",
        show_default=False,
    ),
]
ForceDrivers = Annotated[
    list[str] | None,
    typer.Option(
        "--dracut-force-driver",
        metavar="NAMES",
        help="kernel modules for it to have and to load first; may be repeated",
        show_default=False,
    ),
]
Modules = Annotated[
    list[str] | None,
    typer.Option(
        "--dracut-module", metavar="NAMES", help="dracut modules for it to have; may be repeated", show_default=False
    ),
]
FileSystems = Annotated[
    list[str] | None,
    typer.Option(
        "--dracut-filesystem",
        metavar="NAMES",
        help="the file systems that it has, and no others; may be repeated",
        show_default=False,
    ),
]
