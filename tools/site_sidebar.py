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
    "Sphinx's hook `html-page-context`: our template of the sidebar takes the folded tree from here, `folded_tree()`."
    kept = app.__dict__.setdefault('lab_folds', [])

    def folded_tree():
        if not kept:
            here, context['toctree'] = context['toctree'], lambda **asked: _whole(app, asked)
            kept.append(str(context['generate_toctree_html'](kind='sidebar', startdepth=0, **_wishes(context))))
            context['toctree'] = here
        return folds_at(kept[0], app.builder.get_target_uri(pagename))

    context['folded_tree'] = folded_tree


def _wishes(context):
    "What the settings of the theme say of the tree."
    deep, level = int(context['theme_max_navbar_depth']), int(context['theme_show_navbar_depth'])
    closed = str(context['theme_collapse_navbar']).lower() == 'true'
    return dict(maxdepth=deep, collapse=closed, includehidden=True, titles_only=True, show_nav_level=level)
