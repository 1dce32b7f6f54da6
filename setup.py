"""Packaging: everything is read from settings.ini."""

import shlex
from configparser import ConfigParser
from pathlib import Path

import setuptools

here = Path(__file__).parent
config = ConfigParser(delimiters=['='])
config.read(here / 'settings.ini', encoding='utf-8')
s = config['DEFAULT']


def needs(key):
    "The requirements that stand under a key of settings.ini."
    return shlex.split(s.get(key, ''))


readme = here / 'README.md'
shipped = here / 'data' / 'tiny_vlm'


def shared(name):
    "The files of a folder of data/, and where an installation has them."
    return f'share/vlm2rec_lab/{name}', sorted(str(p.relative_to(here)) for p in (here / 'data' / name).glob('*'))


setuptools.setup(
    name=s['lib_name'],
    version=s['version'],
    description=s['description'],
    author=s['author'],
    author_email=s['author_email'],
    license='Apache-2.0',
    url=s['git_url'],
    keywords=s['keywords'],
    python_requires=f">={s['min_python']}",
    packages=setuptools.find_packages(include=[s['lib_path'], f"{s['lib_path']}.*"]),
    package_data={s['lib_path']: ['*/*.js', '*/*.css']},
    install_requires=needs('requirements'),
    extras_require={
        'lab': needs('lab_requirements'),
        'dev': needs('dev_requirements'),
        'docs': needs('docs_requirements'),
        'real': needs('real_requirements'),
        'flower': needs('flower_requirements'),
        'privacy': needs('privacy_requirements'),
        'words': needs('words_requirements'),
        'sentence': needs('sentence_requirements'),
        'serve': needs('serve_requirements'),
        'faiss': needs('faiss_requirements'),
        'dask': needs('dask_requirements'),
        'trackers': needs('trackers_requirements'),
        'hub': needs('hub_requirements'),
        'mteb': needs('mteb_requirements'),
    },
    data_files=[shared(f'tiny_vlm/{d.name}') for d in sorted(shipped.glob('*'))]
    + [shared(name) for name in ('tiny_t5', 'story')],
    entry_points={'console_scripts': needs('console_scripts'), 'nbdev': [f"{s['lib_path']}={s['lib_path']}._modidx:d"]},
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else '',
    long_description_content_type='text/markdown',
)
