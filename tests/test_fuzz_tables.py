"""Odd and broken tables by the hundred, drawn from seeds, in every form that the readers know. Of each: either a
`DataError` that names the file, or a dataset in which every row that was written is found, in its order, or is counted
in a note. Nothing else is raised."""

import csv
import gzip
import io
import json
import re
import warnings
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from reader_files import malformed, png, repeats, said_of

from vlm2rec_lab.data import DataError, load_folder
from vlm2rec_lab.shop.readers import hugging_face, log_file, sequence_file

CASES = 60  # of a seed
FORMS = ('csv', 'csv.gz', 'jsonl', 'jsonl.gz', 'parquet')
HOSTILE = ('=1+1', '<script>alert(1)</script>', '../../x', "'; DROP TABLE", '\u202eabc', '🧵', 'a,b', 'say "hi"')
HOSTILE += ('nan', 'None', 'null', 'NA', '-1', '1e5', 'x' * 5000, 'é', '\ufeffa', '#', '%s{}', 'true')
ODD_IDS = (None, '', ' ', float('nan'), float('inf'), True, ['a'], {'a': 1}, b'\xff\xfe', 10**400, 'a\nb')
ODD_TIMES = (None, '', 'soon', '9' * 400, 10**400, [1], {'a': 1}, b'x', float('nan'), float('-inf'), '2024-13-45', True)
ODD_TEXTS = ({'a': 1}, [0.5, 0.25], b'\xff\xfe', [[1, 2], [3]], [{'a': 'b'}])
ODD_IMAGES = (7, [0.5], {'url': 'x'}, True, '../../etc/passwd', '/etc/passwd', {'a': 1})
TIMES = ('int', 'float', 'nanoseconds', 'extremes', 'iso', 'iso with time', 'day first', 'month first', 'position')
SHAPES = (
    'semicolon',
    'pipe',
    'utf-16',
    'no column',
    'column twice',
    'misspelt',
    'ragged',
    'open quote',
    'cut',
    'empty',
)


def pick(rng, values):
    "One of some values."
    return values[int(rng.integers(len(values)))]


def chance(rng, p):
    "Yes with probability p."
    return bool(rng.random() < p)


# ---- what is written


@dataclass
class Table:
    "Rows as dictionaries, and what is odd in them."

    rows: list
    form: str
    odd: list  # what was planted in cells
    shape: str = ''  # what was planted in the file


def an_id(rng, kind, n):
    "An id of one kind."
    k = int(rng.integers(n))
    return {'word': f'w{k}', 'int': k, 'padded': f'{k:05d}', 'hostile': HOSTILE[k % len(HOSTILE)]}[kind]


def a_time(rng, kind):
    "A time of one kind."
    k = int(rng.integers(40))
    day = datetime(2023, 1, 1, tzinfo=timezone.utc) + timedelta(days=k)
    return {
        'int': 1_700_000_000 + k,
        'float': 1_700_000_000.25 + k,
        'nanoseconds': 1_700_000_000_000_000_000 + k,
        'extremes': 2**63 - 1 - k if k % 2 else k - 2**63,
        'iso': f'{day:%Y-%m-%d}',
        'iso with time': f'{day:%Y-%m-%dT%H:%M:%S}',
        'day first': f'{day:%d.%m.%Y}',
        'month first': f'{day:%m/%d/%Y}',
        'position': k,
    }[kind]


def clicks(rng, ids, time):
    "Rows of interactions with one kind of id and of time."
    users = pick(rng, ('word', 'int', 'padded'))
    rows = [
        {'user_id': an_id(rng, users, 6), 'item_id': an_id(rng, ids, 8), 'timestamp': a_time(rng, time)}
        for _ in range(int(rng.integers(1, 40)))
    ]
    if chance(rng, 0.3):
        rows += [dict(rows[int(k)]) for k in rng.integers(len(rows), size=3)]
    return rows


def a_text(rng, form):
    "A cell of text; lists and bytes where the form can hold them."
    plain = '' if chance(rng, 0.25) else pick(rng, ('A cup', 'Tea, green', '  blanks  ', *HOSTILE))
    if form.startswith('csv') or chance(rng, 0.7):
        return plain
    lists = (['Toys', 'Games'], [['Toys'], ['Games', 'Cards']], ['one'], 'plain')
    return plain.encode() if form == 'parquet' and chance(rng, 0.3) else pick(rng, lists)


def an_image(rng, form):
    "A cell of a picture: a path, none, a broken one, or what Parquet and JSON hold besides."
    paths = ('a.png', 'b.png', 'gone.png', 'broken.png', '', 'https://shop.example/a.png')
    if form.startswith('csv') or chance(rng, 0.5):
        return pick(rng, paths)
    if form.startswith('jsonl'):
        return pick(rng, (['a.png', 'b.png'], {'path': 'a.png'}, [], None))
    held = (png(), b'x', {'bytes': png(), 'path': None}, {'bytes': None, 'path': 'a.png'}, [png(), png('blue')])
    return pick(rng, held)


def goods(rng, ids, form):
    "Rows of items: every id that a click may name, with texts and, often, pictures."
    column = {'word': lambda k: f'w{k}', 'int': int, 'padded': '{:05d}'.format, 'hostile': HOSTILE.__getitem__}[ids]
    rows = [{'item_id': column(k), 'title': a_text(rng, form), 'genres': a_text(rng, form)} for k in range(8)]
    if chance(rng, 0.6):
        rows = [r | {'image': an_image(rng, form)} for r in rows]
    return rows


def plant(rng, table, column, odd):
    "An odd cell in a column."
    value = pick(rng, odd)
    at = int(rng.integers(len(table.rows)))
    if column in table.rows[at]:
        table.rows[at][column] = value
        table.odd.append((column, value))


# ---- how it is written


def as_cell(value):
    "A value as the text of a CSV file."
    if isinstance(value, int) and abs(value) > 10**300:
        return '1' + '0' * 400
    return '' if value is None else str(value)


def csv_text(rng, table):
    "The text of a CSV file with line ends, quotation marks and blank rows of its own."
    columns, out = list(table.rows[0]), io.StringIO(newline='')
    end = pick(rng, ('\n', '\n', '\r\n', '\r'))
    quoting = pick(rng, (csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    mark = {'semicolon': ';', 'pipe': '|'}.get(table.shape, ',')
    writer = csv.writer(out, lineterminator=end, quoting=quoting, delimiter=mark)
    writer.writerow(columns)
    for row in table.rows:
        writer.writerow([as_cell(row.get(c)) for c in columns])
        if chance(rng, 0.03):
            out.write(end)
    text = out.getvalue()
    if table.shape == 'ragged':
        text += 'a,b,c,d,e,f,g' + end
    if table.shape == 'open quote':
        text += '"a,b' + end + 'c,d,3' + end
    return text


def as_json(value):
    "What `json` does not write by itself."
    return value.decode('utf-8', 'replace')


def json_text(rng, table):
    "The text of a file of JSON lines, with blank lines now and then."
    lines = [json.dumps(r, default=as_json, ensure_ascii=chance(rng, 0.5)) for r in table.rows]
    if table.shape in ('open quote', 'ragged'):
        lines.append('{"user_id": "a')
    return ''.join(line + '\n' * (1 + chance(rng, 0.03)) for line in lines)


def parquet_bytes(table):
    "The bytes of a Parquet file; None where no Parquet file holds such columns."
    out = io.BytesIO()
    try:
        pd.DataFrame(table.rows).to_parquet(out)
    except Exception:  # Arrow refuses columns of several types
        return None
    return out.getvalue()


def reshape(rng, table):
    "Columns that are missing, misspelt, well known or further ones."
    first = next(iter(table.rows[0]))
    renamed = {'no column': None, 'misspelt': 'usr_idd', 'column twice': 'again'}.get(table.shape, first)
    table.rows = [
        {(renamed if c == first else c): v for c, v in r.items() if c != first or renamed} for r in table.rows
    ]
    if chance(rng, 0.2):
        table.rows = [r | {'more': k} for k, r in enumerate(table.rows)]


def write(rng, folder, stem, table):
    "A table as a file; returns its path, or None where the form cannot hold it."
    if table.shape in ('no column', 'misspelt', 'column twice'):
        reshape(rng, table)
    if table.form == 'parquet':
        data = parquet_bytes(table)
    else:
        text = csv_text(rng, table) if table.form.startswith('csv') else json_text(rng, table)
        text = text.replace('again', 'item_id', 1) if table.shape == 'column twice' else text
        bom = '\ufeff' if chance(rng, 0.2) else ''
        data = (bom + text).encode('utf-16' if table.shape == 'utf-16' else 'utf-8', 'surrogatepass')
        data = gzip.compress(data) if table.form.endswith('gz') else data
    if data is None:
        return None
    data = data[: len(data) * 2 // 3] if table.shape == 'cut' else b'' if table.shape == 'empty' else data
    path = folder / f'{stem}.{table.form}'
    path.write_bytes(data)
    return path


# ---- what must be found again


def id_said(value):
    "An id as the dataset has it."
    return str(value).strip()


def key_of(kind, value):
    "A number to order a time by, exactly."
    forms = {'day first': '%d.%m.%Y', 'month first': '%m/%d/%Y'}
    if kind in forms:
        return datetime.strptime(value, forms[kind]).timestamp()
    return datetime.fromisoformat(value).timestamp() if kind.startswith('iso') else value


def expected(rows, kind):
    "{user: items} of rows that are in order: each user's by time, without exact repeats."
    found = {}
    for r in sorted(rows, key=lambda r: key_of(kind, r['timestamp'])):
        mine = found.setdefault(id_said(r['user_id']), [])
        if (r['timestamp'], id_said(r['item_id'])) not in mine:
            mine.append((r['timestamp'], id_said(r['item_id'])))
    return {u: [i for _, i in mine] for u, mine in found.items()}


def words_of(value):
    "The texts of a cell one by one."
    if isinstance(value, list):
        return [w for v in value for w in words_of(v)]
    text = value.decode() if isinstance(value, bytes) else str(value)
    return [' '.join(text.split())]


def lost_words(ds, rows):
    "Texts that were written and are not in the catalogue."
    at = {i: k for k, i in enumerate(ds.catalogue.ids)}
    said = ds.catalogue.content.get('text', ())
    lost = []
    for r in rows:
        text = (said[at[id_said(r['item_id'])]] or '') if id_said(r['item_id']) in at else ''
        lost += [w for c in ('title', 'genres') for w in words_of(r[c]) if w not in text]
    return lost


def uncounted(ds, modality):
    "How many items lack a modality without a note that counts them."
    missing = int(ds.catalogue.missing()[modality].sum())
    patterns = [rf"([\d,]+) items? of [\d,]+ without '{modality}'"]
    if modality == 'image':
        patterns += [r'([\d,]+) images? of column', r"([\d,]+) images? of 'image' cannot"]
    return missing - sum(said_of(p, ds.notes) for p in patterns)


def losses(ds, case):
    "What a dataset lost without a word, as sentences."
    rows, kind = case['log'].rows, case['time']
    counted = len(ds.interactions.items) + repeats(ds.notes) + malformed(ds.notes)
    found = [] if counted == len(rows) else [f'{len(rows)} rows written, {counted} read or counted']
    if not case['log'].odd and not case['log'].shape:
        own = {u: [ds.catalogue.ids[i] for i in s] for u, s in zip(ds.interactions.user_ids, ds.interactions.sequences)}
        found += [] if own == expected(rows, kind) else ['another order than was written']
    found += [f'{n} items without {m}' for m in ds.catalogue.modalities if (n := uncounted(ds, m))]
    items = case['items']
    if items is not None and not items.odd and not items.shape:
        found += [f'the text {w[:30]!r}' for w in lost_words(ds, items.rows)[:1]]
    if items is not None and 'image' in items.rows[0] and 'image' not in ds.catalogue.modalities:
        found.append('the pictures')
    return found


# ---- one case


def draw(rng):
    "A case: tables, what is odd in them, and how they are to be read."
    ids, time = pick(rng, ('word', 'word', 'int', 'padded', 'hostile')), pick(rng, TIMES)
    log, items = Table(clicks(rng, ids, time), pick(rng, FORMS), []), None
    reader = pick(rng, ('folder', 'folder', 'log', 'hub'))
    if reader == 'folder' or chance(rng, 0.6):
        form = pick(rng, FORMS)
        items = Table(goods(rng, ids, form), form, [])
    if chance(rng, 0.35):
        plant(rng, log, pick(rng, ('user_id', 'item_id')), ODD_IDS)
    if chance(rng, 0.2):
        plant(rng, log, 'timestamp', ODD_TIMES)
    if items and chance(rng, 0.3):
        column, odd = pick(rng, (('title', ODD_TEXTS), ('image', ODD_IMAGES), ('item_id', ODD_IDS)))
        plant(rng, items, column, odd)
    if chance(rng, 0.25):
        pick(rng, (log, items or log)).shape = pick(rng, SHAPES)
    return dict(reader=reader, log=log, items=items, time=time)


def as_arrow(frame):
    "A data frame as a table of Arrow, where that holds its columns."
    try:
        return frame if frame is None else pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, OverflowError):
        return frame


def reading(rng, case, folder):
    "A function that reads the case; None where no file can hold it."
    how = {'day first': '%d.%m.%Y', 'month first': '%m/%d/%Y'}.get(case['time'])
    how = dict(time_format=how, progress=False)
    log, items = case['log'], case['items']
    if case['reader'] == 'hub':
        log.shape, log.form = '', 'parquet'
        frames = [None if t is None else pd.DataFrame(t.rows) for t in (log, items)]
        if items is not None:
            items.shape = ''
        frames = [as_arrow(f) if chance(rng, 0.5) else f for f in frames]
        return lambda: hugging_face(*frames, **how)
    path = write(rng, folder, 'interactions', log)
    goods_path = None if items is None else write(rng, folder, 'items', items)
    if path is None or (items is not None and goods_path is None):
        return None
    if case['reader'] == 'folder':
        return lambda: load_folder(folder, **how)
    return lambda: log_file(path, goods_path, **how)


def outcome(read, case):
    "(what became of a case, details)."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        try:
            ds = read()
        except DataError as e:
            named = re.search(r'interactions|items|shop', str(e))
            return ('error', str(e)) if named else ('nameless error', str(e))
        except Exception as e:
            return 'raw error', f'{type(e).__name__}: {e}'
    lost = losses(ds, case)
    if lost and not case['log'].shape == 'cut':
        return 'silent loss', '; '.join(lost)
    return ('warned', '') if caught or ds.notes else ('read', '')


def a_shop(tmp_path, k):
    "A folder with two pictures and a broken one."
    folder = tmp_path / f'shop{k}'
    folder.mkdir()
    (folder / 'a.png').write_bytes(png())
    (folder / 'b.png').write_bytes(png('blue'))
    (folder / 'broken.png').write_bytes(png()[:20])
    return folder


BAD = ('raw error', 'nameless error', 'silent loss')


@pytest.mark.parametrize('seed', range(8))
def test_tables(seed, tmp_path):
    rng, found, bad = np.random.default_rng(seed), Counter(), []
    while found.total() < CASES:
        folder = a_shop(tmp_path, len(list(tmp_path.iterdir())))
        case = draw(rng)
        read = reading(rng, case, folder)
        if read is None:
            continue
        what, why = outcome(read, case)
        found[what] += 1
        if what in BAD:
            about = {n: (t.form, t.shape, t.odd) for n in ('log', 'items') if (t := case[n]) is not None}
            bad.append(f'{what}: {why[:300]} | {case["reader"]} {case["time"]} {about}'[:700])
    counts = ', '.join(f'{n} {what}' for what, n in sorted(found.items()))
    print(f'seed {seed}: {found.total()} cases: {counts}; {found["silent loss"]} silent losses')
    assert not bad, '\n'.join(bad[:5])
    assert found['error'] > CASES // 6 and found['read'] + found['warned'] > CASES // 6


# ---- sequences of ids


def lines_of(rng):
    "Lines of words; some are blank, and some users have no item or a second line."
    words = ('u1', 'u2', 'u3', 'tea', 'cup', '007', '=1+1', '🧵', 'é', '\u202e')
    return [[pick(rng, words) for _ in range(int(rng.integers(0, 5)))] for _ in range(int(rng.integers(1, 9)))]


@pytest.mark.parametrize('seed', range(4))
def test_sequences(seed, tmp_path):
    rng, found = np.random.default_rng(seed), Counter()
    for k in range(CASES):
        rows, end = lines_of(rng), pick(rng, ('\n', '\r\n', '\r'))
        bom, packed = '\ufeff' * chance(rng, 0.2), chance(rng, 0.3)
        data = (bom + ''.join(pick(rng, (' ', '\t')).join(r) + end for r in rows)).encode()
        path = tmp_path / f'log{k}.txt'
        path.write_bytes(gzip.compress(data) if packed else data)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try:
                ds = sequence_file(path, form=pick(rng, (None, 'sequences')))
            except DataError as e:
                assert path.name in str(e)
                found['error'] += 1
                continue
        assert len(ds.interactions.items) == sum(max(len(r) - 1, 0) for r in rows)
        filled = [k for k, r in enumerate(rows) if r]
        blank = sum(not r for r in rows[: filled[-1]])
        assert said_of(r': ([\d,]+) rows? without anything', ds.notes) == blank
        found['read'] += 1
    print(f'seed {seed}: {CASES} files of sequences: {found["error"]} errors, {found["read"]} read; 0 silent losses')
    assert found['read'] > CASES // 2
