"""The application that the commands are added to."""

import typer

app = typer.Typer(
    name="oci2boot",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
