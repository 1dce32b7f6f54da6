"""The tree of all pages beside every page, written once: Sphinx makes it anew for each page, which was most of what a
build took. Of two pages' trees only the way from page to page differs, and what is marked as current. The theme then
reads the whole tree again for each page to give it folds; that is done once, too."""

import re
from functools import cache
from posixpath import dirname, relpath

TOKEN = re.compile(r'<(/?)(ul|li)\b([^>]*)>|<a class="([^"]*)" href="([^"#]*)">')


def tree_at(
    tree,  # HTML of the whole tree, as it stands on a page that is not in it, in the site's own folder
    page,  # address of a page within the site
):  # -> HTML
    "The tree beside a page: what leads to the page is current, and links begin there."
    current = _way_to(tree, page)
    folder = dirname(page) or '.'

    def one(m):
        closing, tag, attributes, classes, href = m.groups()
        if href is not None:
            if href == page:
                return f'<a class="current {classes}" href="#">'
            return f'<a class="{classes}" href="{_from(folder, href)}">'
        if closing or m.start() not in current:
            return m[0]
        named = re.search(r'class="([^"]*)"', attributes)
        return f'<{tag} class="{f"{named[1]} " if named else ""}current">'

    return TOKEN.sub(one, tree)


@cache
def _from(folder, href):
    "A link to a page, from a folder of the site; links to elsewhere stay."
    return href if '://' in href else relpath(href, folder)


def _way_to(tree, page):  # -> set of places in the text
    "Where the lists and entries begin that lead to a page."
    stack = []
    for m in TOKEN.finditer(tree):
        if m[5] == page:
            return set(stack)
        if m[2]:
            stack.pop() if m[1] else stack.append(m.start())
    return set()


CURRENT = re.compile(
    r'<li class="([^"]*) current">(<a\b[^>]*>(?:(?!</?li\b).)*?</a>)?(<details(?: open="[^"]*")?>)?', re.DOTALL
)


def folds_at(
    folded,  # HTML of the whole tree with the theme's folds, as it stands on a page that is not in it
    page,  # address of a page within the site
):  # -> HTML
    "The folded tree beside a page: as `tree_at`, and the folds that hold the page are open."
    opened = r'<details open="open">'

    def one(m):
        classes, link, fold = m.groups()
        return f'<li class="{classes} current active">{link or ""}{opened if fold else ""}'

    return CURRENT.sub(one, tree_at(folded, page))


def _whole(app, how):
    "The whole tree for some options, as it stands on a page that is not in it."
    kept, key = app.__dict__.setdefault('lab_trees', {}), tuple(sorted(how.items()))
    if key not in kept:
        kept[key] = app.builder._get_local_toctree(app.config.root_doc, **how)
    return kept[key]


def share_the_tree(app, pagename, templatename, context, doctree):
    "Sphinx's hook `html-page-context`: pages take the tree from here."
    context['toctree'] = lambda **how: tree_at(_whole(app, how), app.builder.get_target_uri(pagename))


def share_the_folds(app, pagename, templatename, context, doctree):
    "Sphinx's hook `html-page-context`, after the theme's: the tree beside pages is given its folds once."
    theirs, kept = context['generate_toctree_html'], app.__dict__.setdefault('lab_folds', {})

    def folds(kind, startdepth=1, show_nav_level=1, **how):
        if kind != 'sidebar' or startdepth:
            return theirs(kind=kind, startdepth=startdepth, show_nav_level=show_nav_level, **how)
        key = (show_nav_level, *sorted(how.items()))
        if key not in kept:
            here, context['toctree'] = context['toctree'], lambda **asked: _whole(app, asked)
            kept[key] = str(theirs(kind=kind, startdepth=startdepth, show_nav_level=show_nav_level, **how))
            context['toctree'] = here
        return folds_at(kept[key], app.builder.get_target_uri(pagename))

    context['generate_toctree_html'] = folds
