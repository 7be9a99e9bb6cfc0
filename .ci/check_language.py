"""Lists archaic words, metaphors and British spellings in texts: `python .ci/check_language.py PATH...`.

Docstrings, comments and messages of Python files are read by `ast` and `tokenize`; Markdown without its code; HTML
templates without tags; YAML files and comments of other files as they are. In tests, strings are data and not read, but
names of tests are. A line that holds `language: ok` is skipped. Exit codes: 0 nothing found, 1 findings, 2 wrong usage.
"""

from __future__ import annotations

import ast
import io
import json
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ESCAPE = "language: ok"

OPENING = re.compile(
    r"(?:^|(?<=[.!?:;]\s)|(?<=[.!?][`\"')]\s))(?:What|Who|Whose|Whoever|Whatever|Which|Where|How)\b(?!-to)(?![^.!?]*\?)"
)

# One line a word: the pattern, and plain words to use instead.
_WORDS = r"""
tells?|told|telling                                     | report, return, indicate, distinguish
hears?|heard|hearing                                    | caption, detect, process audio
asks?|asked|asking                                      | request, query, prompt, require
mends?|mended|mending                                   | fix, repair, correct
mourns?|bury|buries|buried                              | clean up
lets? go|letting go|let go of                           | release, unload, delete
(?:go|goes|gone|going|went) on (?:with|where|from)      | continue, resume
who(?:so)?ever                                          | the caller, the user
nobody|no one                                           | no caller, no process
one's own|of one's                                      | custom, your own
so (?:many|much|often|long)\b(?! as)                    | the number, the maximum
as ever|as of old                                       | as before
at hand                                                 | available, local
(?<!there )(?:is|are|was|were) no (?!longer\b|more\b|less\b|fewer\b|\w+er than\b|one\b)[a-z]+ | is not a
(?<!there )(?:is|are|was|were) (?-i:none)(?! of)\b         | is not one
none of (?:ours|its own|theirs)                         | not created by openavs
lies(?! between\b| within\b| in [\[(])                  | is
lie (?:there|where|beside|below|under|elsewhere|about)  | are
(?<!\bis )(?:is|are|was|were) there(?= ?[.,;:)]|$| already| too| and\b| or\b) | exists
take turns|takes turns|took turns|taking turns|in turns | alternate, one after the other
(?:its|their|whose) turn(?! (?:on|off|into)\b)          | when it is scheduled
dies|died|dying|deaths?                                 | crash, exit, stop
remembers|remembered|remembering                        | cache, store, keep
forgets|forgotten|forgot                                | drop, omit
believes|believed|disbelieve\w*                         | trust, accept, verify
quarrel\w*                                              | conflict
stumbl\w+                                               | fail
wish(?:es|ed)?                                          | request
gives? back|gave back|given back|giving back            | return, release
hangs? (?:on|upon) (?:it|its|the|what|them)             | depend on
speaks? of|spoken of                                    | mention, refer to
lays? aside|laid aside                                  | suspend, skip
nothing of                                              | no part of, none of
(?:by|in) the company of                                | with, together with
affairs?                                                | task, detail
nowhere|anew|beforehand|hitherto|henceforth             | not, again, in advance, until now
whence|thence|hither|thither|thereof|therein|whereof|wherein|thereupon | from, to, of which, in it
lest|ere|aught|naught|thrice|heed\w*                    | so that not, before, nothing, three times
by and by|betimes|oft                                   | gradually, often
(?<!and )(?<!so )(?<!back and )forth                    | forward, out
for the sake|for want of                                | for, because of missing
(?:in|its|their) stead                                  | instead
for who                                                 | for users who
may be had|to be had                                    | available
in words(?! of)                                         | as text
manieth                                                 | n-th
"""

_BRITISH = r"""
\w*colour\w*|\w*behaviour\w*|\w*neighbour\w*|(?:un)?favour\w*|honour(?:s|ed|ing)?|flavour\w*|\w*labour\w*|vapour\w*|humour\w*
licen[c]e[ds]?|licen[c]ing|defence|offence|practise[ds]?|pretence | license, defense, offense, practice
grey\w*|mould\w*|plough\w*|sceptic\w*|tyres?|storeys?|cheques?|aluminium|ageing|whilst|amongst|per cent
(?:un|mis|re)?(?:labell|modell|cancell|travell|signall|channell|levell|tunnell|totall|marshall|fuell)(?:ed|ing|ers?)
centre[ds]?|centring|\w*metres?|fibres?|theatres?|calibres?|litres?|sabres?
catalogue\w*|analogues?|artefact\w*|programmes?|analys(?:e|ed|er|ers|ing)|paralys(?:e|ed|ing)
learnt|spelt|burnt|dreamt|leant
"""

_BRITISH += (
    r"(?:un|re|de|pre|mis|non)?(?:"
    r"amort|apolog|author|binar|capital|categor|character|critic|custom|digit|discret|emphas|equal|factor|"
    r"final|general|generic|harmon|initial|item|legal|linear|local|material|maxim|memor|minim|modern|"
    r"neutral|normal|optim|organ|parallel|penal|plural|prior|public|quant|random|raster|real|recogn|"
    r"regular|sanit|serial|special|stabil|standard|styl|style|summar|symbol|synchron|token|util|vector|"
    r"visual|vocal"
    r")is(?:e|ed|er|ers|es|ing|ation|ations|able)"
)


def _rules(table: str, hint: str) -> list[tuple[re.Pattern[str], str]]:
    """The patterns of a table with the words to use instead; the last ` | ` of a line separates them."""
    rules = []
    for line in table.strip().splitlines():
        pattern, bar, instead = line.rpartition(" | ")
        pattern, instead = (pattern, instead) if bar else (line, hint)
        rules.append((re.compile(rf"\b(?:{pattern.strip()})(?!\w)", re.IGNORECASE), instead.strip()))
    return rules


RULES = [*_rules(_WORDS, ""), *_rules(_BRITISH, "American spelling"), (OPENING, "begin with the subject or a verb")]

Text = list[tuple[int, str]]
"""One text as its lines, each with its number in the file."""


def findings(text: Text, rules: list[tuple[re.Pattern[str], str]] = RULES) -> Iterator[tuple[int, str, str]]:
    """Line, words and advice for every banned word of one text, whose sentences may span lines."""
    kept = [(number, _plain(line)) for number, line in text]
    joined = "\n".join(line for _, line in kept)
    for pattern, instead in rules:
        for found in pattern.finditer(joined.replace("\n", " ")):
            yield kept[joined.count("\n", 0, found.start())][0], found[0], instead


def _plain(line: str) -> str:
    """A line without code spans, link targets and comment signs."""
    line = re.sub(r"``[^`]*``|`[^`]*`", "x", line)
    return re.sub(r"\]\([^)]*\)|https?://\S+", "]", line).strip().lstrip("#>*-|").strip()


# ------------------------------------------------------------------------------------------------------------ readers


def python_texts(source: str, test: bool = False) -> Iterator[Text]:
    """Docstrings, comments and (outside of tests) messages of a Python file; of tests also the names as sentences."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield [(token.start[0], token.string)]
    tree = ast.parse(source)
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and test and node.name.startswith("test_"):
            yield [(node.lineno, node.name.removeprefix("test_").replace("_", " "))]
        if isinstance(node, ast.JoinedStr):
            whole = "".join(str(part.value) if isinstance(part, ast.Constant) else "x" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            whole = node.value
        else:
            continue
        if id(node) in docs or (not test and whole.strip().count(" ") >= 2):
            yield from paragraphs(whole, node.lineno, node.end_lineno or node.lineno)


def paragraphs(text: str, first: int = 1, last: int | None = None) -> Iterator[Text]:
    """The paragraphs of a text; a list item or table cell is one of its own. No line number is above `last`."""
    block: Text = []
    for number, line in enumerate(text.splitlines(), first):
        number = min(number, last or number)
        if re.match(r"\s*([-*+>#|]|\d+\.\s|$)", line) and block:
            yield block
            block = []
        if line.lstrip().startswith("|"):
            yield from ([(number, cell)] for cell in line.split("|"))
        elif line.strip():
            block.append((number, line))
        if line.lstrip().startswith("#"):
            yield block
            block = []
    if block:
        yield block


def markdown_texts(source: str) -> Iterator[Text]:
    """Paragraphs, headings, items and cells of a Markdown file; fenced code is left out."""
    return paragraphs(re.sub(r"^ *```.*?^ *```$", _emptied, source, flags=re.MULTILINE | re.DOTALL))


def notebook_texts(source: str) -> Iterator[Text]:
    """Markdown cells of a notebook, with the line in the file at which a cell's text begins."""
    for cell in json.loads(source)["cells"]:
        if cell["cell_type"] == "markdown":
            first = source.count("\n", 0, source.find(json.dumps(cell["source"][0])[1:-1])) + 1
            yield from paragraphs("".join(cell["source"]), first)


def html_texts(source: str) -> Iterator[Text]:
    """Text of an HTML template."""
    source = re.sub(r"<(style|script)\b.*?</\1>|<!--.*?-->|\{[{%#].*?[}%#]\}", _emptied, source, flags=re.DOTALL)
    return ([(number, re.sub(r"<[^>]*>", " ", line))] for number, line in enumerate(source.splitlines(), 1))


def yaml_texts(source: str) -> Iterator[Text]:
    """Comments and values of a YAML file, without the keys."""
    bare = re.sub(r"^([ \t]*(?:- )?)[\w./\"'-]+:(?=\s)", r"\1", source, flags=re.MULTILINE)
    block: Text = []
    for number, line in enumerate(bare.splitlines(), 1):
        comment = re.sub(r"^.*?(?:^|\s)#", "", line) if "#" in line else line
        if block and (not line.strip() or ("#" in line) != line.lstrip().startswith("#")):
            yield block
            block = []
        block.append((number, comment))
    yield block


def comment_texts(source: str) -> Iterator[Text]:
    """Comments (`#`) and echoed lines of a Makefile, a shell script, TOML."""
    for number, line in enumerate(source.splitlines(), 1):
        if found := re.search(r"(?:^|\s)#(.*)|\becho \"(.*)\"", line):
            yield [(number, found[1] or found[2] or "")]


def _emptied(found: re.Match[str]) -> str:
    """As many line ends as were matched, so that numbers of lines stay right."""
    return "\n" * found[0].count("\n")


READERS = {
    ".md": markdown_texts, ".ipynb": notebook_texts, ".html": html_texts, ".j2": html_texts,
    ".yaml": yaml_texts, ".yml": yaml_texts,
    ".toml": comment_texts, ".sh": comment_texts, "Makefile": comment_texts, "Dockerfile": comment_texts,
}  # fmt: skip


def texts_of(path: Path) -> Iterator[Text]:
    """All texts of a file; none of a file of another kind."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        texts = python_texts(source, test="tests" in path.parts)
    else:
        texts = READERS.get(path.suffix or path.name, lambda _: iter(()))(source)
    escaped = {number for number, line in enumerate(source.splitlines(), 1) if ESCAPE in line}
    for text in texts:
        yield [(number, line) for number, line in text if number not in escaped]


def files_below(path: Path) -> list[Path]:
    """The files of a folder that can be read, or the file itself."""
    if not path.is_dir():
        return [path]
    kinds = {".py", *READERS}
    return sorted(p for p in path.rglob("*") if p.is_file() and (p.suffix or p.name) in kinds)


def main(arguments: list[str]) -> int:
    """Prints the findings and returns the exit code."""
    paths = [Path(argument) for argument in arguments]
    missing = [str(path) for path in paths if not path.exists()]
    if missing or not paths:
        print(f"usage: check_language.py PATH... ({', '.join(missing) or 'no path given'})", file=sys.stderr)
        return 2
    count = 0
    for path in (file for given in paths for file in files_below(given)):
        found = {finding for text in texts_of(path) for finding in findings(text)}
        for line, words, instead in sorted(found):
            print(f"{path}:{line}: '{words}': {instead}")
        count += len(found)
    if count:
        print(f"{count} finding{'s' if count > 1 else ''}")
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
