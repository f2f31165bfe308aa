"""Tables of a page, which the command that measures them writes."""

from pathlib import Path

from benchmarks.files import write_text


def put_table(page: Path, name: str, table: str) -> None:
    """
    :param page: in which ``<!-- name -->`` and ``<!-- /name -->`` stand
    :param name: of the place
    :param table: what is to stand there
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    write_text(page, f"{before}{begin}{table}{end}{rest.partition(end)[2]}")
