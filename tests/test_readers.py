"""Readers on files in the form of their sources, whole and broken: every interaction is in the dataset or counted in a
note, or the error names file and place. Written here, and the shared data where it lies beside."""

import gzip
import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from reader_files import lines, malformed, png, put, review_14, review_18, review_23, sequences

from vlm2rec_lab.data import Catalogue, DataError, Dataset, Interactions, leave_one_out, load_folder
from vlm2rec_lab.shop.log_files import read_log
from vlm2rec_lab.shop.logs import filtered
from vlm2rec_lab.shop.readers import (
    READERS,
    amazon,
    arrow_table,
    hm,
    hugging_face,
    log_file,
    microlens,
    movielens,
    reader,
    sequence_file,
)

SHARED = Path(__file__).resolve().parent.parent.parent / 'shared' / 'data'
if not SHARED.is_dir() and Path('../shared/data').is_dir():
    SHARED = Path('../shared/data').resolve()
shared = pytest.mark.skipif(not SHARED.is_dir(), reason='no ../shared/data here')
pytestmark = pytest.mark.filterwarnings('ignore::vlm2rec_lab.data.DataWarning')


def sizes(ds):
    "(users, items, interactions)."
    return len(ds.interactions), len(ds.catalogue), len(ds.interactions.items)


# ---- readers by name


@pytest.fixture
def toy_reader():
    "A reader of one's own, registered for as long as a test runs."

    @reader('toy', files=2)
    def toy(path, items=None, core=None, shout=False):
        "Words of a file: the first is the user."
        who, *what = path.read_text().split()
        what = [w.upper() for w in what] if shout else what
        catalogue = Catalogue(tuple(dict.fromkeys(what)), {}, {})
        frame = pd.DataFrame({'user_id': who, 'item_id': what, 'timestamp': range(len(what))})
        return Dataset(catalogue, Interactions.from_frame(frame, catalogue), 'toy')

    yield toy
    del READERS['toy']


def test_a_reader_of_ones_own_is_found_by_its_name(tmp_path, toy_reader):
    path = put(tmp_path, 'words', 'ann tea cup tea')
    assert READERS['toy'].files == 2 and READERS['toy'].read is toy_reader
    assert sequences(READERS['toy'](path)) == {'ann': ['tea', 'cup', 'tea']}
    assert sequences(READERS['toy'](path, shout=True)) == {'ann': ['TEA', 'CUP', 'TEA']}


def test_a_name_belongs_to_one_reader(toy_reader):
    def another(path):
        "Another one."

    with pytest.raises(ValueError, match="there is a reader 'toy' already"):
        reader('toy')(another)
    assert READERS['toy'].read is toy_reader


def test_readers_of_the_lab():
    files = {name: r.files for name, r in READERS.items()}
    two, one = ('amazon', 'sequences', 'log', 'hugging-face'), ('movielens', 'microlens', 'hm')
    assert files == {name: 2 for name in two} | {name: 1 for name in one}
    assert list(READERS) == ['amazon', 'movielens', 'microlens', 'sequences', 'hm', 'log', 'hugging-face']
    functions = [amazon, movielens, microlens, sequence_file, hm, log_file, hugging_face]
    assert [r.read for r in READERS.values()] == functions


# ---- the data that lies beside the project


@shared
def test_shared_beauty():
    folder, columns = SHARED / 'seq_beauty', ['attributes', 'machine_keywords']
    ds = sequence_file(folder / 'Beauty.txt')
    assert sizes(ds) == (22363, 12101, 198502)
    assert (ds.interactions.lengths.min(), ds.interactions.lengths.max(), ds.notes) == (5, 204, ())
    assert len(leave_one_out(ds).test) == 22363
    other = load_folder(folder, text=columns)
    assert sizes(other) == (22363, 12101, 198502)
    assert sequences(ds) == sequences(other)
    named = sequence_file(folder / 'Beauty.txt', folder / 'items.csv', text=columns).catalogue
    text = named.content['text'][named.ids.index('1')]
    assert text == other.catalogue.content['text'][other.catalogue.ids.index('1')]
    assert 'OPI' in text
    assert len(sequence_file(folder / 'Beauty.txt', core=5).interactions.items) == 198502  # it is a 5-core


@shared
def test_shared_movielens():
    folder = SHARED / 'ml100k_mm'
    ds = load_folder(folder, check=False)
    assert sizes(ds) == (943, 1682, 100000)
    assert (~ds.catalogue.missing()['image']).sum() == 1589
    plots = load_folder(folder, text=['plot'], image={}).catalogue
    assert (~plots.missing()['text']).sum() == 1671
    log = log_file(folder / 'interactions.csv', folder / 'items.csv', check=False)
    assert sequences(log) == sequences(ds)
    assert (log.interactions.times == ds.interactions.times).all()


# ---- the fast way is the plain way


def random_log(seed, n=5000):
    "A log of users and items, some of whose ids hold commas and quotation marks."
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            'user_id': [f'u{x}' for x in rng.zipf(1.4, n) % 300],
            'rating': rng.integers(1, 6, n),
            'item_id': [f'i,"{x}"' for x in rng.zipf(1.3, n) % 200],
            'timestamp': rng.integers(0, 50, n) + (rng.random(n) if seed == 3 else 0),
        }
    )


def write_as(df, path, form):
    "A DataFrame in one of the forms of a log."
    if form == 'parquet':
        df.to_parquet(path)
    elif form == 'jsonl':
        path.write_text(lines(df.to_dict('records')))
    else:
        df.to_csv(path, index=False, sep='\t' if form == 'tsv' else ',')


def core_by_pandas(df, k_users, k_items):
    "The rows of a core."
    while True:
        of_user = df.groupby('user_id')['item_id'].transform('size')
        of_item = df.groupby('item_id')['user_id'].transform('size')
        ok = of_user.ge(k_users) & of_item.ge(k_items)
        if ok.all():
            return df
        df = df[ok]


FORMS = ['csv', 'csv.gz', 'parquet', 'jsonl', 'tsv']


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('form', FORMS)
def test_parity_with_from_frame(tmp_path, seed, form):
    df, path, said = random_log(seed), tmp_path / f'log.{form}', []
    write_as(df, path, form)
    cat = Catalogue(tuple(dict.fromkeys(df['item_id'])), {}, {})
    frame = df.set_index(np.arange(len(df)) + (1 if form in ('parquet', 'jsonl') else 2))
    plain, fast = Interactions.from_frame(frame, cat, where=path.name, notes=said), log_file(path)
    assert fast.catalogue.ids == cat.ids
    assert fast.interactions.user_ids == plain.user_ids
    for part in ('offsets', 'items', 'times'):
        assert (getattr(fast.interactions, part) == getattr(plain, part)).all(), part
    said, told = ([n.replace('timestamp', 'time') for n in notes] for notes in (said, fast.notes))
    assert said == told  # the same rows are named


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('form', FORMS)
def test_filters_are_those_of_pandas(tmp_path, seed, form):
    df, path, told = random_log(seed), tmp_path / f'log.{form}', []
    write_as(df, path, form)
    good = filtered(read_log(path, rating='rating', notes=told), (3, 4), 3, told)
    kept = df.drop_duplicates(['user_id', 'item_id', 'timestamp'])
    kept = core_by_pandas(kept[kept['rating'] >= 3], 3, 4)
    assert len(good) == len(kept)
    pairs = {(good.user_ids[u], good.item_ids[i]) for u, i in zip(good.users, good.items)}
    assert pairs == set(zip(kept['user_id'], kept['item_id']))


# ---- Amazon


@pytest.fixture
def edition_14(tmp_path):
    "(reviews, metadata) of 2014."
    rows = [
        review_14('A1', 'B01', 1400000000),
        review_14('A1', 'B02', 1300000000, 1.0),
        review_14('A2', 'B01', '1350000000'),
        review_14('A2', 'B03', 1360000000),
    ]
    meta = (
        "{'asin': 'B01', 'description': 'Wom\\'n\\'s \"best\" \\xe9clair &amp; <b>bold</b> \\d', "
        "'title': u'Cr\\xe8me', 'price': 9.5, 'imUrl': 'http://ecx/1.jpg', 'related': {'also_bought': ['B02']}, "
        "'salesRank': {'Beauty': 4}, 'categories': [['Beauty', 'Skin']]}\n"
        "{'asin': 'B02'}\n"
        "{'asin': 'B01', 'title': 'Again'}\n"
        "{'asin': 'B09', 'title': 'Never chosen'}\n"
    )
    return put(tmp_path, 'reviews_Beauty_5.json.gz', lines(rows)), put(tmp_path, 'meta_Beauty.json.gz', meta)


def test_amazon_2014(edition_14):
    ds = amazon(*edition_14)
    assert ds.name == 'Amazon 2014 Beauty'
    assert sequences(ds) == {'A1': ['B02', 'B01'], 'A2': ['B01', 'B03']}
    text = 'Crème. category: Beauty, Skin. description: Wom\'n\'s "best" éclair & bold \\d'
    assert ds.catalogue.content['text'] == [text, None, None]
    assert ds.catalogue.table['image_url'].tolist()[0] == 'http://ecx/1.jpg'
    assert ds.catalogue.missing()['text'].tolist() == [False, True, True]


@pytest.mark.parametrize(
    'part',
    [
        'line 3; the first of each is kept',
        '1 products without interactions left out',
        'B03; kept, without content',
        "2 items of 3 without 'text'",
    ],
)
def test_amazon_2014_counts_what_it_leaves_out(edition_14, part):
    said = ' | '.join(amazon(*edition_14).notes)
    assert part in said, said


def test_amazon_2014_filters(edition_14):
    assert 'B09' in amazon(*edition_14, unseen=True).catalogue.ids
    assert sequences(amazon(*edition_14, min_rating=4))['A1'] == ['B01']
    assert len(amazon(*edition_14, core=(1, 2)).catalogue) == 1


def test_amazon_2018(tmp_path):
    rows = [review_18('A1', 'B01', 1500000000), review_18('A1', 'B02', 1510000000, vote='3')]
    tea = {
        'asin': 'B01',
        'title': '<span>Tea &amp; more</span>',
        'brand': 'Chà',
        'category': ['Grocery', 'Tea'],
        'description': ['<p>Green.</p>', ''],
        'feature': ['a', 'b'],
        'imageURL': ['https://m/s.jpg'],
        'imageURLHighRes': ['https://m/l.jpg'],
    }
    script = {
        'asin': 'B02',
        'title': 'var aPageStart = (new Date()).getTime(); <script>x</script>',
        'category': [],
        'description': '',
        'imageURL': [],
        'imageURLHighRes': [],
    }
    reviews = put(tmp_path, 'All_Beauty_5.json.gz', lines(rows))
    meta = put(tmp_path, 'meta_All_Beauty.json.gz', lines([tea, script]))
    ds = amazon(reviews, meta, text=['title', 'brand', 'category', 'description', 'features'])
    text = 'Tea & more. brand: Chà. category: Grocery, Tea. description: Green. features: a; b'
    assert ds.name == 'Amazon 2018 All_Beauty'
    assert ds.catalogue.content['text'] == [text, None]
    assert ds.catalogue.table['image_url'].iat[0] == 'https://m/l.jpg'
    assert any('1 title holding a script' in n for n in ds.notes)


PRODUCT_23 = {
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
        {'thumb': 'https://m/t.jpg', 'large': 'https://m/l.jpg', 'variant': 'MAIN', 'hi_res': 'https://m/h.jpg'},
    ],
}


def test_amazon_2023(tmp_path):
    rows = [review_23('A1', 'B01', 1600000000500), review_23('A1', 'B02', 1600000000400)]
    reviews = put(tmp_path, 'All_Beauty.jsonl.gz', lines(rows))
    products = [PRODUCT_23, {'parent_asin': 'B02', 'title': None, 'images': []}]
    meta = put(tmp_path, 'meta_All_Beauty.jsonl.gz', lines(products))
    ds = amazon(reviews, meta)
    assert ds.name == 'Amazon 2023 All_Beauty'
    assert sequences(ds) == {'A1': ['B02', 'B01']}
    assert ds.interactions.times.tolist() == [1600000000.4, 1600000000.5]
    i = ds.catalogue.ids.index('B01')
    text = 'Tea "x". brand: Howard. category: All Beauty. description: d1 d2'
    assert ds.catalogue.content['text'][i] == text
    assert ds.catalogue.table['image_url'].iat[i] == 'https://m/h.jpg'
    rated = 'user_id,parent_asin,rating,timestamp\nA1,B01,5.0,1600000000500\nA1,B02,1.0,1600000000400\n'
    table = put(tmp_path, 'All_Beauty.csv', rated)
    assert sequences(amazon(table, meta)) == sequences(ds)
    assert sequences(amazon(table, meta, min_rating=2)) == {'A1': ['B01']}


ATTACKS = {
    'a call': "__import__('os').system('touch {marker}')",
    'a call in a dictionary': "{{'asin': __import__('os').system('touch {marker}')}}",
    'a file opened': "{{'asin': 'B01', 'title': open('{marker}', 'w').write('x')}}",
    'a loop': "{{'asin': [x for x in [open('{marker}', 'w')]]}}",
    'a function': "(lambda: open('{marker}', 'w'))()",
    'a huge number': "{{'asin': 'B01', 'title': 9**9**9}}",
    'deep lists': '[' * 200_000,
    'many signs': '-' * 200_000 + '1',
    'deep dictionaries': "{{'a':" * 50_000,
    'deep objects': '{{"a":' * 200_000,
    'a long line': "{{'asin': '" + 'x' * (5 << 20) + "'}}",
}


@pytest.mark.parametrize('attack', ATTACKS)
def test_python_lines_are_never_run(tmp_path, attack):
    marker = tmp_path / 'ran'
    reviews = put(tmp_path, 'reviews_X_5.json.gz', lines([review_14('A1', 'B01', 1)]))
    evil = ATTACKS[attack].format(marker=marker)
    meta = put(tmp_path, 'meta_X.json.gz', "{'asin': 'B01', 'title': 'Tea'}\n" + evil + '\n')
    with pytest.raises(DataError, match='meta_X.json.gz: line 2 is malformed'):
        amazon(reviews, meta)
    ds = amazon(reviews, meta, malformed=0.5)
    assert ds.catalogue.content['text'] == ['Tea']
    assert any('1 of 2 lines malformed and left out: line 2' in n for n in ds.notes)
    assert not marker.exists()


def whole_and(*rows):
    "The file of a good review and of others."
    return lines([review_14('a', 'b', 1), *rows]).encode()


def without(row, field):
    "A row that lacks a field."
    return {k: v for k, v in row.items() if k != field}


NOT_UTF8 = whole_and() + lines([review_14('a', 'b', 2)]).encode().replace(b'helpful', b'h\xffpful')
TWO_ON_A_LINE = whole_and() + (json.dumps(review_14('a', 'b', 2)) * 2).encode()
OTHER_FIELDS = lines([{'reviewer': 'a', 'asin': 'b', 'unixReviewTime': 1}]).encode()
NO_ID, NO_NUMBER = 'line 2 is malformed: None is no id', 'line 2 is malformed: None is no number'
BROKEN = {  # content of the file of reviews -> what is said
    'empty file': (b'', 'has no interactions'),
    'not JSON': (whole_and() + b'{"reviewerID": \n', 'line 2 is malformed: not JSON'),
    'a JSON array': (json.dumps([review_14('a', 'b', 1)]).encode(), 'line 1 is malformed: a list'),
    'two objects on a line': (TWO_ON_A_LINE, 'line 2 is malformed'),
    'not UTF-8': (NOT_UTF8, 'line 2 is malformed: byte'),
    'no user': (whole_and(without(review_14('a', 'b', 1), 'reviewerID')), NO_ID),
    'null item': (whole_and(review_14('a', None, 1)), NO_ID),
    'blank user': (whole_and(review_14(' ', 'b', 1)), 'line 2 is malformed'),
    'no time': (whole_and(review_14('a', 'b', None)), NO_NUMBER),
    'a time in words': (whole_and(review_14('a', 'b', 'soon')), "line 2 is malformed: 'soon' is no number"),
    'an endless time': (whole_and(review_14('a', 'b', math.inf)), 'line 2 is malformed: inf is no number'),
    'a huge time': (whole_and(review_14('a', 'b', 10**400)), 'line 2 is malformed'),
    'other fields': (OTHER_FIELDS, "did you mean 'reviewer'"),
}


@pytest.mark.parametrize('name', BROKEN)
@pytest.mark.parametrize('packed', ['', '.gz'])
def test_broken_reviews(tmp_path, name, packed):
    content, why = BROKEN[name]
    path = put(tmp_path, 'reviews_X_5.json' + packed, content)
    with pytest.raises(DataError) as e:
        amazon(path)
    assert why in str(e.value)
    assert path.name in str(e.value)
    if 'line 2' in why:
        ds = amazon(path, malformed=0.5)
        assert len(ds.interactions.items) == 1
        assert malformed(ds.notes) == 1
        with pytest.raises(DataError, match='more than malformed=0.1'):
            amazon(path, malformed=0.1)


@pytest.mark.parametrize('cut', [5, 12, 100, 2000])
@pytest.mark.parametrize(
    'name, read',
    [
        ('reviews_X_5.json.gz', amazon),
        ('x.csv.gz', log_file),
        ('x.jsonl.gz', log_file),
        ('x.txt.gz', sequence_file),
    ],
)
def test_truncated_gzip(tmp_path, cut, name, read):
    data = gzip.compress(lines([review_14(f'u{k}', f'i{k % 7}', k) for k in range(3000)]).encode())
    (tmp_path / name).write_bytes(data[:-cut])
    with pytest.raises(DataError, match=re.escape(name)):
        read(tmp_path / name)


@pytest.mark.parametrize('cut', [5, 12, 100, 2000])
def test_truncated_csv(tmp_path, cut):
    text = 'user_id,item_id,timestamp\n' + ''.join(f'u{k},i{k},{k}\n' for k in range(99999))
    (tmp_path / 'x.csv.gz').write_bytes(gzip.compress(text.encode())[:-cut])
    with pytest.raises(DataError, match='x.csv.gz'):
        log_file(tmp_path / 'x.csv.gz')


# ---- MovieLens

GENRES = (
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir Horror Musical "
    'Mystery Romance Sci-Fi Thriller War Western'
).split()


@pytest.fixture
def ml_100k(tmp_path):
    "The folder of the layout of 100K."
    rows = [(196, 242, 3, 881250949), (196, 302, 3, 881250940), (22, 242, 1, 878887116)]
    put(tmp_path, 'ml-100k/u.data', ''.join('\t'.join(map(str, row)) + '\n' for row in rows))
    put(tmp_path, 'ml-100k/u.genre', ''.join(f'{g}|{k}\n' for k, g in enumerate(GENRES)) + '\n')
    kolya = '242|Kolya "é" (1996)|24-Jan-1997||http://us.imdb.com/M/title-exact?Kolya%20(1996)|0|0|0|0|0|1' + '|0' * 13
    la = '302|<b>L.A.</b>, Confidential|||' + '|0' * 19
    put(tmp_path, 'ml-100k/u.item', f'{kolya}\n{la}\n'.encode('latin-1'))
    return tmp_path / 'ml-100k'


def test_movielens_100k_with_posters_and_plots(tmp_path, ml_100k):
    put(tmp_path, 'posters/242.jpg', png(kind='JPEG'))
    put(tmp_path, 'posters/302.webp', png(kind='WEBP'))
    put(tmp_path, 'posters/9.jpg', b'')
    plots = put(tmp_path, 'plots.csv', 'id,story\n242,"A ""confirmed"" bachelor,\nin Prague."\n')
    ds = movielens(ml_100k, tmp_path / 'posters', plots, plot_columns=('id', 'story'))
    assert sequences(ds) == {'196': ['302', '242'], '22': ['242']}
    assert ds.catalogue.modalities == ('text', 'image')
    assert not ds.catalogue.missing()['image'].any()
    kolya = 'Kolya "é" (1996). genres: Comedy. plot: A "confirmed" bachelor, in Prague.'
    assert ds.catalogue.content['text'] == [kolya, '<b>L.A.</b>, Confidential']
    assert '<b>' not in ds.catalogue._repr_html_()


def test_movielens_100k_without_a_file_of_genres(ml_100k):
    (ml_100k / 'u.genre').unlink()
    ds = movielens(ml_100k, text=['title', 'released'])
    assert ds.catalogue.content['text'][0] == 'Kolya "é" (1996). released: 24-Jan-1997'
    assert ds.catalogue.modalities == ('text',)
    assert movielens(ml_100k).catalogue.content['text'][0] == 'Kolya "é" (1996). genres: Comedy'


def test_movielens_100k_names_a_short_row(ml_100k):
    (ml_100k / 'u.data').write_text('1\t1\t3\n')
    with pytest.raises(DataError, match='u.data: 1 row'):
        movielens(ml_100k)


def test_movielens_1m(tmp_path):
    put(tmp_path, 'ml-1m/ratings.dat', '1::1193::5::978300760\n1::661::3::978302109\n2::1193::5::978298413\n')
    films = '1193::One Flew :: Over (1975)::Drama\n661::Les Misérables::Animation|Musical\n'
    put(tmp_path, 'ml-1m/movies.dat', films.encode('latin-1'))
    one = movielens(tmp_path / 'ml-1m')
    texts = ['One Flew :: Over (1975). genres: Drama', 'Les Misérables. genres: Animation, Musical']
    assert one.catalogue.content['text'] == texts
    assert sequences(one) == {'1': ['1193', '661'], '2': ['1193']}


def test_movielens_25m(tmp_path):
    rated = 'userId,movieId,rating,timestamp\n1,296,5.0,1147880044\n1,306,0.5,1147868817\n2,296,4.0,5\n'
    put(tmp_path, 'ml-25m/ratings.csv', rated)
    films = '296,"Pulp, ""Fiction"" (1994)",Comedy|Crime\n306,Três,(no genres listed)\n999,Unseen,Drama\n'
    put(tmp_path, 'ml-25m/movies.csv', 'movieId,title,genres\n' + films)
    new = movielens(tmp_path / 'ml-25m', min_rating=1)
    assert new.catalogue.content['text'] == ['Pulp, "Fiction" (1994). genres: Comedy, Crime']
    assert any('min_rating=1 keeps 2 of 3' in n for n in new.notes)
    assert any('2 items without interactions left out' in n for n in new.notes)


@pytest.mark.parametrize(
    'name, content, why',
    [
        (
            'ratings.csv',
            'userId,movieId,rating,timestamp\n1,296,5.0,x\n',
            "of column 'timestamp' without a readable time: row 2",
        ),
        ('ratings.csv', 'userId,movie,rating,timestamp\n1,296,5.0,1\n', "did you mean 'movie'"),
        ('movies.csv', 'movieId,title\n1,a\n1,b\n', 'more than once'),
    ],
)
def test_movielens_25m_names_what_is_wrong(tmp_path, name, content, why):
    put(tmp_path, 'ml-25m/ratings.csv', 'userId,movieId,rating,timestamp\n1,1,5.0,5\n')
    put(tmp_path, 'ml-25m/movies.csv', 'movieId,title,genres\n1,Toy,Drama\n')
    put(tmp_path, f'ml-25m/{name}', content)
    with pytest.raises(DataError, match=why):
        movielens(tmp_path / 'ml-25m')


# ---- H&M, MicroLens, sequences


def test_hm_with_broken_pictures(tmp_path):
    put(
        tmp_path,
        'hm/articles.csv',
        'article_id,product_code,prod_name,product_type_name,colour_group_name,detail_desc\n'
        '0108775015,0108775,"Strap ""top""",Vest,Black,"<i>Jersey</i>\ntop"\n'
        '0108775044,0108775,Strap,Vest,White,\n',
    )
    ids = ('0108775015', '0108775044')
    rows = ''.join(f'2018-09-{d},c{d % 2},{a},0.05,2\n' for d in (20, 21, 22) for a in ids)
    header = 't_dat,customer_id,article_id,price,sales_channel_id\n'
    put(tmp_path, 'hm/transactions_train.csv', header + rows)
    put(tmp_path, 'hm/images/010/0108775015.jpg', png(kind='JPEG')[:-40])
    put(tmp_path, 'hm/images/010/0108775044.jpg', b'')
    ds = hm(tmp_path / 'hm')
    assert ds.catalogue.missing()['image'].all()
    assert any("2 images of 'image' cannot be decoded" in n for n in ds.notes)
    assert len(ds.interactions.items) == 6
    assert ds.catalogue.content['text'][0].startswith('Strap "top". product_type_name: Vest')
    assert len(hm(tmp_path / 'hm', core=(2, 2)).catalogue) == 2


def test_microlens_names_a_row(tmp_path):
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


def test_many_sequences_keep_their_order(tmp_path):
    rng = np.random.default_rng(0)
    lists = [rng.integers(0, 30, rng.integers(1, 9)).tolist() for _ in range(200)]
    path = put(tmp_path, 'Many.txt', ''.join(f'{u} ' + ' '.join(map(str, x)) + '\n' for u, x in enumerate(lists)))
    assert list(sequences(sequence_file(path)).values()) == [list(map(str, x)) for x in lists]


def test_lines_of_one_user_are_joined_and_counted(tmp_path):
    ds = sequence_file(put(tmp_path, 'Odd.txt', '1 a b\n\n2\n1 c\n'))
    assert [x.tolist() for x in ds.interactions.sequences] == [[0, 1, 2]]
    assert 'line 4; joined' in ds.notes[0]
    assert 'left out: line 3' in ds.notes[1]


@pytest.mark.parametrize(
    'content, why',
    [('', 'is empty'), ('1\n2\n', 'no interactions'), (b'1 \xff\n', 'not UTF-8'), ('\n\n', 'is empty')],
)
def test_bad_sequence_files(tmp_path, content, why):
    with pytest.raises(DataError, match=why):
        sequence_file(put(tmp_path, 'bad.txt', content))


# ---- Hugging Face


@pytest.mark.parametrize(
    'state',
    [
        '',
        '{}',
        '[]',
        '{"_data_files": [3]}',
        '{"_data_files": [{"filename": "gone.arrow"}]}',
        '{"_data_files": []}',
    ],
)
def test_a_broken_state_of_a_saved_folder(tmp_path, state):
    put(tmp_path, 'disk/state.json', state)
    with pytest.raises(DataError, match="'disk'"):
        arrow_table(tmp_path / 'disk')


def test_sources_that_are_no_tables(tmp_path):
    clicks = pd.DataFrame({'user_id': ['a', 'b'], 'item_id': [2, 1], 'timestamp': [5, 6]})
    put(tmp_path, 'posters/1.png', png())
    for source, why in (
        ([1], 'list is no table'),
        (clicks[:0], 'no rows'),
        (tmp_path / 'gone', 'there is no'),
        (tmp_path / 'posters', 'neither a folder'),
    ):
        with pytest.raises(DataError, match=why):
            hugging_face(source)


@pytest.fixture
def hub(tmp_path):
    "(clicks, goods) as objects of the `datasets` library."
    datasets = pytest.importorskip('datasets')
    datasets.disable_progress_bars()
    (tmp_path / 'loose.png').write_bytes(png('blue'))
    clicks = {'user_id': ['a', 'b', 'a'], 'item_id': [7, 8, 8], 'timestamp': [3, 2, 1], 'rating': [5.0, 1.0, 4.0]}
    pictures = [{'bytes': png(), 'path': None}, {'bytes': None, 'path': str(tmp_path / 'loose.png')}, None]
    goods = {'item_id': [7, 8, 9], 'title': ['Tea', 'Cup "é"', None], 'image': pictures}
    goods = datasets.Dataset.from_dict(goods).cast_column('image', datasets.Image())
    return datasets.Dataset.from_dict(clicks), goods


@pytest.fixture
def splits(hub):
    "The clicks as a DatasetDict."
    import datasets

    return datasets.DatasetDict({'train': hub[0], 'test': hub[0].select([0])})


CLICKS = {'a': ['8', '7'], 'b': ['8']}


def test_hugging_face_objects(hub, splits):
    clicks, goods = hub
    ds = hugging_face(splits, goods)
    assert sequences(ds) == CLICKS
    assert ds.catalogue.content['text'] == ['Tea', 'Cup "é"', None]
    assert ds.catalogue.image('image', 0).getpixel((0, 0)) == (255, 0, 0)
    assert ds.catalogue.image('image', 1).getpixel((0, 0)) == (0, 0, 255)
    assert len(hugging_face(splits, min_rating=4).interactions.items) == 2
    assert sequences(hugging_face(clicks.select([2, 0]).shuffle(seed=0))) == {'a': ['8', '7']}


def test_hugging_face_splits(splits):
    assert sequences(hugging_face(splits, split='test')) == {'a': ['7']}
    with pytest.raises(DataError, match="did you mean 'test'"):
        hugging_face(splits, split='tset')


def test_hugging_face_sources_agree(tmp_path, hub, splits):
    clicks, _ = hub
    splits.save_to_disk(str(tmp_path / 'clicks'))
    file = tmp_path / 'hub' / 'train-00000-of-00001.parquet'
    splits['train'].to_parquet(str(file))
    sources = (tmp_path / 'clicks', file.parent, file, splits, clicks.with_format('numpy'), clicks.to_pandas())
    for source in sources:
        assert sequences(hugging_face(source)) == CLICKS, source


def test_hugging_face_folders(tmp_path, hub, splits):
    clicks, goods = hub
    splits.save_to_disk(str(tmp_path / 'clicks'))
    goods.select([0, 1]).save_to_disk(str(tmp_path / 'goods'))
    disk = hugging_face(tmp_path / 'clicks', tmp_path / 'goods')
    assert disk.catalogue.image('image', disk.catalogue.ids.index('8')).getpixel((0, 0)) == (0, 0, 255)
    (tmp_path / 'goods' / 'data-00000-of-00001.arrow').write_bytes(b'x')
    with pytest.raises(DataError, match="'goods' cannot be read"):
        hugging_face(clicks, tmp_path / 'goods')
