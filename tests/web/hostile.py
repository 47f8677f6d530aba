"""What an enemy would have us open: addresses, redirects, answers of name servers, headers, and pages with scripts.

Each row is tried in a world of its own (`siege.py`), where every address that there is leads to a listening canary, save for
`SITE` and `DEAD`. `{n}` is the row's number.
"""

from __future__ import annotations

from dataclasses import dataclass

SITE, DEAD = "93.184.216.34", "93.184.216.99"
PORTS = (22, 25, 53, 80, 443, 3000, 6379, 8080, 9222)

LOOPBACK = (
    *(
        "127.0.0.1",
        "127.1",
        "127.0.0.1.",
        "2130706433",
        "0x7f000001",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "017700000001",
        "0",
        "127.0.1",
    ),
    *("127。0。0。1", "127．0．0．1", "①②⑦.⓪.⓪.①", "１２７.0.0.1", "[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "127.255.255.254"),
    *("[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::127.0.0.1]", "[64:ff9b:1::7f00:1]"),
    *("[2002:7f00:1::]", "[2001:0:7f00:1::]", "[2001:db8::1]", "[2606:4700::5efe:127.0.0.1]", "[2606:4700::200:5efe:10.0.0.1]"),
    *("[::1%25lo]", "localhost", "LOCALHOST", "localhost.", "ｌｏｃａｌｈｏｓｔ", "a.localhost", "localhost.localdomain.local"),
    *("router", "a.internal", "0x7f.1", "00000177.1", "127.0.0.1%00.example.org", "127.0.0.1%20", "%31%32%37.0.0.1"),
)
PRIVATE = (
    *("10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254", "169.254.170.2", "100.64.0.1"),
    *("100.100.100.200", "0.0.0.0", "255.255.255.255", "224.0.0.1", "239.255.255.250", "240.0.0.1", "192.0.0.192"),
    *("192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "192.88.99.1", "168.63.129.16"),
    *("[fe80::1]", "[fc00::1]", "[fd00:ec2::254]", "[ff02::1]", "[fec0::1]", "[3fff::1]", "[100::1]", "[5f00::1]"),
    *("metadata.google.internal", "METADATA.google.internal.", "metadata.goog", "metadata", "instance-data.ec2.internal"),
    *(
        "169.254.169.254.",
        "0xa9fea9fe",
        "0251.0376.0251.0376",
        "2852039166",
        "[::ffff:169.254.169.254]",
        "[64:ff9b::a9fe:a9fe]",
    ),
    *("metadata。google。internal", "metadata.azure.com", "printer.local", "nas.lan", "gateway.home.arpa", "x.onion"),
)
ODD = (
    *("http://user@127.0.0.1/", "http://site.example@127.0.0.1/", "http://site.example%2f@127.0.0.1/", "http://127.0.0.1@site.example/"),
    *("http://site.example\\@127.0.0.1/", "http://127.0.0.1\\@site.example/", "http://site.example#@127.0.0.1:8080"),
    *("http://site.example:80@127.0.0.1/", "http://127.0.0.1:80\\.site.example/", "http://[::1]@site.example/"),
    *("http://127.0.0.1:8080/", "http://[::1]:6379/", "http://site.example:22/", "http://site.example:8080/", "https://site.example:25/"),
    *("http://site.example:0/", "http://site.example:99999/", "http://127.0.0.1:{n}/", "http:127.0.0.1/", "http:/127.0.0.1/"),
    *("http:///127.0.0.1/", "//127.0.0.1/", "ftp://127.0.0.1/", "file:///etc/passwd", "file://127.0.0.1/etc/passwd"),
    *("gopher://127.0.0.1:6379/_INFO", "dict://127.0.0.1:6379/", "ws://127.0.0.1/", "ldap://127.0.0.1/", "data:text/html,x"),
    *("javascript:location='http://127.0.0.1/'", "view-source:http://127.0.0.1/", "blob:http://127.0.0.1/x", "chrome://version"),
    *("about:blank", "jar:http://127.0.0.1!/", "http://127.0.0.1\t/", "http://127.0.0.1\n.site.example/", "ht\ntp://127.0.0.1/"),
    *("http://127.0.0.1\0.site.example/", "http://site.example\r\nHost: 127.0.0.1/", " http://127.0.0.1/ ", "http://127.0.0.1?.site.example/"),
    *("http://127.0.0.1#.site.example/", "http://127.0.0.1;site.example/", "http://127.0.0.1,site.example/", "http://①②⑦.0.0.1:80/"),
    *("http://lo\u00adcalhost/", "http://local\u200bhost/", "http://localhost\u3002/", "http://⑩.⓪.⓪.①/", "http://[::ffff:0:127.0.0.1]/"),
)  # fmt: skip
URLS = tuple(f"http://{host}/" for host in LOOPBACK + PRIVATE) + ODD

REDIRECTS = (
    *(f"http://{host}/" for host in ("127.0.0.1", "0", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "localhost")),
    *(f"http://{host}/" for host in ("10.0.0.1", "169.254.169.254", "metadata.google.internal", "inner.example", "[fd00::1]")),
    "http://127。0。0。1/",
    *("//127.0.0.1/", "///127.0.0.1/", "\\\\127.0.0.1\\", "/\\127.0.0.1/", "http:127.0.0.1", "http:/\\127.0.0.1/", " http://127.0.0.1/"),
    *("https://127.0.0.1/", "https://inner.example/", "http://user:word@site.example/", "http://site.example@127.0.0.1/"),
    *("http://site.example:8080/", "http://127.0.0.1:6379/", "file:///etc/passwd", "gopher://127.0.0.1:6379/", "javascript:1"),
    *("http://site.example/chain/3?to=http://127.0.0.1/", "http://site.example/chain/2?to=http://inner.example/", "http://[bad"),
    *("http://127.0.0.1\thttp://site.example/", "http://site.example\u3002@127.0.0.1/", "http://twist.example/", "http://mixed.example/"),
)  # fmt: skip

# What a name server says to one question after the other, the last answer for ever. A name beginning with "=" is an alias.
NAMES: dict[str, tuple[tuple[str, ...], ...]] = {
    "site.example": ((SITE,),),
    "inner.example": (("10.0.0.1",),),
    "loop.example": (("127.0.0.1",),),
    "loop6.example": (("::1",),),
    "both.example": (("127.0.0.1", "::1"),),
    "zero.example": (("0.0.0.0",),),
    "zero6.example": (("::",),),
    "mapped.example": (("::ffff:127.0.0.1",),),
    "mapped-link.example": (("::ffff:169.254.169.254",),),
    "compat.example": (("::127.0.0.1",),),
    "nat64.example": (("64:ff9b::7f00:1",),),
    "nat64-local.example": (("64:ff9b:1::a00:1",),),
    "6to4.example": (("2002:7f00:1::1",),),
    "teredo.example": (("2001:0:7f00:1::1",),),
    "isatap.example": (("2606:4700::5efe:10.0.0.1",),),
    "ula.example": (("fd00::1",),),
    "link.example": (("169.254.169.254",),),
    "link6.example": (("fe80::1",),),
    "carrier.example": (("100.64.0.1",),),
    "multi.example": (("224.0.0.1",),),
    "broadcast.example": (("255.255.255.255",),),
    "docs.example": (("192.0.2.1",),),
    "azure.example": (("168.63.129.16",),),
    "alias.example": (("=metadata.google.internal",),),
    "alias-loop.example": (("=localhost",),),
    "metadata.google.internal": (("169.254.169.254",),),
    "mixed.example": ((SITE, "127.0.0.1", "10.0.0.1", "::1"),),
    "dead-first.example": (
        (DEAD, "127.0.0.1", "192.168.0.1", "fd00::1"),
    ),  # where the public one fails, is the next one tried?
    "twist.example": ((SITE,), ("127.0.0.1",)),
    "twist-back.example": (("127.0.0.1",), (SITE,)),
    "twist6.example": ((SITE,), ("::1",)),
    "twist-dead.example": ((DEAD,), ("127.0.0.1",)),  # every new attempt asks again
    "flip.example": ((SITE,), ("10.0.0.1",), (SITE,), ("127.0.0.1",)),
    "many.example": (tuple(f"10.0.0.{n}" for n in range(1, 25)),),
    "none.example": ((),),
    "127.0.0.1.nip.example": (("127.0.0.1",),),
    "localhost.example": (("127.0.0.1",),),
}
DNS = tuple(name for name in NAMES if name not in ("site.example", "metadata.google.internal"))


@dataclass(frozen=True, slots=True)
class Sent:
    """What the site sends for one row."""

    headers: tuple[tuple[str, str], ...] = ()
    body: str = "<p>Nothing to see."
    status: int = 200


_IN = "http://127.0.0.1:8080/"
HEADERS = (
    *(Sent((("Location", _IN),), status=status) for status in (200, 201, 204, 300, 304, 305, 306, 403, 404)),
    *(Sent((("Location", _IN),), status=status) for status in (301, 303, 307, 308)),
    Sent((("Location", "http://site.example/page"), ("Location", _IN)), status=302),
    Sent((("Location", _IN), ("Location", "http://site.example/page")), status=302),
    Sent((("Content-Location", _IN), ("URI", _IN)), status=302),
    Sent((("Refresh", f"0; url={_IN}"),)),
    Sent((("Link", f"<{_IN}>; rel=preload; as=script, <{_IN}>; rel=preconnect, <{_IN}>; rel=prefetch"),)),
    Sent((("Link", f"<{_IN}>; rel=prerender, <//loop.example>; rel=dns-prefetch, <{_IN}>; rel=modulepreload"),)),
    Sent((("Alt-Svc", 'h2="127.0.0.1:8080"; ma=9, h3="127.0.0.1:443"; persist=1'),)),
    Sent((("Use-Proxy", "127.0.0.1:8080"), ("Proxy", _IN), ("Set-Proxy", f"SET; proxyURI={_IN}")), status=407),
    Sent((("Report-To", f'{{"max_age":1,"endpoints":[{{"url":"{_IN}"}}]}}'), ("NEL", '{"report_to":"x","max_age":9}'))),
    Sent((("Content-Security-Policy", f"default-src 'none'; report-uri {_IN}"),), "<script src='http://site.example/x'></script>"),
    Sent((("SourceMap", _IN), ("X-SourceMap", _IN), ("X-Accel-Redirect", "/etc/passwd"), ("X-Sendfile", "/etc/passwd"))),
    Sent((("Set-Cookie", "a=b; Domain=127.0.0.1"), ("Clear-Site-Data", '"*"'), ("Speculation-Rules", f'"{_IN}"'))),
    Sent((("Access-Control-Allow-Origin", "*"), ("Early-Data", "1"), ("Upgrade", "websocket, h2c"), ("Content-Base", _IN))),
    Sent((("Content-Type", f"message/external-body; access-type=URL; URL={_IN}"),)),
    Sent((("Content-Type", "multipart/x-mixed-replace; boundary=x"),), f"--x\nLocation: {_IN}\n\n--x--"),
    Sent((("Content-Type", "application/x-ns-proxy-autoconfig"),), f"function FindProxyForURL() {{ return 'PROXY {_IN}' }}"),
)  # fmt: skip

_TAGS = (
    *('<img src="@@">', '<script src="@@"></script>', '<iframe src="@@"></iframe>', '<object data="@@"></object>'),
    *('<embed src="@@">', '<link rel=stylesheet href="@@">', '<link rel=preload as=fetch href="@@">'),
    *('<link rel=prefetch href="@@">', '<link rel=preconnect href="@@">', '<link rel=dns-prefetch href="@@">'),
    *('<link rel=prerender href="@@">', '<link rel=modulepreload href="@@">', '<link rel=icon href="@@">'),
    *('<link rel=manifest href="@@">', '<audio src="@@">', '<video src="@@">', '<meta http-equiv=refresh content="0; url=@@">'),
    '<base href="@@"><img src=x><script src=y></script>',
    *('<svg><image href="@@"/>', '<style>@import "@@"; body { background: url(@@) }</style>'),
    *('<style>@font-face { font-family: a; src: url(@@) }</style><p style="font: 9px a">x',),
    *('<form id=f action="@@" method=post></form><script>f.submit()</script>', '<iframe srcdoc="<img src=@@>"></iframe>'),
    *('<a id=a href="@@" ping="@@">x</a><script>a.click()</script>', '<a id=a href="@@" download>x</a>'),
    *('<script type=speculationrules>{"prerender":[{"source":"list","urls":["@@"]}]}</script>', '<frameset><frame src="@@">'),
)  # fmt: skip
_SCRIPTS = (
    *("fetch('@@',{mode:'no-cors'})", "fetch('@@',{method:'POST',body:'x',mode:'no-cors'})", "location='@@'", "open('@@')"),
    *("let x=new XMLHttpRequest;x.open('GET','@@');x.send()", "navigator.sendBeacon('@@','x')", "new EventSource('@@')"),
    *("import('@@')", "new Worker('@@')", "new SharedWorker('@@')", "navigator.serviceWorker.register('@@')"),
    "new Image().src='@@'",
    "new Worker(URL.createObjectURL(new Blob([\"fetch('@@',{mode:'no-cors'});importScripts('@@')\"])))",
    "new SharedWorker(URL.createObjectURL(new Blob([\"fetch('@@',{mode:'no-cors'});importScripts('@@')\"])))",
    "let a=document.createElement('iframe');document.body.append(a);a.contentWindow.fetch('@@',{mode:'no-cors'})",
    "history.pushState(0,'','/x');setTimeout(()=>location.replace('@@'),50)",
    "addEventListener('pagehide',()=>navigator.sendBeacon('@@'));setTimeout(()=>location='http://site.example/x',50)",
    "fetch('http://site.example/redirect?to=@@')",
)  # fmt: skip
_SOCKETS = (
    *("new WebSocket('ws://@@/')", "new WebSocket('wss://@@/')", "new WebTransport('https://@@/')"),
    "new Worker(URL.createObjectURL(new Blob([\"new WebSocket('ws://@@/')\"])))",
    "new Worker(URL.createObjectURL(new Blob([\"new WebTransport('https://@@/')\"])))",
    "let p=new RTCPeerConnection({iceServers:[{urls:'stun:@@'},{urls:'turn:@@?transport=tcp',username:'a',credential:'b'}]});"
    "p.createDataChannel('x');p.createOffer().then(o=>p.setLocalDescription(o))",
    "let p=new RTCPeerConnection();p.setRemoteDescription({type:'offer',sdp:'v=0\\r\\no=- 1 1 IN IP4 @@\\r\\n"
    "s=-\\r\\nt=0 0\\r\\na=ice-ufrag:abcd\\r\\na=ice-pwd:abcdefghijklmnopqrstuvwx\\r\\n'}).catch(()=>0)",
)  # fmt: skip
_PLACES = ("127.0.0.1:8080", "[::1]:8080", "10.0.0.1", "169.254.169.254", "loop.example", "twist.example")
_FROM_A_SCRIPT = "fetch(@@,{mode:'no-cors'}).catch(()=>0);"
_FROM_A_FRAME = "f=document.createElement('iframe');f.src=@@;document.body.append(f);"


def _page(body: str) -> Sent:
    return Sent(body=f"<!doctype html><title>x</title><body><p>A page.</p>{body}")


def _script(code: str) -> Sent:
    return _page(f"<script>try{{{code}}}catch(e){{}}</script>")


def _aimed(texts: tuple[str, ...]) -> list[str]:
    """Each text aimed at the next of the places."""
    return [text.replace("@@", f"http://{_PLACES[n % len(_PLACES)]}/{n}") for n, text in enumerate(texts)]


# Every way out that a page has, each to another place inside; sockets also to a public one, where no page may go by itself;
# and all the addresses above, twenty by twenty.
PAGES = (
    *map(_page, _aimed(_TAGS)),
    *map(_script, _aimed(_SCRIPTS)),
    *(
        _script(text.replace("@@", place))
        for text in _SOCKETS
        for place in ("127.0.0.1:8080", "10.0.0.1:443", "8.8.8.8:443", "leak.example:80")
    ),
    *(
        _script("".join(text.replace("@@", repr(url)) for url in URLS[start : start + 20]))
        for text in (_FROM_A_SCRIPT, _FROM_A_FRAME)
        for start in range(0, len(URLS), 20)
    ),
)
