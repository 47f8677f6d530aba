"""The pages of a world, as varied and as noisy as a small web is.

In:    a world
Out:   for a host and path, a Document: status, headers' worth of facts, and the bytes of a page
Styles: encyclopaedia with an info box, biography blog, news among advertising, table listing, directory over several
       pages, forum thread; short and long; redirects from old addresses, dead links, cookie banners, several charsets
"""

from __future__ import annotations

import html
import random
from dataclasses import dataclass

from dr_jax.littleweb.world import RELATIONS, Entity, LittleWorld

HOSTS = ("atlas", "people", "news", "lists", "directory", "forum")
PER_PAGE = 60

_CHARSETS = ("utf-8", "utf-8", "utf-8", "utf-8", "windows-1252", "iso-8859-1", "shift_jis")
_FOOTER = "© littleweb – a naïve façade; nothing here is true"  # so that a wrong charset shows
_ADS = ("Brew Zest tea, now in tins", "Win a weekend by the sea", "Boots that never leak", "Lamps at half the price")
_CHATTER = (
    "Thanks, that helps.",
    "I read that somewhere as well.",
    "Could not find it in my almanac.",
    "Moved from another board.",
)
_ASIDES = (
    "The road there is steep in winter and muddy in spring.",
    "Visitors from {name} come by the early train.",
    "A song about {name} is still sung on market days.",
    "Nobody remembers who painted the old gate.",
    "The weather is mild, with fog until noon.",
    "An almanac compares it with {name}, without saying why.",
    "Letters kept in a chest at {name} say little more.",
    "Bread, cheese and walnuts are sold at the corner.",
)
_LONG = 0.15  # share of pages that go on about other things


@dataclass(frozen=True, slots=True)
class Document:
    """What is served at one address.

    Args:
        url: where it lives.
        title: of the page.
        lead: its first sentence, which search results show.
        text: what is indexed.
        body: bytes as sent; empty for a redirect.
        content_type: with or without a charset.
        status: 200, 301 or 404.
        location: where a redirect leads.
    """

    url: str
    title: str
    lead: str
    text: str
    body: bytes
    content_type: str = "text/html; charset=utf-8"
    status: int = 200
    location: str = ""


def slug(entity: Entity) -> str:
    """The last part of an entity's addresses, as it is written: `Velin-Tarro-city`."""
    return f"{entity.name.replace(' ', '-')}-{entity.kind}"


def main_url(entity: Entity) -> str:
    """The address of the page that states every fact of an entity."""
    return f"http://{'people' if entity.kind == 'person' else 'atlas'}.littleweb/{slug(entity)}"


class Pages:
    """Renders the pages of a world, each one the same whenever it is asked for."""

    def __init__(self, world: LittleWorld) -> None:
        self.world = world
        self._slugs = {slug(entity): entity for entity in world.entities}

    def addresses(self) -> list[tuple[str, str]]:
        """Host and path of every page that search finds."""
        found = [("people" if entity.kind == "person" else "atlas", f"/{slug(entity)}") for entity in self.world.entities]
        for index, entity in enumerate(self.world.entities):
            if index % 5 == 0:
                found.append(("news", f"/{slug(entity)}"))
            if index % 9 == 0:
                found.append(("forum", f"/{slug(entity)}"))
        for kind, members in self.world.by_kind.items():
            found.append(("lists", f"/{kind}"))
            found += [("directory", f"/{kind}/{page}") for page in range(1, 2 + (len(members) - 1) // PER_PAGE)]
        return found

    def get(self, host: str, path: str) -> Document:
        """Return the document at an address; one with status 404 where there is none."""
        name = path.strip("/")
        if host in ("atlas", "people") and name.startswith("old/") and name[4:] in self._slugs:
            entity = self._slugs[name[4:]]
            return Document(f"http://{host}.littleweb{path}", "", "", "", b"", status=301, location=main_url(entity))
        if host in ("atlas", "people", "news", "forum") and name in self._slugs:
            return getattr(self, f"_{host}")(self._slugs[name], f"http://{host}.littleweb/{name}")
        if host == "lists" and name in self.world.by_kind:
            return self._list(name, f"http://lists.littleweb/{name}")
        if host == "directory":
            kind, _, page = name.partition("/")
            if (
                kind in self.world.by_kind
                and page.isdigit()
                and 0 <= (int(page) - 1) * PER_PAGE < len(self.world.by_kind[kind])
            ):
                return self._directory(kind, int(page))
        body = "<html><head><title>Not found</title></head><body><h1>404</h1><p>There is no such page.</p></body></html>"
        return Document(f"http://{host}.littleweb{path}", "Not found", "", "", body.encode(), status=404)

    def _rng(self, url: str) -> random.Random:
        return random.Random(f"{self.world.settings.seed}/{url}")

    def _sentences(self, entity: Entity, rng: random.Random) -> list[str]:
        said = [
            rng.choice(relation.sentences).format(s=entity.name, v=self.world.said(entity, relation))
            for relation in RELATIONS[entity.kind]
        ]
        rng.shuffle(said)
        return said

    def _lead(self, entity: Entity) -> str:
        also = f", also written {entity.alias}" if entity.alias else ""
        return f"{entity.name} is a {entity.kind}{also}."

    def _asides(self, rng: random.Random) -> list[str]:
        """Paragraphs that say nothing of the subject, on the pages that are long."""
        if rng.random() >= _LONG:
            return []
        name = lambda: rng.choice(self.world.entities).name  # noqa: E731
        return [" ".join(rng.choice(_ASIDES).format(name=name()) for _ in range(12)) for _ in range(rng.randrange(3, 9))]

    def _atlas(self, entity: Entity, url: str) -> Document:
        rng = self._rng(url)
        sentences, lead = self._sentences(entity, rng), self._lead(entity)
        rows = "".join(
            f"<tr><th>{relation.words}</th><td>{_link(self.world.value(entity, relation))}</td></tr>"
            for relation in RELATIONS[entity.kind]
        )
        middle = f"<table class='infobox'><caption>{entity.name}</caption>{rows}</table>" if rng.random() < 0.7 else ""
        other = [one for one in self.world.bearers[entity.name] if one.id != entity.id]
        hat = "".join(f"<p class='hatnote'>For the {one.kind} see {_link(one)}.</p>" for one in other)
        extra = f"<h2>Notes</h2><p>{rng.choice(_CHATTER)}</p>" * (rng.random() < 0.3)
        before, after = _split(self._asides(rng), rng)
        main = f"<h1>{entity.name}</h1>{hat}{middle}{before}<p>{lead} {' '.join(sentences)}</p>{after}{extra}"
        return _document(url, f"{entity.name} ({entity.kind})", lead, " ".join(sentences), main, rng)

    def _people(self, entity: Entity, url: str) -> Document:
        rng = self._rng(url)
        sentences, lead = self._sentences(entity, rng), self._lead(entity)
        half = len(sentences) // 2
        before, after = _split(self._asides(rng), rng)
        main = (
            f"<article><h1>{entity.name}</h1><p class='meta'>A short life</p>{before}<p>{lead} {' '.join(sentences[:half])}</p>"
            f"{after}<p>{' '.join(sentences[half:])}</p></article>"
        )
        return _document(url, f"{entity.name} ({entity.kind})", lead, " ".join(sentences), main, rng)

    def _news(self, entity: Entity, url: str) -> Document:
        rng = self._rng(url)
        sentence, lead = self._sentences(entity, rng)[0], f"{entity.name} was in the news."
        ads = "".join(f"<div class='ad'><a href='http://forum.littleweb/gone-{n}'>{ad}</a></div>" for n, ad in enumerate(_ADS))
        main = (
            f"{ads}<article><h1>{entity.name} in the news</h1><p>{lead} {rng.choice(_CHATTER)}</p><p>{sentence}</p>"
            f"<p>{rng.choice(_CHATTER)}</p></article>{ads}"
        )
        return _document(url, f"{entity.name} in the news", lead, sentence, main, rng)

    def _forum(self, entity: Entity, url: str) -> Document:
        rng = self._rng(url)
        sentence, lead = self._sentences(entity, rng)[0], f"Does anybody know {entity.name}?"
        posts = [lead, rng.choice(_CHATTER), sentence, rng.choice(_CHATTER)]
        main = f"<h1>{lead}</h1>" + "".join(
            f"<div class='post'><b>user{rng.randrange(99)}</b><p>{post}</p></div>" for post in posts
        )
        return _document(url, f"Forum: {entity.name}", lead, sentence, main, rng)

    def _list(self, kind: str, url: str) -> Document:
        relation = RELATIONS[kind][0]  # type: ignore[index]
        members = self.world.by_kind[kind]  # type: ignore[index]
        rows = "".join(f"<tr><td>{_link(one)}</td><td>{self.world.said(one, relation)}</td></tr>" for one in members[:200])
        lead = f"A list of every {kind}."
        main = f"<h1>Each {kind}</h1><p>{lead}</p><table><tr><th>name</th><th>{relation.words}</th></tr>{rows}</table>"
        return _document(url, f"List: {kind}", lead, lead, main, self._rng(url))

    def _directory(self, kind: str, page: int) -> Document:
        url = f"http://directory.littleweb/{kind}/{page}"
        members = self.world.by_kind[kind]  # type: ignore[index]
        shown = members[(page - 1) * PER_PAGE : page * PER_PAGE]
        items = "".join(f"<li>{_link(one)}</li>" for one in shown)
        pages = range(1, 2 + (len(members) - 1) // PER_PAGE)
        turn = " ".join(f"<a href='http://directory.littleweb/{kind}/{other}'>{other}</a>" for other in pages)
        lead = f"Directory of every {kind}, page {page}."
        main = f"<h1>{kind}</h1><p>{lead}</p><ul>{items}</ul><p class='turn'>{turn}</p>"
        return _document(url, f"Directory: {kind} {page}", lead, lead, main, self._rng(url))


def _split(paragraphs: list[str], rng: random.Random) -> tuple[str, str]:
    """Lay paragraphs around what matters."""
    at = rng.randint(0, len(paragraphs))
    before, after = ("".join(f"<p>{one}</p>" for one in some) for some in (paragraphs[:at], paragraphs[at:]))
    return before, after


def _link(value: Entity | str) -> str:
    return f"<a href='{main_url(value)}'>{value.name}</a>" if isinstance(value, Entity) else html.escape(value)


def _document(url: str, title: str, lead: str, text: str, main: str, rng: random.Random) -> Document:
    charset = rng.choice(_CHARSETS)
    banner = "<div id='cookies'>This site uses cookies. <button>Accept</button></div>" if rng.random() < 0.5 else ""
    navigation = "".join(f"<li><a href='http://{host}.littleweb/'>{host}</a></li>" for host in HOSTS)
    told = rng.random() < 0.5
    meta = "" if told else f"<meta charset='{charset}'>"
    page = (
        f"<!doctype html><html><head>{meta}<title>{html.escape(title)}</title><style>.ad{{color:red}}</style>"
        f"<script>var seen = 1;</script></head><body>{banner}<nav><ul>{navigation}</ul></nav><main>{main}</main>"
        f"<footer>{_FOOTER}</footer></body></html>"
    )
    kind = f"text/html; charset={charset}" if told else "text/html"
    return Document(url, title, lead, text, page.encode(charset, "xmlcharrefreplace"), kind)
