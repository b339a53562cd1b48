"""What `status --json` says, held against the published schema, and what was published first. Witness: jsonschema."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema

FIRST = json.loads((Path(__file__).parent / "cli/status-first.json").read_text())
"""As version 1 began, when it was of composefs machines alone: who was written for it reads what comes after."""


def check_status(found: Any) -> Any:
    """Return it, if the schema takes it."""
    schema = json.loads(files("oci2boot").joinpath("schema/status.json").read_text())
    for one in [schema, *([FIRST] if found.get("mode") == "composefs" else [])]:
        jsonschema.Draft202012Validator.check_schema(one)
        jsonschema.validate(found, one, format_checker=jsonschema.FormatChecker())
    return found
