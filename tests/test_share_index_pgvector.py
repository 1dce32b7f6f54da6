"""The statements on the page on pgvector, run in a PostgreSQL of its own, give the answers of the index."""

import os
import re
from pathlib import Path

import pytest
from pgvector_cluster import binaries, cluster

from vlm2rec_lab.share.segments import unit_rows

PAGE = Path(__file__).resolve().parent.parent / 'docs' / 'pgvector.md'
BINARIES = binaries()

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(BINARIES is None, reason='no PostgreSQL with pgvector: apt-get install postgresql-15-pgvector'),
]


def fences(language):
    "The fences of the page in one language."
    return re.findall(rf'^```{language}\n(.*?)^```$', PAGE.read_text(), re.M | re.S)


def test_what_the_page_says_is_what_postgresql_answers():
    room = {}
    for code in fences('python')[:-1]:
        exec(code, room)
    index, asked, weights, written = (room[k] for k in ('index', 'asked', 'weights', 'written'))
    make, below, others, graph = fences('psql')
    values = dict(asked=written(room['fused_queries'](asked, weights)[0]))
    values |= {m: written(unit_rows(x)[0]) for m, x in asked.items()}
    os.chmod(room['folder'], 0o755)
    with cluster(BINARIES) as sql:
        sql(make.replace("'items.csv'", f"'{room['folder']}/items.csv'"))
        assert sql('SELECT count(*), count(image) FROM items;') == '300|288\n'
        expected = index.query(asked, 5, weights, where=[('price', '<=', 40)]).ids[0].tolist()
        assert sql(below, **values).split() == expected
        assert sql(others, **values).split() == index.query(asked, 5, dict(text=0.2, image=0.8)).ids[0].tolist()
        assert sql(graph, **values).split() == index.query(asked, 5, weights).ids[0].tolist()
        scores = sql("SELECT -(fused <#> :'asked') FROM items ORDER BY fused <#> :'asked' LIMIT 5;", **values).split()
        found = index.query(asked, 5, weights).scores[0]
        assert max(abs(float(a) - b) for a, b in zip(scores, found)) < 1e-6
