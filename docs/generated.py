"""Pages of which a part is made by a program: between two marks, and the rest is written by hand."""

from pathlib import Path

BEGIN, END = "<!-- made by a program from here -->", "<!-- to here -->"


def filled(page: Path, made: str) -> str:
    """The text of a page with this between its marks."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"{page} lacks the marks {BEGIN} and {END}.")
    return f"{before}{BEGIN}\n\n{made}\n\n{END}{after}"
