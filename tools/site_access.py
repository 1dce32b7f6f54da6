"""What the theme and Sphinx leave without a name, and lists that are none: mended in the pages that were written."""

import re

FOLD = re.compile(r'(<a class="[^"]*" href="[^"]*">((?:(?!</a>).)*)</a><details[^>]*>\s*<summary)(?=>)', re.S)
SEARCH = re.compile(r'(<button class="btn search-button-field[^>]*?) aria-label="[^"]*"')
PARAMETERS = re.compile(r'(<span class="sig-paren">\(</span>\s*)<dl>(.*?)</dl>(?=\s*<span class="sig-paren">\))', re.S)


def parameters(m):
    "A signature's parameters, a line each: they are shown as terms of a list, and are none."
    lines = re.sub(r'<(/?)dd>', r'<\1span>', m[2]).replace('<span><em', '<span class="lab-parameter"><em')
    return f'{m[1]}<span class="lab-parameters">{lines}</span>'


def mended(html):  # of a page -> HTML
    "A page whose folds and buttons have names, and whose lists are lists."
    html = FOLD.sub(lambda m: f'{m[1]} aria-label="Pages under {re.sub("<[^>]*>", "", m[2])}"', html)
    return PARAMETERS.sub(parameters, SEARCH.sub(r'\1', html))


def mend(site):  # folder
    "Mend all pages of a built site, in place."
    for path in site.rglob('*.html'):
        text = path.read_text(encoding='utf-8')
        better = mended(text)
        if better != text:
            path.write_text(better, encoding='utf-8')
