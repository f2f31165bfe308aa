"""Tables of a page, which the command that measures them writes."""

from pathlib import Path

from benchmarks.files import write_text


def put_table(page: Path, name: str, table: str) -> None:
    """
    :param page: in which ``<!-- name -->`` and ``<!-- /name -->`` stand
    :param name: of the place
    :param table: what is to stand there, lines that end
    :raises ValueError: if the page has no such place
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{page} must have a line '<!-- {name} -->' and, after it, '<!-- /{name} -->'")
    write_text(page, f"{before}{begin}{table}{end}{after}")
