"""What the structure owes the reader: the direction of imports, pure folders, no circles."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent / "oci2boot"

FLOOR = {"formats", "digest", "errors"}
MIDDLE = {"boot", "rootfs", "tree", *FLOOR}
ADAPTERS = {"oci", "store", "target", "sysroot", "system", "initramfs", *MIDDLE}
DESK = {"workflows/progress", "workflows/options", "workflows/requests", "workflows/images", *ADAPTERS}

MAY_IMPORT = {
    "errors": set(),
    "digest": {"errors"},
    "formats": FLOOR,
    "system": {"system", "errors"},
    "tree": {"tree", *FLOOR},
    "rootfs": {"rootfs", "tree", *FLOOR},
    "boot": MIDDLE,
    "oci": {"oci", "tree", "system", *FLOOR},
    "store": {"store", "rootfs", "tree", "system", *FLOOR},
    "target": {"target", "tree", "system", *FLOOR},
    "sysroot": {"sysroot", "system", *MIDDLE},
    "initramfs": {"initramfs"},
    "workflows/progress": {"errors"},
    "workflows/options": {"errors"},
    "workflows/images": {"workflows/progress", *ADAPTERS},
    "workflows/requests": {"workflows/options", "workflows/images", "workflows/progress", *ADAPTERS},
    "workflows/keys": {"workflows/keys", *DESK},
    "workflows/make": {"workflows/make", "workflows/keys", *DESK},
    "workflows/install": {"workflows/install", "workflows/make", "workflows/keys", *DESK},
    "workflows/verify": {"workflows/verify", "workflows/make", "workflows/keys", *DESK},
    "workflows/machine": {
        *("workflows/machine", "workflows/verify", "workflows/install", "workflows/make", "workflows/keys"),
        *DESK,
    },
    "workflows/trial": {
        *("workflows/trial", "workflows/verify", "workflows/install", "workflows/make", "workflows/keys"),
        *DESK,
    },
    "cli": {
        *("cli", "workflows/trial", "workflows/machine", "workflows/verify", "workflows/install", "workflows/make"),
        *("workflows/keys", "workflows/progress", "workflows/options", "workflows/requests", "workflows/images"),
        *("errors", "digest", "oci", "store", "sysroot", "rootfs"),
    },
}
"""An area (a folder or module of the package, a room or module of the workflows) and the areas that it may import."""


def area(parts: tuple[str, ...]) -> str:
    return "/".join(parts[:2] if parts[0] == "workflows" else parts[:1])


def imported(path: Path) -> Iterator[tuple[str, ...]]:
    """Yield the modules of the package that a file imports, as parts of their names."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.ImportFrom(module=str(module)) if module.startswith("oci2boot"):
                for name in node.names:
                    full = f"{module}.{name.name}"
                    yield tuple((full if is_module(full) else module).split(".")[1:])
            case ast.Import():
                yield from (tuple(name.name.split(".")[1:]) for name in node.names if name.name.startswith("oci2boot."))


def is_module(name: str) -> bool:
    path = ROOT.parent.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def test_imports_follow_the_table() -> None:
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        own = path.relative_to(ROOT).with_suffix("").parts
        if own[-1] == "__init__":
            continue
        wrong += [
            f"{path.relative_to(ROOT)} imports {'.'.join(module)}"
            for module in imported(path)
            if module and area(module) not in MAY_IMPORT[area(own)]
        ]
    assert wrong == []
