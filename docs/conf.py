"""Sphinx settings of the site. tools/docs.py prepares the sources and says where the vendored scripts lie."""

import os
import sys
from configparser import ConfigParser
from pathlib import Path

here = Path(__file__).parent
sys.path.insert(0, str(here.parent / 'tools'))

import site_sidebar

import site_api

_s = ConfigParser(delimiters=['='])
_s.read(here.parent / 'settings.ini', encoding='utf-8')
_s = _s['DEFAULT']

project = _s['title']
author = _s['author']
release = _s['version']
copyright = _s['copyright']
extensions = ['myst_nb', 'sphinx.ext.autodoc', 'sphinx.ext.linkcode']
exclude_patterns = ['CONTRIBUTING.md', 'CHANGELOG.md', 'data', 'vlm2rec_lab']
nb_execution_mode = 'off'  # tools/docs.py executes; notebooks keep the outputs that they hold
nb_render_markdown_format = 'myst'  # tables in outputs are tables
nb_merge_streams = True
nb_output_stderr = 'remove'
nb_ipywidgets_js = {
    'require.js': {},
    'widgets.js': {},
    'embed-amd.js': {'data-jupyter-widgets-cdn': '_static/'},
}  # files of this site, fetched where a page shows widgets
myst_enable_extensions = ['dollarmath', 'amsmath', 'html_image', 'attrs_inline']
myst_heading_anchors = 4
myst_dmath_double_inline = True
suppress_warnings = ['myst.header']
python_maximum_signature_line_length = 72
add_module_names = False
smartquotes_action = 'qe'  # two hyphens are an option of a command, no dash
autodoc_default_options = {'undoc-members': True, 'no-value': True}
autodoc_member_order = 'bysource'
autodoc_preserve_defaults = True  # as they are written
linkcode_resolve = site_api.where_made
toc_object_entries_show_parents = 'hide'

html_theme = 'sphinx_book_theme'
html_title = project
html_search_scorer = str(here / 'scorer.js')
templates_path = ['_templates']
html_static_path = ['_static', os.environ['LAB_STATIC']]
html_extra_path = ['_extra']  # what a host shows for a page that is not there
html_css_files = ['lab.css']
html_favicon = '_static/mark.svg'
html_logo = '_static/mark.svg'
html_copy_source = False
html_context = {'default_mode': 'auto'}  # the reader's system decides between light and dark until the switch is used
html_show_sphinx = False
mathjax_path = 'tex-svg.js'
mathjax3_config = {'options': {'enableMenu': False}}  # its menu can load speech rules from elsewhere
html_theme_options = dict(
    logo={'text': project},
    use_download_button=False,
    use_fullscreen_button=False,
    show_toc_level=2,
    show_navbar_depth=1,
    navbar_persistent=[],
    navigation_with_keys=False,
    back_to_top_button=True,
)  # arrow keys belong to figures and widgets


def figures(app, pagename, templatename, context, doctree):
    "Pages with figures get plotly; others are spared its megabytes."
    body = context.get('body', '')
    if 'class="lab-figure"' in body:
        app.add_js_file('plotly.min.js', priority=100)  # before require.js, which would take it in as a module
    if 'class="lab-figure"' in body or 'class="lab-page"' in body:
        app.add_js_file('figures.js')


def setup(app):
    site_api.setup(app)
    app.connect('html-page-context', figures)
    app.connect('html-page-context', site_sidebar.share_the_tree, priority=100)  # before the theme asks for it
    app.connect('html-page-context', site_sidebar.share_the_folds, priority=100)
