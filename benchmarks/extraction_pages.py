# ruff: noqa: E501 - a line of markup is easier to compare with a page when it stays whole
"""Pages of every kind that articles come in, each with the text that a reader would call its main text.

Out:   Sample(name, html, gold): news, blogs, wikis, manuals, threads, shops, recipes, lists, tables, old layouts, eight languages
Holds: all words are invented or common; the same seed gives the same pages; what is not gold is what sites put around it
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

_WHO = (
    "the council|a surveyor|her brother|the ferry company|an old pilot|the school|a baker from Lorn|the night watch|two masons"
)
_DID = "repaired|measured|described|sold|painted|abandoned|photographed|inherited|flooded|rebuilt|forgot|mapped|praised|rented"
_WHAT = "the stone quay|a narrow bridge|the archive|forty barrels|the weather station|an orchard|the tram depot|a blue door|the lock"
_WHERE = "near Velmora|on the Ister|behind the mill|in the upper town|along the canal|at Karst|beyond the marsh|by the station"
_WHEN = "in spring|before the war|after the harvest|during a storm|for seven years|without permission|on market days|at dawn"
_WHY = "because nobody objected|although money was short|while others watched|as the records show|which surprised visitors"
_LISTS = [part.split("|") for part in (_WHO, _DID, _WHAT, _WHERE, _WHEN, _WHY)]
_FOREIGN = {
    "de": "Im Jahr {n} baute die Stadt Velmora eine Brücke aus {m} Steinen, und der Rat lud alle Bürger zum Fest am Fluss ein.",
    "fr": "En {n}, la ville de Velmora construisit un pont de {m} pierres, et le conseil invita les habitants à une fête au bord de l’eau.",
    "es": "En {n} la ciudad de Velmora levantó un puente de {m} piedras y el consejo invitó a los vecinos a una fiesta junto al río.",
    "ru": "В {n} году город Вельмора построил мост из {m} камней, и совет пригласил всех жителей на праздник у реки.",
    "pl": "W roku {n} miasto Velmora zbudowało most z {m} kamieni, a rada zaprosiła mieszkańców na święto nad rzeką.",
    "ja": "{n}年、ベルモラ市は{m}個の石で橋を建て、市議会は住民を川辺の祭りに招いた。",
    "zh": "{n} 年，韦尔莫拉市用 {m} 块石头建了一座桥，市议会邀请居民参加河边的庆典。",
}


@dataclass(frozen=True, slots=True)
class Sample:
    """A page, and its main text."""

    name: str
    html: str
    gold: str


class Writer:
    """Writes prose and remembers what of it is main text."""

    def __init__(self, seed: str, language: str = "en", scale: int = 1) -> None:
        self.scale = scale
        self._rng, self._language, self.gold = random.Random(seed), language, list[str]()

    def sentence(self) -> str:
        if self._language != "en":
            return _FOREIGN[self._language].format(n=self._rng.randint(1200, 1999), m=self._rng.randint(100, 99999))
        who, did, what, where, when, why = (self._rng.choice(part) for part in _LISTS)
        shape = self._rng.randrange(4)
        number = self._rng.randint(3, 9999)
        return (
            f"{who.capitalize()} {did} {what} {where} {when}, {why}.",
            f"{when.capitalize()}, {who} {did} {what} and {number} others {where}.",
            f"It was {who} who {did} {what} {when}; {number} letters say so.",
            f"{where.capitalize()} {who} {did} {what} {when}, {number} years later, {why}.",
        )[shape]

    def words(self, sentences: int = 4) -> str:
        return " ".join(self.sentence() for _ in range(sentences))

    def say(self, tag: str = "p", sentences: int = 4, attributes: str = "") -> str:
        """Write main text in an element."""
        text = self.words(sentences)
        self.gold.append(text)
        return f"<{tag}{' ' + attributes if attributes else ''}>{self._marked(text)}</{tag}>"

    def _marked(self, text: str) -> str:
        """Make links and emphasis of some words, as editors do."""
        words = text.split()
        for at in range(5, len(words) - 4, 19):
            opened, closed = (f"<a href='/w/{at}{len(words)}'>", "</a>") if self._rng.random() < 0.6 else ("<em>", "</em>")
            words[at], words[at + 2] = opened + words[at], words[at + 2] + closed
        return " ".join(words)

    def put(self, text: str, tag: str = "p", attributes: str = "") -> str:
        """Put main text into an element."""
        self.gold.append(text)
        return f"<{tag}{' ' + attributes if attributes else ''}>{text}</{tag}>"

    def body(self, paragraphs: int = 8) -> str:
        return "".join(self.say(sentences=self._rng.randint(2, 5)) for _ in range(round(2.5 * paragraphs * self.scale)))

    def heading(self, tag: str = "h2") -> str:
        return self.put(" ".join(self.sentence().split()[:5]).strip(",.;"), tag)

    def noise(self, sentences: int = 1) -> str:
        return self.words(sentences)

    def number(self, most: int) -> int:
        return self._rng.randrange(most)


def _links(w: Writer, count: int, each: Callable[[str], str] = lambda text: f"<li>{text}</li>", short: bool = False) -> str:
    def words() -> str:
        return " ".join(w.noise().split()[: 3 if short else 9])

    return "".join(each(f"<a href='/p{number}'>{words()}</a>") for number in range(count))


def _nav(w: Writer) -> str:
    menu = "".join(
        f"<li class='menu-item'><a href='/s{n}'>{' '.join(w.noise().split()[:2])}</a><ul class='sub-menu'>{_links(w, 7, short=True)}</ul></li>"
        for n in range(10 * w.scale)
    )
    return (
        "<header class='site-header'><a href='/' class='logo'>The Velmora Courier</a><form action='/find'><input name=q><button>Find"
        f"</button></form><nav class='main-nav'><ul>{menu}</ul></nav></header>"
    )


def _foot(w: Writer) -> str:
    columns = "".join(
        f"<div class='footer-col'><h4>{' '.join(w.noise().split()[:2])}</h4><ul>{_links(w, 8, short=True)}</ul></div>"
        for _ in range(4 * w.scale)
    )
    return f"<footer class='site-footer'>{columns}<p>© 2024 Velmora Press. All rights reserved. {w.noise()}</p></footer>"


def _machinery(title: str) -> str:
    """Styles, scripts and state, which are most of what a page of today is made of."""
    style = "".join(f".c{n}-{n * 37 % 101}{{margin:{n % 9}px;color:#{n * 7919 % 0xFFFFFF:06x}}}" for n in range(250))
    state = ",".join(f'"k{n}":{{"id":{n * 7919},"seen":{str(n % 2 == 0).lower()},"title":"{title} {n}"}}' for n in range(200))
    meta = "".join(f"<meta property='og:thing{n}' content='{title}'><link rel='preload' href='/a/{n}.js'>" for n in range(15))
    return f"{meta}<style>{style}</style><script>window.__STATE__={{{state}}};</script>"


def _cookies() -> str:
    return (
        "<div id='cookie-consent' class='modal'><h3>Your privacy matters</h3><p>We and our partners store information on a device, "
        "such as cookies, and process personal data for advertising and content measurement.</p><button>Accept all</button></div>"
    )


def _card(w: Writer) -> str:
    number = w.number(999)
    return (
        f"<div class='card'><a class='card__image' href='/c{number}'><img src='/{number}.jpg' alt=''></a><div class='card__text'>"
        f"<span class='card__tag'>Town</span><a href='/c{number}'><h3>{' '.join(w.noise().split()[:8])}</h3></a><p>{w.noise()}</p>"
        f"<span class='card__date'>{1 + number % 28} May</span></div></div>"
    )


def _page(title: str, body: str, head: str = "", lang: str = "en") -> str:
    return (
        f"<!doctype html><html lang='{lang}'><head><meta charset='utf-8'><title>{title} - The Velmora Courier</title>"
        f"<meta property='og:title' content='{title}'>{head}{_machinery(title)}</head><body>{body}<script>track();</script></body></html>"
    )


def _share() -> str:
    return "<ul class='social-share'><li><a href='#f'>Share</a></li><li><a href='#t'>Post</a></li><li><a href='#m'>Mail</a></li></ul>"


def news(w: Writer, t: str) -> str:
    related = f"<aside class='related-articles'><h3>More on this</h3>{''.join(_card(w) for _ in range(5))}</aside>"
    ad = f"<div class='ad-slot'><p>Advertisement</p><a href='/buy'>{w.noise()}</a></div>"
    return _page(t, (
        f"{_cookies()}{_nav(w)}<main><article class='story'><header><h1>{t}</h1><div class='byline'>By <a href='/a'>Ilse Korn</a> "
        f"<time datetime='2024-02-03'>3 February 2024</time></div>{_share()}</header><div class='story-body'>{w.body(4)}{ad}{w.body(4)}</div>"
        f"</article>{related}</main><div class='sidebar'><h3>Most read</h3><ol>{_links(w, 10)}</ol></div>{_foot(w)}"
    ))  # fmt: skip


def news_divs(w: Writer, t: str) -> str:
    return _page(t, (
        f"{_nav(w)}<div id='wrap'><div class='col-8'><h1 class='headline'>{t}</h1><div class='meta'>3 Feb 2024 | Town</div>"
        f"<div class='article__content'>{w.body(3)}<div class='newsletter-signup'><h4>Get our newsletter</h4><p>Every morning in your inbox. "
        f"{w.noise()}</p><input></div>{w.body(4)}<p class='tags'>Tags: <a href='/1'>town</a> <a href='/2'>river</a></p></div></div>"
        f"<div class='col-4'>{''.join(_card(w) for _ in range(8))}</div></div>{_foot(w)}"
    ))  # fmt: skip


def news_quotes(w: Writer, t: str) -> str:
    caption = f"<figure><img src='/i.jpg' alt='{w.noise()}'></figure>"
    return _page(t, (
        f"{_nav(w)}<article itemscope itemtype='http://schema.org/NewsArticle'><h1 itemprop='headline'>{t}</h1>"
        f"<div itemprop='articleBody'>{w.body(2)}{caption}{w.say('blockquote', 2)}{w.body(3)}{w.heading()}{w.body(3)}</div></article>"
        f"<section class='comments' id='comments'><h2>Comments (3)</h2>{''.join(f'<div class=comment><b>user</b><p>{w.noise(2)}</p></div>' for _ in range(3))}"
        f"</section><div class='recommended'><h2>You may also like</h2>{''.join(_card(w) for _ in range(6))}</div>{_foot(w)}"
    ))  # fmt: skip


def news_live(w: Writer, t: str) -> str:
    posts = "".join(f"<div class='live-post'><time>{9 + n}:15</time>{w.say('p', 3)}</div>" for n in range(7))
    return _page(
        t, f"{_nav(w)}<main><h1>{t}</h1><div class='live-blog'>{posts}</div></main><aside>{_links(w, 8)}</aside>{_foot(w)}"
    )


def news_brief(w: Writer, t: str) -> str:
    return _page(t, (
        f"{_cookies()}{_nav(w)}<div class='content'><div class='article'><h1>{t}</h1><div class='text'>{w.body(2)}</div></div>"
        f"<div class='teasers'>{''.join(_card(w) for _ in range(12))}</div></div>{_foot(w)}"
    ))  # fmt: skip


def blog(w: Writer, t: str) -> str:
    return _page(t, (
        f"<div id='page' class='site'>{_nav(w)}<div id='content'><div id='primary'><main><article class='post type-post hentry'>"
        f"<header class='entry-header'><h1 class='entry-title'>{t}</h1><div class='entry-meta'>Posted on 4 May 2022 by admin</div></header>"
        f"<div class='entry-content'>{w.body(3)}{w.heading()}{w.body(3)}<ul>{''.join(w.say('li', 1) for _ in range(4))}</ul>{w.body(2)}"
        f"<div class='sharedaddy'><h3>Share this:</h3>{_share()}</div></div><footer class='entry-footer'>Posted in <a href='/x'>Rivers</a>"
        f"</footer></article><nav class='post-navigation'><a href='/prev'>Previous: {w.noise()}</a></nav><div id='comments'><ol>"
        f"{''.join(f'<li class=comment><p>{w.noise(2)}</p><a href=#>Reply</a></li>' for _ in range(4))}</ol></div></main></div>"
        f"<div id='secondary' class='widget-area'><section class='widget'><h2>Recent posts</h2><ul>{_links(w, 6)}</ul></section></div></div></div>"
        f"{_foot(w)}"
    ))  # fmt: skip


def blog_bare(w: Writer, t: str) -> str:
    return f"<html><head><title>{t}</title></head><body><h1>{t}</h1>{w.body(9)}<hr><a href='/'>back</a></body></html>"


def blog_static(w: Writer, t: str) -> str:
    code = w.put("bridge = load('ister.map')\nprint(bridge.length)", "pre")
    return _page(t, (
        f"<div class='container'>{_nav(w)}<section class='post'><h1>{t}</h1>{w.body(3)}{code}{w.body(2)}{w.heading('h3')}{w.body(3)}</section>"
        f"<section class='author-bio'><h4>About the author</h4><p>{w.noise(2)}</p></section></div>{_foot(w)}"
    ))  # fmt: skip


def letter(w: Writer, t: str) -> str:
    return _page(t, (
        f"<div class='topbar'><a href='/'>Letters from Karst</a><button>Subscribe</button></div><div class='single-post'><article>"
        f"<h1 class='post-title'>{t}</h1><h3 class='subtitle'>{w.noise()}</h3><div class='available-content'><div class='body markup'>{w.body(7)}"
        f"<div class='subscription-widget'><p>Thanks for reading! Subscribe for free to receive new posts.</p></div>{w.body(5)}</div></div></article>"
        f"<div class='discussion'><h4>Discussion</h4><p>{w.noise(2)}</p></div></div><div class='footer'>© 2024 Karst</div>"
    ))  # fmt: skip


def longread(w: Writer, t: str) -> str:
    parts = "".join(
        f"<section class='chapter'>{w.heading()}{w.body(7)}<aside class='pullquote'>{w.noise()}</aside></section>"
        for _ in range(5)
    )
    return _page(
        t,
        f"{_nav(w)}<main><h1>{t}</h1>{parts}</main><div class='related'>{''.join(_card(w) for _ in range(4))}</div>{_foot(w)}",
    )


def interview(w: Writer, t: str) -> str:
    turns = "".join(f"{w.put('<strong>' + w.noise() + '</strong>')}{w.say('p', 4)}" for _ in range(6))
    w.gold[:] = [text.replace("<strong>", "").replace("</strong>", "") for text in w.gold]
    return _page(
        t,
        f"{_nav(w)}<article><h1>{t}</h1><div class='text'>{turns}</div>{_share()}</article><aside>{_links(w, 6)}</aside>{_foot(w)}",
    )


def wiki(w: Writer, t: str) -> str:
    rows = "".join(
        w.put(f"<th>{key}</th><td>{w.number(9999)}</td>", "tr") for key in ("Population", "Founded", "Area", "Mayors")
    )
    w.gold[:] = [text.replace("<th>", "").replace("</th><td>", " ").replace("</td>", "") for text in w.gold]
    toc = f"<div id='toc' class='toc'><h2>Contents</h2><ul>{_links(w, 5, short=True)}</ul></div>"
    edit = "<span class='mw-editsection'>[<a href='/e'>edit</a>]</span>"
    return _page(t, (
        f"<div id='content' class='mw-body'><h1 id='firstHeading'>{t}</h1><div id='mw-content-text'><div class='mw-parser-output'>"
        f"<table class='infobox'>{rows}</table>{w.body(2)}{toc}{w.heading()}{edit}{w.body(4)}{w.heading()}{edit}{w.body(4)}</div></div></div>"
        f"<div id='mw-navigation'><div class='portal'><ul>{_links(w, 12, short=True)}</ul></div></div><div id='footer'>{w.noise()}</div>"
    ))  # fmt: skip


def manual(w: Writer, t: str) -> str:
    code = w.put("quay --open --width 40", "pre")
    side = f"<div class='sphinxsidebar'><h3>Table of contents</h3><ul>{_links(w, 20, short=True)}</ul></div>"
    return _page(t, (
        f"{side}<div class='document'><div class='body' role='main'><section><h1>{t}<a class='headerlink' href='#x'>¶</a></h1>{w.body(2)}"
        f"<div class='highlight'>{code}</div>{w.body(2)}<div class='admonition note'>{w.say('p', 2)}</div>{w.heading()}{w.body(3)}"
        f"<ul>{''.join(w.say('li', 1) for _ in range(6))}</ul></section></div></div><div class='related'><a href='/n'>next</a></div>"
    ))  # fmt: skip


def reference(w: Writer, t: str) -> str:
    items = "".join(f"{w.put(f'open_quay_{n}(width, depth)', 'dt')}{w.say('dd', 2)}" for n in range(8))
    return _page(
        t,
        f"<nav class='sidebar'>{_links(w, 15, short=True)}</nav><main><h1>{t}</h1>{w.body(1)}<dl>{items}</dl></main>{_foot(w)}",
    )


def thread(w: Writer, t: str) -> str:
    posts = "".join(
        f"<div class='post'><div class='postprofile'><a href='/u{n}'>user{n}</a><br>Joined 2019<br>Posts: {n * 7}</div>"
        f"<div class='postbody'><div class='content'>{w.say('div', 3)}</div></div></div>" for n in range(7)
    )  # fmt: skip
    return _page(t, f"{_nav(w)}<div id='page-body'><h2 class='topic-title'>{t}</h2>{posts}</div>{_foot(w)}")


def answers(w: Writer, t: str) -> str:
    votes = "<div class='votes'>▲ 12 ▼</div>"
    found = "".join(
        f"<div class='answer'>{votes}<div class='answer-body'>{w.body(2)}</div><div class='user'>Ada 1,2k</div></div>"
        for _ in range(3)
    )
    return _page(t, (
        f"{_nav(w)}<div id='mainbar'><h1>{t}</h1><div class='question'>{votes}<div class='post-text'>{w.body(2)}</div></div>"
        f"<h2>3 Answers</h2>{found}</div><div id='sidebar'><h4>Hot questions</h4><ul>{_links(w, 15)}</ul></div>{_foot(w)}"
    ))  # fmt: skip


def shop(w: Writer, t: str) -> str:
    rows = "".join(
        f"<tr><td>{k}</td><td>{v}</td></tr>"
        for k, v in (("Width", "40 cm"), ("Weight", "3 kg"), ("Colour", "oak"), ("Legs", "3"))
    )
    description = w.body(4)
    w.gold.append("Width 40 cm Weight 3 kg Colour oak Legs 3")
    return _page(t, (
        f"{_nav(w)}<div class='product'><h1>{t}</h1><div class='price'>€ 49.90</div><button>Add to cart</button><div class='description'>"
        f"<h2>Description</h2>{description}</div><table class='specs'>{rows}</table></div><div class='also-bought'>{''.join(_card(w) for _ in range(8))}"
        f"</div>{_foot(w)}"
    ))  # fmt: skip


def recipe(w: Writer, t: str) -> str:
    ingredients = "".join(
        w.put(f"{n + 1} cups of {word}", "li")
        for n, word in enumerate(("rye", "plums", "honey", "walnuts", "butter", "barley"))
    )
    steps = "".join(w.say("li", 2) for _ in range(6))
    return _page(t, (
        f"{_cookies()}{_nav(w)}<article class='recipe'><h1>{t}</h1>{w.body(2)}<h2>Ingredients</h2><ul>{ingredients}</ul><h2>Method</h2><ol>{steps}</ol>"
        f"</article><aside class='sidebar'>{''.join(_card(w) for _ in range(6))}</aside>{_foot(w)}"
    ))  # fmt: skip


def listing(w: Writer, t: str) -> str:
    items = "".join(f"{w.put(f'{n}. ' + ' '.join(w.noise().split()[:4]), 'h2')}{w.say('p', 4)}" for n in range(1, 11))
    return _page(
        t, f"{_nav(w)}<article><h1>{t}</h1>{w.body(1)}{items}</article><aside class='promo'>{_links(w, 9)}</aside>{_foot(w)}"
    )


def table(w: Writer, t: str) -> str:
    rows = "".join(w.put(f"<td>Bridge {n}</td><td>{w.number(500)} m</td><td>{1800 + n}</td>", "tr") for n in range(30))
    w.gold[:] = [text.replace("<td>", "").replace("</td>", " ") for text in w.gold]
    return _page(
        t, f"{_nav(w)}<main><h1>{t}</h1>{w.body(2)}<table class='wikitable'>{rows}</table>{w.body(2)}</main>{_foot(w)}"
    )


def ticker(w: Writer, t: str) -> str:
    rows = "".join(f"<tr><td>Stock {n}</td><td>{w.number(500)}</td><td>+{n} %</td></tr>" for n in range(8))
    return _page(t, (
        f"{_nav(w)}<div class='row'><div class='main-col'><h1>{t}</h1><div class='body-text'>{w.body(7)}</div></div><div class='right-col'>"
        f"<h3>Markets</h3><table>{rows}</table><ul>{_links(w, 8)}</ul></div></div>{_foot(w)}"
    ))  # fmt: skip


def old_layout(w: Writer, t: str) -> str:
    menu = _links(w, 10, lambda text: f"{text}<br>", short=True)
    return (
        f"<html><head><title>{t}</title></head><body bgcolor=white><table width=100%><tr><td width=150 valign=top><font size=2>{menu}</font></td>"
        f"<td valign=top><h1>{t}</h1>{w.body(8)}</td></tr></table><center><font size=1>Last changed 1999</font></center></body></html>"
    )


def breaks(w: Writer, t: str) -> str:
    text = "<br><br>".join(w.put(w.words(4), "span") for _ in range(7))
    return _page(
        t,
        f"{_nav(w)}<div id='story'><h1>{t}</h1><div class='text'>{text}</div></div><div class='more'><ul>{_links(w, 8)}</ul></div>{_foot(w)}",
    )


def office(w: Writer, t: str) -> str:
    faq = "".join(
        f"<details><summary>{w.put(w.noise().rstrip('.') + '?', 'span')}</summary>{w.say('p', 3)}</details>" for _ in range(5)
    )
    crumbs = "<ol class='breadcrumb'><li><a href='/'>Home</a></li><li>Permits</li></ol>"
    return _page(t, f"{_nav(w)}{crumbs}<main id='main'><h1>{t}</h1>{w.body(3)}<h2>Questions</h2>{faq}</main>{_foot(w)}")


def paper(w: Writer, t: str) -> str:
    return _page(t, (
        f"{_nav(w)}<article><h1>{t}</h1><p class='authors'>I. Korn, J. Tal</p><section id='abstract'><h2>Abstract</h2>{w.say('p', 6)}</section>"
        f"<section>{w.heading()}{w.body(5)}</section><section>{w.heading()}{w.body(5)}</section></article>"
        f"<div class='citing-articles'><ul>{_links(w, 10)}</ul></div>{_foot(w)}"
    ))  # fmt: skip


def release(w: Writer, t: str) -> str:
    return _page(t, (
        f"{_nav(w)}<div class='press-release'><h1>{t}</h1><div class='release-body'>{w.body(6)}</div></div><div class='sidebar'><h3>Contact</h3>"
        f"<p>press@velmora.example</p><ul>{_links(w, 5)}</ul></div>{_foot(w)}"
    ))  # fmt: skip


def hidden(w: Writer, t: str) -> str:
    unseen = f"<div style='display:none'><p>{w.noise(5)}</p></div><p hidden>{w.noise(3)}</p><p style='position:absolute;left:-9999px'>{w.noise(3)}</p>"
    return _page(t, f"{_nav(w)}<main><h1>{t}</h1>{w.body(3)}{unseen}{w.body(4)}</main>{_foot(w)}")


def modern(w: Writer, t: str) -> str:
    text = "".join(
        f"<div class='css-1fanzo5'><div class='css-53u6y8'>{w.say(sentences=3, attributes='class=css-at9mc1')}</div></div>"
        for _ in range(9)
    )
    return _page(t, (
        f"<div id='root'><div class='css-1'>{_nav(w)}<div class='css-2'><h1 class='css-h'>{t}</h1><div class='css-3'>{text}</div></div>"
        f"<div class='css-9'><h2>Trending</h2>{''.join(_card(w) for _ in range(6))}</div></div></div>{_foot(w)}"
    ))  # fmt: skip


def gallery(w: Writer, t: str) -> str:
    return _page(t, (
        f"{_nav(w)}<article><h1>{t}</h1>{w.body(2)}{''.join(f'<figure><img src=/{n}.jpg></figure>{w.say(sentences=3)}' for n in range(6))}</article>"
        f"<div class='outbrain'>{''.join(_card(w) for _ in range(8))}</div>{_foot(w)}"
    ))  # fmt: skip


_KINDS: tuple[Callable[[Writer, str], str], ...] = (
    *(news, news_divs, news_quotes, news_live, news_brief, blog, blog_bare, blog_static, letter, longread, interview),
    *(wiki, manual, reference, thread, answers, shop, recipe, listing, table, ticker, old_layout, breaks, office, paper),
    *(release, hidden, modern, gallery),
)
_IN_LANGUAGES = (news, blog)


def samples(draw: int = 0, scale: int = 1) -> list[Sample]:
    """Return every kind of page in English, and news and blogs in seven languages more.

    Args:
        draw: other words for every number.
        scale: how many times as long texts, menus and footers are.
    """
    found = []
    asked = [(kind, "en") for kind in _KINDS] + [(_IN_LANGUAGES[n % 2], code) for n, code in enumerate(_FOREIGN)]
    for kind, language in asked:
        writer = Writer(f"{kind.__name__}/{language}/{draw}", language, scale)
        title = " ".join(writer.noise().split()[:6]).strip(",.;。")
        page = kind(writer, title)
        found.append(Sample(f"{kind.__name__}-{language}", page, "\n".join(writer.gold)))
    return found
