"""Readers on files in the form of their sources, whole and broken: every interaction is in the dataset or counted in a note, or the error names file and place. Written here, and the shared data where it lies beside."""

import gzip
import io
import json
import math
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from vlm2rec_lab.data import Catalogue, DataError, DataWarning, Interactions, leave_one_out, load_folder
from vlm2rec_lab.shop.readers import (
    _fast_block,
    _slow_block,
    _Bad,
    amazon,
    filtered,
    hm,
    hugging_face,
    k_core,
    log_file,
    microlens,
    movielens,
    read_log,
    sequence_file,
)

SHARED = Path(__file__).resolve().parent.parent.parent / 'shared' / 'data'
if not SHARED.is_dir() and Path('../shared/data').is_dir():
    SHARED = Path('../shared/data').resolve()
shared = pytest.mark.skipif(not SHARED.is_dir(), reason='no ../shared/data here')
pytestmark = pytest.mark.filterwarnings('ignore::vlm2rec_lab.data.DataWarning')
LOOSE = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def put(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content if isinstance(content, bytes) else content.encode('utf-8', 'surrogatepass')
    path.write_bytes(gzip.compress(data) if name.endswith('.gz') else data)
    return path


def lines(rows):
    return ''.join(json.dumps(r) + '\n' for r in rows)


def png(colour='red', kind='PNG'):
    out = io.BytesIO()
    Image.new('RGB', (6, 4), colour).save(out, kind)
    return out.getvalue()


def sequences(ds):
    return {u: [ds.catalogue.ids[i] for i in s] for u, s in zip(ds.interactions.user_ids, ds.interactions.sequences)}


def repeats(notes):
    return sum(int(m[1].replace(',', '')) for n in notes for m in [re.search(r': ([\d,]+) rows? repeating', n)] if m)


def malformed(notes):
    return sum(
        int(m[1].replace(',', '')) for n in notes for m in [re.search(r': ([\d,]+) of [\d,]+ lines? malformed', n)] if m
    )


# ---- the data that lies beside the project


@shared
def test_shared_beauty():
    ds = sequence_file(SHARED / 'seq_beauty' / 'Beauty.txt')
    assert (len(ds.interactions), len(ds.catalogue), len(ds.interactions.items)) == (22363, 12101, 198502)
    assert (ds.interactions.lengths.min(), ds.interactions.lengths.max(), ds.notes) == (5, 204, ())
    assert len(leave_one_out(ds).test) == 22363
    other = load_folder(SHARED / 'seq_beauty', text=['attributes', 'machine_keywords'])
    assert (len(other.interactions), len(other.catalogue), len(other.interactions.items)) == (22363, 12101, 198502)
    assert sequences(ds) == sequences(other)
    named = sequence_file(
        SHARED / 'seq_beauty' / 'Beauty.txt',
        SHARED / 'seq_beauty' / 'items.csv',
        text=['attributes', 'machine_keywords'],
    )
    i = named.catalogue.ids.index('1')
    assert (
        named.catalogue.content['text'][i] == other.catalogue.content['text'][other.catalogue.ids.index('1')]
        and 'OPI' in named.catalogue.content['text'][i]
    )
    assert (
        len(sequence_file(SHARED / 'seq_beauty' / 'Beauty.txt', core=5).interactions.items) == 198502
    )  # it is a 5-core


@shared
def test_shared_movielens():
    ds = load_folder(SHARED / 'ml100k_mm', check=False)
    gone = ds.catalogue.missing()
    assert (len(ds.interactions), len(ds.catalogue), len(ds.interactions.items)) == (943, 1682, 100000) and (
        ~gone['image']
    ).sum() == 1589
    plots = load_folder(SHARED / 'ml100k_mm', text=['plot'], image={}).catalogue
    assert (~plots.missing()['text']).sum() == 1671
    log = log_file(SHARED / 'ml100k_mm' / 'interactions.csv', SHARED / 'ml100k_mm' / 'items.csv', check=False)
    assert sequences(log) == sequences(ds) and (log.interactions.times == ds.interactions.times).all()


# ---- the fast way is the plain way


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('form', ['csv', 'csv.gz', 'parquet', 'jsonl', 'tsv'])
def test_parity_with_from_frame(tmp_path, seed, form):
    rng = np.random.default_rng(seed)
    n = 5000
    df = pd.DataFrame(
        {
            'user_id': [f'u{x}' for x in rng.zipf(1.4, n) % 300],
            'rating': rng.integers(1, 6, n),
            'item_id': [f'i,"{x}"' for x in rng.zipf(1.3, n) % 200],
            'timestamp': rng.integers(0, 50, n) + (rng.random(n) if seed == 3 else 0),
        }
    )
    path = tmp_path / f'log.{form}'
    if form == 'parquet':
        df.to_parquet(path)
    elif form == 'jsonl':
        path.write_text(lines(df.to_dict('records')))
    else:
        df.to_csv(path, index=False, sep='\t' if form == 'tsv' else ',')
    said, told = [], []
    cat = Catalogue(tuple(dict.fromkeys(df['item_id'])), {}, {})
    frame = df.set_index(np.arange(n) + (1 if form in ('parquet', 'jsonl') else 2))
    plain, fast = Interactions.from_frame(frame, cat, where=path.name, notes=said), log_file(path)
    assert fast.catalogue.ids == cat.ids and fast.interactions.user_ids == plain.user_ids
    for part in ('offsets', 'items', 'times'):
        assert (getattr(fast.interactions, part) == getattr(plain, part)).all(), part
    count = lambda notes: [re.sub('timestamp', 'time', n) for n in notes]
    assert count(said) == count(fast.notes)  # the same rows are named
    log = read_log(path, rating='rating', notes=told)
    good = filtered(log, (3, 4), 3, told)
    kept = df.drop_duplicates(['user_id', 'item_id', 'timestamp'])
    kept = kept[kept['rating'] >= 3]
    while True:
        ok = kept.groupby('user_id')['item_id'].transform('size').ge(3) & kept.groupby('item_id')['user_id'].transform(
            'size'
        ).ge(4)
        if ok.all():
            break
        kept = kept[ok]
    assert len(good) == len(kept) and {
        (good.user_ids[u], good.item_ids[i]) for u, i in zip(good.users, good.items)
    } == set(zip(kept['user_id'], kept['item_id']))


@LOOSE
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=60), st.integers(1, 4), st.integers(1, 4))
def test_k_core_is_the_largest(pairs, ku, ki):
    u, i = np.array(pairs, np.int64).reshape(-1, 2).T
    keep, _ = k_core(u, i, ku, ki)
    left = set(range(len(u)))
    while gone := {k for k in left if sum(u[j] == u[k] for j in left) < ku or sum(i[j] == i[k] for j in left) < ki}:
        left -= gone
    assert set(np.flatnonzero(keep)) == left


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**25), 10**25),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.just({'a': 1}),
)


@LOOSE
@given(
    st.lists(
        st.one_of(
            st.fixed_dictionaries(
                {'u': st.sampled_from(['a', 'b', 3, ' c']), 'i': st.sampled_from(['x', 'y']), 't': st.integers(0, 9)},
                optional={'z': values},
            ),
            st.dictionaries(st.sampled_from(['u', 'i', 't', 'r']), values),
            values,
            st.just(''),
        ),
        max_size=8,
    )
)
def test_json_fast_block_is_the_slow_block(rows):
    block = b''.join((b'' if r == '' else json.dumps(r).encode()) + b'\n' for r in rows)
    fields = {'user': 'u', 'item': 'i', 'time': 't'}
    fast, bad = _fast_block(1, block, fields), _Bad('x', 1.0)
    slow = _slow_block(1, block, fields, bad)
    assert slow[0].num_rows + len(bad.lines) == slow[2] == sum(r != '' for r in rows)
    if fast is not None:
        assert (
            not bad.lines
            and [{k: v.strip() if isinstance(v, str) else v for k, v in r.items()} for r in fast[0].to_pylist()]
            == slow[0].to_pylist()
            and list(fast[1]) == list(slow[1])
        )


# ---- Amazon


def review_14(u, i, t, r=5.0, **more):
    return {
        'reviewerID': u,
        'asin': i,
        'reviewerName': 'Ann "A" Ünsal',
        'helpful': [0, 0],
        'reviewText': 'He said "good"\nand <br> more',
        'overall': r,
        'summary': '::',
        'unixReviewTime': t,
        'reviewTime': '01 2, 2014',
        **more,
    }


def review_18(u, i, t, r=5.0, **more):
    return {
        'overall': r,
        'verified': True,
        'reviewTime': '01 2, 2018',
        'reviewerID': u,
        'asin': i,
        'style': {'Color:': ' Red'},
        'reviewText': 'x',
        'unixReviewTime': t,
        **more,
    }


def review_23(u, i, t, r=5.0, **more):
    return {
        'rating': r,
        'title': 'Nice',
        'text': 'x',
        'images': [{'small_image_url': 'http://x/r.jpg'}],
        'asin': 'child' + i,
        'parent_asin': i,
        'user_id': u,
        'timestamp': t,
        'helpful_vote': 0,
        'verified_purchase': True,
        **more,
    }


def test_amazon_2014(tmp_path):
    reviews = put(
        tmp_path,
        'reviews_Beauty_5.json.gz',
        lines(
            [
                review_14('A1', 'B01', 1400000000),
                review_14('A1', 'B02', 1300000000, 1.0),
                review_14('A2', 'B01', '1350000000'),
                review_14('A2', 'B03', 1360000000),
            ]
        ),
    )
    meta = put(
        tmp_path,
        'meta_Beauty.json.gz',
        "{'asin': 'B01', 'description': 'Wom\\'n\\'s \"best\" \\xe9clair &amp; <b>bold</b> \\d', 'title': u'Cr\\xe8me', 'price': 9.5, 'imUrl': 'http://ecx/1.jpg', 'related': {'also_bought': ['B02']}, 'salesRank': {'Beauty': 4}, 'categories': [['Beauty', 'Skin']]}\n"
        "{'asin': 'B02'}\n{'asin': 'B01', 'title': 'Again'}\n{'asin': 'B09', 'title': 'Never chosen'}\n",
    )
    ds = amazon(reviews, meta)
    assert ds.name == 'Amazon 2014 Beauty' and sequences(ds) == {'A1': ['B02', 'B01'], 'A2': ['B01', 'B03']}
    assert ds.catalogue.content['text'] == [
        'Crème. category: Beauty, Skin. description: Wom\'n\'s "best" éclair & bold \\d',
        None,
        None,
    ]
    assert ds.catalogue.table['image_url'].tolist()[0] == 'http://ecx/1.jpg' and ds.catalogue.missing()[
        'text'
    ].tolist() == [False, True, True]
    said = ' | '.join(ds.notes)
    for part in (
        'line 3; the first of each is kept',
        '1 products without interactions left out',
        'B03; kept, without content',
        "2 items of 3 without 'text'",
    ):
        assert part in said, said
    assert 'B09' in amazon(reviews, meta, unseen=True).catalogue.ids
    assert (
        sequences(amazon(reviews, meta, min_rating=4))['A1'] == ['B01']
        and len(amazon(reviews, meta, core=(1, 2)).catalogue) == 1
    )


def test_amazon_2018(tmp_path):
    reviews = put(
        tmp_path,
        'All_Beauty_5.json.gz',
        lines([review_18('A1', 'B01', 1500000000), review_18('A1', 'B02', 1510000000, vote='3')]),
    )
    meta = put(
        tmp_path,
        'meta_All_Beauty.json.gz',
        lines(
            [
                {
                    'asin': 'B01',
                    'title': '<span>Tea &amp; more</span>',
                    'brand': 'Chà',
                    'category': ['Grocery', 'Tea'],
                    'description': ['<p>Green.</p>', ''],
                    'feature': ['a', 'b'],
                    'imageURL': ['https://m/s.jpg'],
                    'imageURLHighRes': ['https://m/l.jpg'],
                },
                {
                    'asin': 'B02',
                    'title': 'var aPageStart = (new Date()).getTime(); <script>x</script>',
                    'category': [],
                    'description': '',
                    'imageURL': [],
                    'imageURLHighRes': [],
                },
            ]
        ),
    )
    ds = amazon(reviews, meta, text=['title', 'brand', 'category', 'description', 'features'])
    assert ds.name == 'Amazon 2018 All_Beauty' and ds.catalogue.content['text'] == [
        'Tea & more. brand: Chà. category: Grocery, Tea. description: Green. features: a; b',
        None,
    ]
    assert ds.catalogue.table['image_url'].iat[0] == 'https://m/l.jpg' and any(
        '1 title holding a script' in n for n in ds.notes
    )


def test_amazon_2023(tmp_path):
    reviews = put(
        tmp_path,
        'All_Beauty.jsonl.gz',
        lines([review_23('A1', 'B01', 1600000000500), review_23('A1', 'B02', 1600000000400)]),
    )
    meta = put(
        tmp_path,
        'meta_All_Beauty.jsonl.gz',
        lines(
            [
                {
                    'main_category': 'All Beauty',
                    'title': 'Tea "x"',
                    'features': ['f'],
                    'description': ['d1', 'd2'],
                    'price': None,
                    'store': 'Howard',
                    'categories': [],
                    'parent_asin': 'B01',
                    'bought_together': None,
                    'images': [
                        {'thumb': 'https://m/t2.jpg', 'large': 'https://m/l2.jpg', 'variant': 'PT01', 'hi_res': None},
                        {
                            'thumb': 'https://m/t.jpg',
                            'large': 'https://m/l.jpg',
                            'variant': 'MAIN',
                            'hi_res': 'https://m/h.jpg',
                        },
                    ],
                },
                {'parent_asin': 'B02', 'title': None, 'images': []},
            ]
        ),
    )
    ds = amazon(reviews, meta)
    assert (
        ds.name == 'Amazon 2023 All_Beauty'
        and sequences(ds) == {'A1': ['B02', 'B01']}
        and ds.interactions.times.tolist() == [1600000000.4, 1600000000.5]
    )
    i = ds.catalogue.ids.index('B01')
    assert (
        ds.catalogue.content['text'][i] == 'Tea "x". brand: Howard. category: All Beauty. description: d1 d2'
        and ds.catalogue.table['image_url'].iat[i] == 'https://m/h.jpg'
    )
    table = put(
        tmp_path,
        'All_Beauty.csv',
        'user_id,parent_asin,rating,timestamp\nA1,B01,5.0,1600000000500\nA1,B02,1.0,1600000000400\n',
    )
    assert sequences(amazon(table, meta)) == sequences(ds) and sequences(amazon(table, meta, min_rating=2)) == {
        'A1': ['B01']
    }


def test_python_lines_are_never_run(tmp_path):
    marker = tmp_path / 'ran'
    reviews = put(tmp_path, 'reviews_X_5.json.gz', lines([review_14('A1', 'B01', 1)] * 1))
    attacks = [
        f"__import__('os').system('touch {marker}')",
        f"{{'asin': __import__('os').system('touch {marker}')}}",
        f"{{'asin': 'B01', 'title': open('{marker}', 'w').write('x')}}",
        f"{{'asin': [x for x in [open('{marker}', 'w')]]}}",
        f"(lambda: open('{marker}', 'w'))()",
        "{'asin': 'B01', 'title': 9**9**9}",
        '[' * 200_000,
        '-' * 200_000 + '1',
        "{'a':" * 50_000,
        '{"a":' * 200_000,
        "{'asin': '" + 'x' * (5 << 20) + "'}",
    ]
    for attack in attacks:
        meta = put(tmp_path, 'meta_X.json.gz', "{'asin': 'B01', 'title': 'Tea'}\n" + attack + '\n')
        with pytest.raises(DataError, match='meta_X.json.gz: line 2 is malformed'):
            amazon(reviews, meta)
        ds = amazon(reviews, meta, malformed=0.5)
        assert ds.catalogue.content['text'] == ['Tea'] and any(
            '1 of 2 lines malformed and left out: line 2' in n for n in ds.notes
        )
    assert not marker.exists()


BROKEN = {  # content of the file of reviews -> what is said
    'empty file': (b'', 'has no interactions'),
    'not JSON': (lines([review_14('a', 'b', 1)]).encode() + b'{"reviewerID": \n', 'line 2 is malformed: not JSON'),
    'a JSON array': (json.dumps([review_14('a', 'b', 1)]).encode(), 'line 1 is malformed: a list'),
    'two objects on a line': (
        lines([review_14('a', 'b', 1)]).encode() + (json.dumps(review_14('a', 'b', 2)) * 2).encode(),
        'line 2 is malformed',
    ),
    'not UTF-8': (
        lines([review_14('a', 'b', 1)]).encode()
        + lines([review_14('a', 'b', 2)]).encode().replace(b'helpful', b'h\xffpful'),
        'line 2 is malformed: byte',
    ),
    'no user': (
        lines(
            [review_14('a', 'b', 1), {k: v for k, v in review_14('a', 'b', 1).items() if k != 'reviewerID'}]
        ).encode(),
        'line 2 is malformed: None is no id',
    ),
    'null item': (
        lines([review_14('a', 'b', 1), review_14('a', None, 1)]).encode(),
        'line 2 is malformed: None is no id',
    ),
    'blank user': (lines([review_14('a', 'b', 1), review_14(' ', 'b', 1)]).encode(), 'line 2 is malformed'),
    'no time': (
        lines([review_14('a', 'b', 1), review_14('a', 'b', None)]).encode(),
        'line 2 is malformed: None is no number',
    ),
    'a time in words': (
        lines([review_14('a', 'b', 1), review_14('a', 'b', 'soon')]).encode(),
        "line 2 is malformed: 'soon' is no number",
    ),
    'an endless time': (
        lines([review_14('a', 'b', 1), review_14('a', 'b', math.inf)]).encode(),
        'line 2 is malformed: inf is no number',
    ),
    'a huge time': (lines([review_14('a', 'b', 1), review_14('a', 'b', 10**400)]).encode(), 'line 2 is malformed'),
    'other fields': (lines([{'reviewer': 'a', 'asin': 'b', 'unixReviewTime': 1}]).encode(), "did you mean 'reviewer'"),
}


@pytest.mark.parametrize('name', BROKEN)
@pytest.mark.parametrize('packed', ['', '.gz'])
def test_broken_reviews(tmp_path, name, packed):
    content, why = BROKEN[name]
    path = put(tmp_path, 'reviews_X_5.json' + packed, content)
    with pytest.raises(DataError) as e:
        amazon(path)
    assert why in str(e.value) and path.name in str(e.value)
    if 'line 2' in why:
        ds = amazon(path, malformed=0.5)
        assert len(ds.interactions.items) == 1 and malformed(ds.notes) == 1
        with pytest.raises(DataError, match='more than malformed=0.1'):
            amazon(path, malformed=0.1)


@pytest.mark.parametrize('cut', [5, 12, 100, 2000])
def test_truncated_gzip(tmp_path, cut):
    data = gzip.compress(lines([review_14(f'u{k}', f'i{k % 7}', k) for k in range(3000)]).encode())
    for name, read in (
        ('reviews_X_5.json.gz', amazon),
        ('x.csv.gz', log_file),
        ('x.jsonl.gz', log_file),
        ('x.txt.gz', sequence_file),
    ):
        (tmp_path / name).write_bytes(data[:-cut])
        with pytest.raises(DataError, match=re.escape(name)):
            read(tmp_path / name)
    (tmp_path / 'x.csv.gz').write_bytes(
        gzip.compress(('user_id,item_id,timestamp\n' + ''.join(f'u{k},i{k},{k}\n' for k in range(99999))).encode())[
            :-cut
        ]
    )
    with pytest.raises(DataError, match='x.csv.gz'):
        log_file(tmp_path / 'x.csv.gz')


# ---- the others


def test_movielens_layouts(tmp_path):
    put(
        tmp_path,
        'ml-100k/u.data',
        ''.join(
            f'{u}\t{i}\t{r}\t{t}\n'
            for u, i, r, t in [(196, 242, 3, 881250949), (196, 302, 3, 881250940), (22, 242, 1, 878887116)]
        ),
    )
    put(
        tmp_path,
        'ml-100k/u.genre',
        ''.join(
            f'{g}|{k}\n'
            for k, g in enumerate(
                'unknown Action Adventure Animation Children\'s Comedy Crime Documentary Drama Fantasy Film-Noir Horror Musical Mystery Romance Sci-Fi Thriller War Western'.split()
            )
        )
        + '\n',
    )
    put(
        tmp_path,
        'ml-100k/u.item',
        (
            '242|Kolya "é" (1996)|24-Jan-1997||http://us.imdb.com/M/title-exact?Kolya%20(1996)|0|0|0|0|0|1'
            + '|0' * 13
            + '\n302|<b>L.A.</b>, Confidential|||'
            + '|0' * 19
            + '\n'
        ).encode('latin-1'),
    )
    put(tmp_path, 'posters/242.jpg', png(kind='JPEG'))
    put(tmp_path, 'posters/302.webp', png(kind='WEBP'))
    put(tmp_path, 'posters/9.jpg', b'')
    plots = put(tmp_path, 'plots.csv', 'id,story\n242,"A ""confirmed"" bachelor,\nin Prague."\n')
    ds = movielens(tmp_path / 'ml-100k', tmp_path / 'posters', plots, plot_columns=('id', 'story'))
    assert (
        sequences(ds) == {'196': ['302', '242'], '22': ['242']}
        and ds.catalogue.modalities == ('text', 'image')
        and not ds.catalogue.missing()['image'].any()
    )
    assert (
        ds.catalogue.content['text']
        == ['Kolya "é" (1996). genres: Comedy. plot: A "confirmed" bachelor, in Prague.', '<b>L.A.</b>, Confidential']
        and '<b>' not in ds.catalogue._repr_html_()
    )
    put(tmp_path, 'ml-1m/ratings.dat', '1::1193::5::978300760\n1::661::3::978302109\n2::1193::5::978298413\n')
    put(
        tmp_path,
        'ml-1m/movies.dat',
        '1193::One Flew :: Over (1975)::Drama\n661::Les Misérables::Animation|Musical\n'.encode('latin-1'),
    )
    one = movielens(tmp_path / 'ml-1m')
    assert one.catalogue.content['text'] == [
        'One Flew :: Over (1975). genres: Drama',
        'Les Misérables. genres: Animation, Musical',
    ] and sequences(one) == {'1': ['1193', '661'], '2': ['1193']}
    put(
        tmp_path,
        'ml-25m/ratings.csv',
        'userId,movieId,rating,timestamp\n1,296,5.0,1147880044\n1,306,0.5,1147868817\n2,296,4.0,5\n',
    )
    put(
        tmp_path,
        'ml-25m/movies.csv',
        'movieId,title,genres\n296,"Pulp, ""Fiction"" (1994)",Comedy|Crime\n306,Três,(no genres listed)\n999,Unseen,Drama\n',
    )
    new = movielens(tmp_path / 'ml-25m', min_rating=1)
    assert (
        new.catalogue.content['text'] == ['Pulp, "Fiction" (1994). genres: Comedy, Crime']
        and any('min_rating=1 keeps 2 of 3' in n for n in new.notes)
        and any('2 items without interactions left out' in n for n in new.notes)
    )
    for name, content, why in (
        ('ratings.csv', 'userId,movieId,rating,timestamp\n1,296,5.0,x\n', 'row 2'),
        ('ratings.csv', 'userId,movie,rating,timestamp\n1,296,5.0,1\n', "did you mean 'movie'"),
        ('movies.csv', 'movieId,title\n1,a\n1,b\n', 'more than once'),
    ):
        put(tmp_path, 'ml-25m/ratings.csv', 'userId,movieId,rating,timestamp\n1,1,5.0,5\n')
        put(tmp_path, f'ml-25m/{name}', content)
        with pytest.raises(DataError, match=why):
            movielens(tmp_path / 'ml-25m')


def test_hm_and_microlens_with_broken_pictures(tmp_path):
    put(
        tmp_path,
        'hm/articles.csv',
        'article_id,product_code,prod_name,product_type_name,colour_group_name,detail_desc\n0108775015,0108775,"Strap ""top""",Vest,Black,"<i>Jersey</i>\ntop"\n0108775044,0108775,Strap,Vest,White,\n',
    )
    put(
        tmp_path,
        'hm/transactions_train.csv',
        't_dat,customer_id,article_id,price,sales_channel_id\n'
        + ''.join(f'2018-09-{d},c{d % 2},{a},0.05,2\n' for d in (20, 21, 22) for a in ('0108775015', '0108775044')),
    )
    put(tmp_path, 'hm/images/010/0108775015.jpg', png(kind='JPEG')[:-40])
    put(tmp_path, 'hm/images/010/0108775044.jpg', b'')
    ds = hm(tmp_path / 'hm')
    assert (
        ds.catalogue.missing()['image'].all()
        and any("2 images of 'image' cannot be decoded" in n for n in ds.notes)
        and len(ds.interactions.items) == 6
    )
    assert (
        ds.catalogue.content['text'][0].startswith('Strap "top". product_type_name: Vest')
        and len(hm(tmp_path / 'hm', core=(2, 2)).catalogue) == 2
    )
    put(tmp_path, 'ml/MicroLens-100k_pairs.csv', 'user,item,timestamp\n1,2,1583378629552\n1,3,x\n')
    with pytest.raises(DataError, match='MicroLens-100k_pairs.csv: 1 row .* row 3'):
        microlens(tmp_path / 'ml')


def test_sequence_forms_agree(tmp_path):
    rng = np.random.default_rng(0)
    truth = {str(u): [str(i) for i in rng.integers(0, 40, rng.integers(2, 9))] for u in range(300)}
    wide = put(tmp_path, 'wide.txt', ''.join(' '.join([u, *s]) + '\n' for u, s in truth.items()))
    long = put(tmp_path, 'long.txt.gz', ''.join(f'{u} {i}\n' for u, s in truth.items() for i in s))
    assert sequences(sequence_file(wide)) == sequences(sequence_file(long)) == truth
    with pytest.raises(DataError, match='line 1'):
        sequence_file(wide, form='pairs')


# ---- Hugging Face


def test_hugging_face_objects(tmp_path):
    datasets = pytest.importorskip('datasets')
    datasets.disable_progress_bars()
    (tmp_path / 'loose.png').write_bytes(png('blue'))
    clicks = datasets.Dataset.from_dict(
        {'user_id': ['a', 'b', 'a'], 'item_id': [7, 8, 8], 'timestamp': [3, 2, 1], 'rating': [5.0, 1.0, 4.0]}
    )
    goods = datasets.Dataset.from_dict(
        {
            'item_id': [7, 8, 9],
            'title': ['Tea', 'Cup "é"', None],
            'image': [{'bytes': png(), 'path': None}, {'bytes': None, 'path': str(tmp_path / 'loose.png')}, None],
        }
    ).cast_column('image', datasets.Image())
    splits = datasets.DatasetDict({'train': clicks, 'test': clicks.select([0])})
    ds = hugging_face(splits, goods)
    assert sequences(ds) == {'a': ['8', '7'], 'b': ['8']} and ds.catalogue.content['text'] == ['Tea', 'Cup "é"', None]
    assert ds.catalogue.image('image', 0).getpixel((0, 0)) == (255, 0, 0) and ds.catalogue.image('image', 1).getpixel(
        (0, 0)
    ) == (0, 0, 255)
    assert sequences(hugging_face(splits, split='test')) == {'a': ['7']} and sequences(
        hugging_face(clicks.select([2, 0]).shuffle(seed=0))
    ) == {'a': ['8', '7']}
    with pytest.raises(DataError, match="did you mean 'test'"):
        hugging_face(splits, split='tset')
    splits.save_to_disk(str(tmp_path / 'clicks'))
    goods.select([0, 1]).save_to_disk(str(tmp_path / 'goods'))
    splits['train'].to_parquet(str(tmp_path / 'hub' / 'train-00000-of-00001.parquet'))
    for source in (
        tmp_path / 'clicks',
        tmp_path / 'hub',
        tmp_path / 'hub' / 'train-00000-of-00001.parquet',
        splits,
        clicks.with_format('numpy'),
        clicks.to_pandas(),
    ):
        assert sequences(hugging_face(source)) == sequences(ds), source
    disk = hugging_face(tmp_path / 'clicks', tmp_path / 'goods')
    assert (
        disk.catalogue.image('image', disk.catalogue.ids.index('8')).getpixel((0, 0)) == (0, 0, 255)
        and len(hugging_face(splits, min_rating=4).interactions.items) == 2
    )
    (tmp_path / 'goods' / 'data-00000-of-00001.arrow').write_bytes(b'x')
    with pytest.raises(DataError, match="'goods' cannot be read"):
        hugging_face(clicks, tmp_path / 'goods')


# ---- anything in a table

words = st.one_of(
    st.sampled_from(
        [
            '',
            'a',
            'b',
            'c',
            ' a',
            '7',
            '7.0',
            '0',
            '-1',
            'nan',
            'NaN',
            'inf',
            'null',
            '1e400',
            '"',
            "'",
            ',',
            'a,b',
            'a\nb',
            '\r',
            '\0',
            '2024-01-05',
            '2024-13-45',
            '::',
            '=1+1',
            '\ufeff',
            '\u202e',
            'é',
            '𝄞',
            '9' * 30,
            'True',
        ]
    ),
    st.text(max_size=4),
)
cells = st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.integers(-(10**30), 10**30), st.floats(), words)
good = st.tuples(st.sampled_from('abc'), st.sampled_from('xyz'), st.integers(0, 4).map(str))
FOLDER = ('user_id', 'item_id', 'timestamp')


def accounted(read, n, name):
    "Every one of `n` interactions is in the dataset or counted; or a DataError that names the file."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DataWarning)
        try:
            ds = read()
        except DataError as e:
            assert name in str(e), e
            return None
    assert len(ds.interactions.items) + repeats(ds.notes) + malformed(ds.notes) == n, ds.notes
    assert (
        all(i and i == i.strip() for i in ds.catalogue.ids)
        and (np.bincount(ds.interactions.items, minlength=len(ds.catalogue)) > 0).all()
    )
    repr(ds), ds.catalogue._repr_html_()
    return ds


def csv_text(rows):
    import csv

    out = io.StringIO(newline='')
    csv.writer(out, lineterminator='\n').writerows(rows)
    return out.getvalue()


@LOOSE
@given(st.lists(st.one_of(good, st.lists(words, min_size=3, max_size=3)), min_size=1, max_size=8))
def test_any_csv(tmp_path, rows):
    rows = [list(r) for r in rows]
    path = put(tmp_path, 'log.csv', csv_text([FOLDER, *rows]))
    accounted(lambda: log_file(path), sum(any(c != '' for c in r) for r in rows), 'log.csv')


@LOOSE
@given(
    st.lists(
        st.one_of(
            good.map(','.join),
            st.text(alphabet='abxy01,",\'\n\r\t ;', max_size=12),
            st.just('a,x,1,extra'),
            st.just('a,x'),
        ),
        min_size=1,
        max_size=8,
    ),
    st.booleans(),
)
def test_any_raw_csv(tmp_path, rows, packed):
    "Ragged rows and stray quotation marks: what is read are records with all three cells."
    path = put(tmp_path, 'log.csv' + '.gz' * packed, '\n'.join([','.join(FOLDER), *rows]) + '\n')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DataWarning)
        try:
            ds = log_file(path)
        except DataError as e:
            assert 'log.csv' in str(e)
            return
    import csv

    parsed = [
        r
        for r in csv.reader(
            io.StringIO(
                path.read_bytes().decode() if not packed else gzip.decompress(path.read_bytes()).decode(), newline=''
            )
        )
        if any(r)
    ][1:]
    assert len(ds.interactions.items) + repeats(ds.notes) == len(parsed)


@LOOSE
@given(
    st.lists(
        st.one_of(
            st.fixed_dictionaries(
                {'user_id': st.sampled_from('abc'), 'item_id': st.sampled_from('xyz'), 'timestamp': st.integers(0, 4)}
            ),
            st.dictionaries(st.sampled_from([*FOLDER, 'z']), cells),
            cells,
        ),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from([0.0, 1.0]),
)
def test_any_json_lines(tmp_path, rows, share):
    path = put(tmp_path, 'log.jsonl', lines(rows))
    accounted(lambda: log_file(path, malformed=share), len(rows), 'log.jsonl')


@LOOSE
@given(st.data())
def test_any_parquet(tmp_path, data):
    "Columns of one type each, some of them strange."
    n = data.draw(st.integers(0, 6))
    kinds = [
        st.lists(x, min_size=n, max_size=n)
        for x in (
            st.sampled_from(['a', 'b']),
            st.integers(0, 3),
            st.floats(),
            st.one_of(st.none(), words),
            st.booleans(),
            st.binary(max_size=3),
            st.datetimes(),
            st.dates(),
            st.lists(st.integers(0, 9), max_size=2),
            st.none(),
            st.integers(-(2**63), 2**63 - 1),
            st.decimals(0, 9, places=2),
        )
    ]
    try:
        table = pa.table({c: data.draw(st.one_of(kinds)) for c in FOLDER})
    except (pa.ArrowException, UnicodeEncodeError):
        return  # no Parquet file holds it
    import pyarrow.parquet as pq

    pq.write_table(table, tmp_path / 'log.parquet')
    accounted(lambda: log_file(tmp_path / 'log.parquet'), n, 'log.parquet')
    accounted(lambda: hugging_face(table), n, 'interactions')


@LOOSE
@given(st.lists(st.lists(words, max_size=4), max_size=6), st.sampled_from([None, 'pairs', 'sequences']))
def test_any_sequence_file(tmp_path, rows, form):
    path = put(tmp_path, 'log.txt', '\n'.join(' '.join(r) for r in rows))
    try:
        ds = sequence_file(path, form=form)
    except DataError as e:
        assert 'log.txt' in str(e)
        return
    text = [line.split() for line in path.read_bytes().decode('utf-8-sig').split('\n')]
    assert len(ds.interactions.items) == sum(max(len(w) - 1, 0) for w in text)


@LOOSE
@given(
    st.lists(st.lists(words, min_size=3, max_size=3), min_size=1, max_size=6),
    st.lists(st.one_of(good, st.lists(words, min_size=3, max_size=3)), min_size=1, max_size=6),
)
def test_any_folder(tmp_path, items, rows):
    put(
        tmp_path,
        'shop/items.csv',
        csv_text([('item_id', 'title', 'image'), *items, ('x', 'X', ''), ('y', 'Y', ''), ('z', '', '')]),
    )
    put(tmp_path, 'shop/interactions.csv', csv_text([FOLDER, *rows]))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DataWarning)
        try:
            ds = load_folder(tmp_path / 'shop')
        except DataError as e:
            assert '.csv' in str(e)
            return
    assert len(ds.interactions.items) + repeats(ds.notes) == sum(any(c != '' for c in r) for r in rows)


@LOOSE
@given(
    st.lists(
        st.one_of(
            st.fixed_dictionaries(
                {'asin': st.sampled_from(['B1', 'B2', 7])},
                optional={
                    k: st.one_of(
                        cells,
                        st.lists(cells, max_size=2),
                        st.dictionaries(st.sampled_from(['large', 'variant']), cells),
                    )
                    for k in (
                        'title',
                        'brand',
                        'store',
                        'category',
                        'categories',
                        'description',
                        'images',
                        'imUrl',
                        'imageURL',
                    )
                },
            ),
            cells,
        ),
        min_size=1,
        max_size=6,
    ),
    st.booleans(),
)
def test_any_metadata(tmp_path, rows, python):
    "Whatever stands in the metadata, no interaction is lost and no other error is raised."
    reviews = put(
        tmp_path, 'reviews_X_5.json', lines([review_14('a', 'B1', 1), review_14('b', 'B2', 2), review_14('b', '7', 3)])
    )
    meta = put(
        tmp_path, 'meta_X.json', ''.join((repr(r).replace('\n', ' ') if python else json.dumps(r)) + '\n' for r in rows)
    )
    try:
        ds = amazon(reviews, meta, malformed=1.0)
    except DataError as e:
        assert 'meta_X.json' in str(e)
        return
    assert len(ds.interactions.items) == 3 and set(ds.catalogue.ids) == {'B1', 'B2', '7'}
    assert all(u is None or u != u or u.startswith('http') for u in ds.catalogue.table['image_url'])
