"""A process that has everything imported, and runs one command of oci2boot in a child for each line it reads.

The library of cut.c is loaded into it, so a child starts in a millisecond and dies at the call that is asked for.
"""

import gc
import importlib
import json
import mmap
import os
import pkgutil
import struct
import sys
from pathlib import Path
from typing import Any

STATE = struct.Struct("<5Q")
"""struct state of cut.c: armed, limit, log, now, count"""


def import_everything() -> None:
    import oci2boot
    import oci2boot.cli.main

    for module in pkgutil.walk_packages(oci2boot.__path__, "oci2boot."):
        importlib.import_module(module.name)
    for name in ("cryptography.x509", "isal.igzip", "oras.client", "requests", "rich.table", "xxhash", "zstandard"):
        importlib.import_module(name)


def run(request: dict[str, Any], page: mmap.mmap) -> None:
    """Be the child: never return."""
    os.setpgid(0, 0)
    out = os.open(request["output"], os.O_WRONLY | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.argv = ["oci2boot", *request["words"]]
    from oci2boot.cli.main import main

    status = 0
    page[: STATE.size] = STATE.pack(1, request.get("limit", 0), request.get("log", 0), request.get("now", 0), 0)
    try:
        main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 99
    sys.stdout.flush()
    os._exit(status)


def serve() -> None:
    with Path(os.environ["CUT_STATE"]).open("r+b") as file:
        page = mmap.mmap(file.fileno(), STATE.size)
    import_everything()
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        page[: STATE.size] = bytes(STATE.size)
        child = os.fork()
        if child == 0:
            run(request, page)
        _, status = os.waitpid(child, 0)
        count = STATE.unpack(page[: STATE.size])[-1]
        page[: STATE.size] = bytes(STATE.size)
        print(json.dumps({"status": os.waitstatus_to_exitcode(status), "count": count}), flush=True)


if __name__ == "__main__":
    serve()
