import pytest

from dr_jax.web.charset import decode

RUSSIAN = "Мост через реку был открыт весной, и городской совет пригласил жителей на праздник у старой ратуши."
JAPANESE = "橋は春に開通し、市議会は住民を古い市庁舎での祝賀会に招待した。"
GERMAN = "Die Brücke über den Fluß wurde im März eröffnet; der Bürgermeister hielt eine Rede – „schön“."


@pytest.mark.parametrize(
    ("text", "charset"),
    [
        *((RUSSIAN, name) for name in ("utf-8", "windows-1251", "koi8-r", "iso-8859-5")),
        *((JAPANESE, name) for name in ("utf-8", "shift_jis", "euc-jp", "iso-2022-jp")),
        *((GERMAN, name) for name in ("utf-8", "windows-1252")),
    ],
)
@pytest.mark.parametrize("told_by", ["header", "meta", "http-equiv"])
def test_a_declared_charset_is_used(text: str, charset: str, told_by: str) -> None:
    meta = {
        "header": "",
        "meta": f"<meta charset='{charset}'>",
        "http-equiv": f'<META http-equiv=Content-Type content="text/html; charset={charset}">',
    }[told_by]
    page = f"<html><head>{meta}<title>x</title></head><body>{text}</body></html>"
    assert decode(page.encode(charset), charset if told_by == "header" else "") == page


@pytest.mark.parametrize(("text", "charset"), [(RUSSIAN * 3, "windows-1251"), (JAPANESE * 3, "shift_jis"), (GERMAN, "utf-8")])
def test_a_charset_is_found_when_nobody_tells_it(text: str, charset: str) -> None:
    assert decode(text.encode(charset)) == text


def test_a_wrong_claim_is_passed_over() -> None:
    assert decode(RUSSIAN.encode(), "iso-8859-1") == RUSSIAN  # a server's default in front of UTF-8
    assert decode(f"<meta charset=windows-1251>{RUSSIAN}".encode("cp1251"), "utf-8").endswith(RUSSIAN)
    assert decode("naïve".encode("latin-1"), "no-such-charset") == "naïve"
    for codec in ("rot13", "hex", "utf-7", "unicode_escape", "idna", "undefined", "\0", "x" * 500):
        assert decode(b"abc +AGE- \\u0041", codec) == "abc +AGE- \\u0041"


def test_byte_order_marks_decide() -> None:
    for charset in ("utf-8-sig", "utf-16"):
        assert decode(RUSSIAN.encode(charset), "windows-1252") == RUSSIAN


def test_latin1_means_what_browsers_read() -> None:
    assert decode("„schön“ – 5 €".encode("cp1252"), "iso-8859-1") == "„schön“ – 5 €"


def test_what_cannot_be_decoded_is_replaced() -> None:
    assert decode(b"\xff " + "gute Wörter ".encode() * 100, "utf-8").startswith("� gute Wörter")
    assert decode("Ende ü".encode()[:-1]) == "Ende "  # cut within the last character
    assert decode(b"") == ""
    assert len(decode(bytes(range(256)) * 10)) > 0
