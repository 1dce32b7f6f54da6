"""The tree of all pages beside every page, written once: Sphinx makes it anew for each page, which was most of what a
build took. Of two pages' trees only the way from page to page differs, and what is marked as current."""

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


def share_the_tree(app, pagename, templatename, context, doctree):
    "Sphinx's hook `html-page-context`: pages take the tree from here."
    kept, builder, root = app.__dict__.setdefault('lab_trees', {}), app.builder, app.config.root_doc

    def toctree(**how):
        key = tuple(sorted(how.items()))
        if key not in kept:
            kept[key] = builder._get_local_toctree(root, **how)
        return tree_at(kept[key], builder.get_target_uri(pagename))

    context['toctree'] = toctree
