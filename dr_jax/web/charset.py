"""Turn the bytes of a page into text, whatever its author claims about them.

In:    bytes, the charset of the Content-Type header ("" when it had none)
Out:   text; what cannot be decoded becomes U+FFFD
Order: byte order mark, UTF-8 if every byte fits, header, meta tag, UTF-8 if nearly every byte fits, detection; a claim
       that does not fit is passed over
"""

from __future__ import annotations

import codecs
import re

from charset_normalizer import from_bytes

# Labels that browsers read as a superset of what they name: https://encoding.spec.whatwg.org/#names-and-labels
_SUPERSETS = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "shift_jis": "cp932",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "euc_kr": "cp949",
    "big5": "cp950",
}
_ALIASES = {"x-sjis": "cp932", "windows-31j": "cp932", "x-gbk": "gb18030", "windows-949": "cp949", "utf-16": "utf-16-le"}
_LIKE_UTF8 = {"iso2022_jp", "utf-16-le", "utf-16-be"}  # their bytes can also be read as UTF-8, as nonsense
_READ = re.compile(
    r"utf-(8|16-le|16-be)$|cp(12\d\d|8\d\d|93\d|94\d|95\d)$|iso8859-\d+$|koi8-[ru]$|euc_jp$|iso2022_jp$|gb18030$"
)
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_META = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([a-zA-Z0-9_.:-]{2,40})", re.IGNORECASE)
_XML = re.compile(rb"^\s*<\?xml[^>]{0,200}?encoding\s*=\s*[\"']([a-zA-Z0-9_.:-]{2,40})")
_LOOKED_AT = 16_384  # bytes in which a meta tag is looked for, and that detection reads
_STRAY = 0.1  # share of the characters beyond ASCII that may be undecodable before a claim is taken to be wrong
_ENOUGH = 16  # bytes beyond ASCII, without which detection is guessing
_FOREIGN = re.compile(r"[^\x00-\x7f]")
_KANA = re.compile(r"[\u3041-\u30fe]")


def decode(body: bytes, declared: str = "") -> str:
    """Return the text of the bytes.

    Args:
        body: as received, without content encoding.
        declared: charset of the Content-Type header; unknown or unsuitable names are passed over.
    """
    for mark, name in _MARKS:
        if body.startswith(mark):
            return body[len(mark) :].decode(name, errors="replace")
    head = body[:_LOOKED_AT]
    claims = [name for name in (_codec(declared), _in_markup(head)) if name]
    tried = {name: body.decode(name, errors="replace") for name in claims if name in _LIKE_UTF8}
    if not any(_fits(text) for text in tried.values()):
        try:  # text of some length in another charset is hardly ever valid UTF-8; the last character may be cut
            return codecs.getincrementaldecoder("utf-8")().decode(body)
        except UnicodeDecodeError:
            pass
    for name in (*claims, "utf-8"):
        text = tried.setdefault(name, body.decode(name, errors="replace"))
        if _fits(text):
            return text
    guess = _detected(head)
    tried[guess] = body.decode(guess, errors="replace")
    return min(tried.values(), key=_undecodable)


def _detected(head: bytes) -> str:
    for name in ("euc_jp", "cp932"):  # taken for Korean by detection; no Japanese text goes without kana, and no other has many
        text = head.decode(name, errors="replace")
        if 4 * len(_KANA.findall(text)) > len(_FOREIGN.findall(text)) and _fits(text):
            return name
    if sum(byte > 127 for byte in head) < _ENOUGH:
        return "cp1252"
    found = from_bytes(head).best()
    return (_codec(found.encoding) if found is not None else "") or "cp1252"


def _codec(label: str) -> str:
    try:
        name = codecs.lookup(_ALIASES.get(label.strip().lower(), label.strip())).name if label.strip() else ""
    except (LookupError, ValueError):
        return ""
    name = _SUPERSETS.get(name, name)
    return name if _READ.match(name) else ""


def _in_markup(head: bytes) -> str:
    found = _XML.search(head) or _META.search(head)
    name = _codec(found.group(1).decode("ascii")) if found else ""
    return "utf-8" if name.startswith("utf-16") else name  # a tag that can be read as ASCII is not in UTF-16


def _undecodable(text: str) -> int:
    return text.count("�")


def _fits(text: str) -> bool:
    """Whether nearly all that is not ASCII could be decoded."""
    return _STRAY * len(_FOREIGN.findall(text)) >= _undecodable(text)
