"""What the structure owes the reader: the direction of imports, pure folders, no circles."""

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent / "oci2boot"

FLOOR = {"formats", "digest", "errors"}
MIDDLE = {"boot", "rootfs", "tree", *FLOOR}
ADAPTERS = {"oci", "store", "target", "sysroot", "system", "initramfs", *MIDDLE}
DESK = {
    *("workflows/progress", "workflows/options", "workflows/sources", "workflows/requests", "workflows/images"),
    *ADAPTERS,
}

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
    "workflows/sources": {"workflows/options", "workflows/progress", *ADAPTERS},
    "workflows/requests": {
        *("workflows/options", "workflows/sources", "workflows/images", "workflows/progress"),
        *ADAPTERS,
    },
    "workflows/keys": {"workflows/keys", *DESK},
    # Without `system`, and so without any program that could be run.
    "workflows/lint": {"workflows/lint", "workflows/requests", "workflows/progress", "store", *MIDDLE},
    "workflows/make": {"workflows/make", "workflows/lint", "workflows/keys", *DESK},
    "workflows/install": {"workflows/install", "workflows/make", "workflows/lint", "workflows/keys", *DESK},
    "workflows/verify": {"workflows/verify", "workflows/make", "workflows/lint", "workflows/keys", *DESK},
    "workflows/machine": {
        *("workflows/machine", "workflows/verify", "workflows/install", "workflows/make", "workflows/lint"),
        "workflows/keys",
        *DESK,
    },
    "workflows/trial": {
        *("workflows/trial", "workflows/verify", "workflows/install", "workflows/make", "workflows/keys"),
        *DESK,
    },
    "cli": {
        *("cli", "workflows/trial", "workflows/machine", "workflows/verify", "workflows/install", "workflows/make"),
        *("workflows/lint", "workflows/keys", "workflows/progress", "workflows/options", "workflows/requests"),
        *("workflows/sources", "workflows/images", "errors", "digest"),
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


PURE = ("formats", "tree", "rootfs", "boot", "oci/manifest", "oci/reference", "oci/documents", "digest", "errors")
"""Bytes and values in, bytes and values out."""
EFFECTS = {
    *("asyncio", "concurrent", "ctypes", "fcntl", "glob", "mmap", "multiprocessing", "os", "random", "requests"),
    *("secrets", "select", "shutil", "signal", "socket", "subprocess", "tempfile", "threading", "time", "urllib3"),
}
"""Modules that look at the machine or change it."""
FILES = {
    *("exists", "glob", "is_dir", "is_file", "is_symlink", "iterdir", "mkdir", "open", "read_bytes", "read_text"),
    *("readlink", "rename", "resolve", "rglob", "stat", "touch", "unlink", "write_bytes", "write_text"),
}
"""What a path does of it, without a module's name; the package's own files (`importlib.resources`) are constants."""


def test_the_pure_folders_import_nothing_that_has_effects() -> None:
    wrong = []
    for name in PURE:
        for path in [ROOT / f"{name}.py"] if (ROOT / f"{name}.py").is_file() else sorted((ROOT / name).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                match node:
                    case ast.Import(names):
                        found = {one.name.partition(".")[0] for one in names}
                    case ast.ImportFrom(module=str(module)):
                        found = {module.partition(".")[0]}
                    case ast.Attribute(attr="now" | "today" | "utcnow"):
                        found = {"time"}
                    case ast.Call(func=ast.Name(id="open")):
                        found = {"os"}
                    case ast.Call(func=ast.Attribute(value=value, attr=attribute)) if attribute in FILES:
                        found = set() if "resources.files(" in ast.unparse(value) else {"os"}
                    case _:
                        continue
                wrong += [f"{path.relative_to(ROOT)} has {effect}" for effect in sorted(found & EFFECTS)]
    assert wrong == []


def test_no_modules_import_each_other() -> None:
    """Imports within functions count too: they hide a circle, and do not undo it."""
    graph = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).with_suffix("").parts
        graph[name if name[-1] != "__init__" else name[:-1]] = {module for module in imported(path) if module}
    order: list[tuple[str, ...]] = []
    while leaves := [name for name, needs in graph.items() if name not in order and needs <= {*order, name}]:
        order += leaves
    assert sorted(graph.keys() - set(order)) == []


def test_a_word_of_the_glossary_names_one_thing() -> None:
    """What day 2 looks after, what it deploys, and what guards the files; an option of the same name is in cli."""
    found: dict[str, list[str]] = {"Deployment": [], "Machine": [], "Mode": []}
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.parse(path.read_text()).body if path.parent.name != "cli" else ():
            match node:
                case ast.ClassDef(name=name) | ast.Assign(targets=[ast.Name(id=name)]) if name in found:
                    found[name].append(str(path.relative_to(ROOT)))
    assert found == {
        "Deployment": ["workflows/machine/model.py"],
        "Machine": ["workflows/machine/model.py"],
        "Mode": ["store/roots.py"],
    }


def test_nothing_is_taken_from_a_module_of_tests() -> None:
    """What two of them share has a module without tests; so each runs alone, and is moved alone."""
    wrong = []
    for path in sorted(TESTS.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.ImportFrom(module=module, names=names):
                    found = [f"{module}.{one.name}" for one in names]
                case ast.Import(names):
                    found = [one.name for one in names]
                case _:
                    continue
            wrong += [f"{path.relative_to(TESTS)} imports {name}" for name in found if ".test_" in name]
    assert wrong == []


def test_a_module_of_tests_is_about_one_subject() -> None:
    """At most 400 lines: what is longer is about two."""
    lengths = {path.relative_to(TESTS): len(path.read_text().splitlines()) for path in TESTS.rglob("*.py")}
    assert {str(path): length for path, length in lengths.items() if length > 400} == {}
