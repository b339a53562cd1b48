"""The direction of imports, and what every module owes the reader."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent / "oci2boot"

MAY_IMPORT = {
    "errors": set(),
    "digest": {"errors"},
    "formats": {"formats", "digest", "errors"},
    "system": {"system", "errors"},
    "tree": {"tree", "formats", "digest", "errors"},
    "rootfs": {"rootfs", "tree", "formats", "digest", "errors"},
    "boot": {"boot", "rootfs", "tree", "formats", "digest", "errors"},
    "oci": {"oci", "tree", "formats", "digest", "errors", "system"},
    "store": {"store", "rootfs", "tree", "formats", "digest", "errors", "system"},
    "target": {"target", "tree", "formats", "digest", "errors", "system"},
    "sysroot": {"sysroot", "boot", "rootfs", "tree", "formats", "digest", "errors", "system"},
    "initramfs": {"initramfs"},
    "workflows": {
        *(
            "workflows",
            "oci",
            "store",
            "target",
            "sysroot",
            "boot",
            "rootfs",
            "tree",
            "formats",
            "digest",
            "errors",
            "system",
        ),
        "initramfs",
    },
    "cli": {"cli", "workflows", "errors", "digest", "oci", "store", "sysroot", "rootfs"},
}
"""An area (a folder or a module of the package) and the areas that it may import."""


def area(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("oci2boot."):
            found.add(area(node.module))
        elif isinstance(node, ast.Import):
            found |= {area(name.name) for name in node.names if name.name.startswith("oci2boot.")}
    return found


def test_imports_follow_the_table() -> None:
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        own = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        wrong += [f"{path.relative_to(ROOT)} imports {name}" for name in imports(path) - MAY_IMPORT[own]]
    assert wrong == []
