"""Write the sample pages of this folder; everything on them is invented.

Run it after a change: `python tests/web/pages/make.py`.
"""

from pathlib import Path

HERE = Path(__file__).parent
FRAME = "<nav><a href='/'>Home</a> <a href='/all'>All pages</a></nav>"
BANNER = "<div class='cookie-banner'>We use cookies. <button>Accept</button></div>"


def html(title: str, body: str, head: str = "", lang: str = "en") -> str:
    return (
        f"<!doctype html><html lang='{lang}'><head><title>{title}</title>{head}</head><body>{BANNER}{FRAME}{body}</body></html>"
    )


def pdf(pages: list[list[str]], title: str, day: str) -> bytes:
    """A PDF of lines in Helvetica, object by object (ISO 32000-1, 7.5)."""
    numbers = [4 + 2 * place for place in range(len(pages))]
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{' '.join(f'{number} 0 R' for number in numbers)}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, lines in zip(numbers, pages, strict=True):
        drawn = "BT /F1 12 Tf 72 740 Td 16 TL " + " ".join(f"({line}) Tj T*" for line in lines) + " ET"
        font = "<< /Font << /F1 3 0 R >> >>"
        objects.append(f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources {font} /Contents {number + 1} 0 R >>")
        objects.append(f"<< /Length {len(drawn)} >>\nstream\n{drawn}\nendstream")
    objects.append(f"<< /Title ({title}) /CreationDate (D:{day}120000Z) >>")
    out, places = "%PDF-1.4\n", []
    for number, content in enumerate(objects, start=1):
        places.append(len(out))
        out += f"{number} 0 obj\n{content}\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    size, start = len(objects) + 1, len(out)
    out += f"xref\n0 {size}\n0000000000 65535 f \n{table}"
    out += f"trailer << /Size {size} /Root 1 0 R /Info {len(objects)} 0 R >>\nstartxref\n{start}\n%%EOF\n"
    return out.encode("ascii")


REPORT = [
    [
        "Report of the Velmora harbour board",
        "The harbour of Velmora took in 4,210 ships in 1931,",
        "seventy more than the year before.",
    ],
    ["Outlook", "A second quay will be built beside the old light-", "house. It is to open in the spring of 1934."],
]
BRIDGES = [
    ("Karst Bridge", "Lorn", "212 m", "1874"),
    ("Mill Bridge", "Lorn", "48 m", "1790"),
    ("Sedge Bridge", "Ister", "305 m", "1911"),
]
ROWS = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in BRIDGES)
TABLE = (
    "<h1>Bridges of Velmora</h1><p>Every bridge that the county keeps up.</p><table><thead><tr><th>Bridge</th><th>River</th>"
    f"<th>Length</th><th>Opened</th></tr></thead><tbody>{ROWS}</tbody></table>"
)
JAPANESE = (
    "<article><h1>ベルモラの橋</h1><p>カルスト橋は一八七四年に開通し、ベルモラ市で最も長い橋である。</p>"
    "<p>市議会は毎年春に橋の祭りを開き、住民は古い市庁舎に集まる。</p></article>"
)
RUSSIAN = (
    "<article><h1>Мост в Вельморе</h1><p>Карстовый мост открыли весной 1874 года, и он остаётся самым длинным в городе.</p>"
    "<p>Каждый год у старой ратуши проходит праздник моста.</p></article>"
)
WALL = (
    "<article><h1>Who paid for the second quay?</h1><p>The harbour board of Velmora has never said where the money came from, "
    "and its ledgers for 1933 are missing.</p><div class='paywall'><p>Subscribe to continue reading.</p>"
    "<p>Already a subscriber? Log in</p></div></article>"
)
LOCKED = (
    '<script type="application/ld+json">{"@type": "NewsArticle", "datePublished": "2024-03-09T06:00:00Z", '
    '"isAccessibleForFree": false}</script>'
)


def main() -> None:
    """Write them all."""
    dated = "<meta property='article:published_time' content='2023-05-17T08:00:00+02:00'>"
    (HERE / "report.pdf").write_bytes(pdf(REPORT, "Harbour report 1931", "19320115"))
    (HERE / "bridges.html").write_bytes(html("Bridges of Velmora", TABLE, f"<meta charset=utf-8>{dated}").encode())
    (HERE / "shift_jis.html").write_bytes(html("ベルモラの橋", JAPANESE, "<meta charset=Shift_JIS>", "ja").encode("shift_jis"))
    (HERE / "windows-1251.html").write_bytes(html("Мост в Вельморе", RUSSIAN, "", "ru").encode("windows-1251"))
    (HERE / "paywall.html").write_bytes(html("Who paid?", WALL, f"<meta charset=utf-8>{LOCKED}").encode())


if __name__ == "__main__":
    main()
