"""Where a text may be cut: at the ends of its sentences, or as near to that as it has."""

import re

# Marks that end a sentence, in the scripts of Europe, East and South Asia, Arabia and Ethiopia,
# and what may close after them. A full stop ends one only before a blank, or 3.14 would be cut.
_CLOSING = r"[\"'’”»›)\]」』）】》]*"
_ENDS = re.compile(rf"(?:[.!?…]+{_CLOSING}(?=\s|$)|[。！？｡．।॥؟۔።]+{_CLOSING})")
_CLAUSES = re.compile(rf"(?:[,;:–—]+{_CLOSING}(?=\s|$)|[，、；：،؛]+{_CLOSING})")
_WORDS = re.compile(r"(?=\s)")

#: Ways of cutting, the best first.
GRADES = (_ENDS, _CLAUSES, _WORDS)


def ends(grade: re.Pattern[str], text: str) -> list[int]:
    """Positions in a text after which it may be cut in that way, ascending."""
    return [match.end() for match in grade.finditer(text)]
