"""The error messages that "Coming from SAC" shows are those one gets."""

import re
from pathlib import Path

import pytest

from sb3_energy import EnergySAC

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "coming_from_sac.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(EnergySAC\(.*\))` \| `(\w+): (.*?)`(?: \.\.\.)? \|$", PAGE, re.MULTILINE)


def test_all_rows_are_read():
    assert len(ROWS) == PAGE.split("| what is raised |")[1].split("\n\n")[0].count("\n| ") >= 10


@pytest.mark.parametrize(("code", "error", "message"), ROWS, ids=[code[25:] for code, _, _ in ROWS])
def test_the_message_is_what_is_raised(code: str, error: str, message: str):
    with pytest.raises(Exception, match=re.escape(message)) as raised:
        eval(code, {"EnergySAC": EnergySAC})
    assert raised.type.__name__ == error
