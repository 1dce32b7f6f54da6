"""Baselines on data of some size: against dense vectors, on pictures that lie on disk, and on the two data sets that
are shared beside the project where they are."""

import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from vlm2rec_lab.data import (
    PAD,
    Catalogue,
    Dataset,
    DataWarning,
    Interactions,
    compose_text,
    leave_one_out,
    load_folder,
)
from vlm2rec_lab.metrics import evaluate, ranks, sample_negatives, seen_items
from vlm2rec_lab.ranking.baseline_scores import last_items, past_choices, text_matrix, thumbnail_matrix
from vlm2rec_lab.ranking.baselines import baseline_names, baselines
from vlm2rec_lab.studio import make_studio

SHARED = Path(__file__).resolve().parent.parent.parent / 'shared' / 'data'


def shop(seed=0, items=120, users=200):
    "A shop with two texts and a photo for most items, and times."
    rng = np.random.default_rng(seed)
    vocabulary = [f'w{k}' for k in range(40)]
    words = [None if rng.random() < 0.1 else ' '.join(rng.choice(vocabulary, 6)) for _ in range(items)]
    pictures = [None if rng.random() < 0.1 else rng.integers(0, 256, (20, 30, 3), np.uint8) for _ in range(items)]
    popular = rng.dirichlet(np.full(items, 0.3))
    chosen = [rng.choice(items, min(rng.integers(3, 30), (popular > 0).sum()), False, popular) for _ in range(users)]
    times = np.concatenate([np.sort(rng.random(len(c))) for c in chosen])
    catalogue = Catalogue(
        tuple(map(str, range(items))),
        {'about': words, 'plot': words[::-1], 'photo': pictures},
        {'about': 'text', 'plot': 'text', 'photo': 'image'},
    )
    return Dataset(catalogue, replace(Interactions.of_sequences(chosen), times=times), 'shop')


def as_vectors(split):
    "{name: (items, users)}: vectors whose inner product is the score of a baseline."
    n, rows = len(split.catalogue), split.test
    content, last, one = split.catalogue.content, last_items(rows), np.ones((len(rows), 1))
    users, items = past_choices(split, counted='train')
    bought = np.zeros((users.max() + 1, n))
    bought[users, items] = 1
    bought /= np.sqrt(np.maximum(bought.sum(0), 1))
    window = np.stack([np.bincount(h[h != PAD], minlength=n) for h in rows.history]).astype(float)
    matrices = {m: text_matrix(content[m]).toarray() for m in ('about', 'plot')}
    matrices['photo'] = thumbnail_matrix(content['photo'], progress=False)[0].astype(float)
    return {
        'popularity': (np.bincount(past_choices(split)[1], minlength=n)[:, None].astype(float), one),
        'random': (np.zeros((n, 1)), one),
        'co-occurrence': (np.eye(n), (window @ bought.T @ bought).round(9)),
        **{f'last item by {m}': (x, x[last]) for m, x in matrices.items()},
    }


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    negatives=st.one_of(st.none(), st.integers(1, 50)),
    chunk=st.one_of(st.none(), st.integers(1, 60)),
)
def test_ranks_are_those_of_dense_vectors(seed, negatives, chunk):
    "Another path to the same ranks: every baseline as vectors, ranked by `metrics.ranks`."
    data = shop(seed, users=60)
    split = leave_one_out(data, history=8)
    n, rows = len(split.catalogue), split.test
    found = baselines(split, dataset=data, negatives=negatives, seed=seed, chunk=chunk, bootstrap=10, progress=False)
    assert tuple(found) == baseline_names(split.catalogue)
    out = seen_items((rows.seen_offsets, rows.seen_items), rows.targets, n)
    drawn = None if negatives is None else sample_negatives(out, rows.targets, n, negatives, seed)
    for name, (items, users) in as_vectors(split).items():
        slow = ranks(items, users, rows.targets, out, drawn, progress=False)
        for part in ('candidates', 'greater', 'ties'):
            np.testing.assert_array_equal(getattr(found.ranks[name], part), getattr(slow, part), name)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
@example(seed=20000)  # two photos .00000095 apart, where single precision decided by the shape of the product
def test_nothing_comes_from_the_targets(seed):
    "A row's ranks are the same whatever the other rows' targets are, and whatever the order of the rows."
    data = shop(seed, items=60, users=40)
    split = leave_one_out(data, history=8)
    rng, rows = np.random.default_rng(seed), split.test
    others = [rng.choice(np.setdiff1d(np.arange(60), [*s, t])) for s, t in zip(rows.seen, rows.targets)]
    other = replace(rows, targets=np.array(others))
    kept = rng.permutation(len(rows))[:10]
    mixed = other.take(np.arange(len(rows)))
    mixed.targets[kept] = rows.targets[kept]
    which = [n for n in baseline_names(split.catalogue) if 'recency' not in n]
    how = dict(which=which, bootstrap=10, progress=False)
    a, b, c = (baselines(replace(split, test=r), **how) for r in (rows, mixed, rows.take(kept)))
    for name in a:
        for part in ('greater', 'ties', 'candidates'):
            own, mixed_with, alone = (getattr(x.ranks[name], part) for x in (a, b, c))
            np.testing.assert_array_equal(own[kept], mixed_with[kept], name)
            np.testing.assert_array_equal(own[kept], alone, name)


def test_pictures_on_disk(tmp_path):
    "Files of any kind and size; what cannot be read is named, counted and scored as no information."
    rng = np.random.default_rng(0)
    red, blue = np.zeros((90, 60, 3), np.uint8), np.zeros((90, 60, 3), np.uint8)
    red[..., 0], blue[..., 2] = 230, 230

    def noisy(a):
        return Image.fromarray(np.clip(a + rng.integers(0, 20, a.shape), 0, 255).astype(np.uint8))

    noisy(red).save(tmp_path / 'a.jpg')
    noisy(red).resize((300, 200)).save(tmp_path / 'b.png')
    noisy(blue).save(tmp_path / 'c.webp')
    noisy(blue).convert('P').save(tmp_path / 'd.gif')
    (tmp_path / 'e.jpg').write_bytes((tmp_path / 'a.jpg').read_bytes()[:200])
    images = [tmp_path / f for f in ('a.jpg', 'b.png', 'c.webp', 'd.gif', 'e.jpg')]
    catalogue = Catalogue(tuple('abcdef'), {'image': [*images, None]}, {'image': 'image'})
    chosen = Interactions.of_sequences([[4, 5, 0, 1], [4, 5, 2, 3], [4, 5, 0, 2], [0, 1, 4, 2]])
    split = leave_one_out(Dataset(catalogue, chosen, 'pictures'), history=3)
    with pytest.warns(DataWarning, match=r'1 of 6 images cannot be read \(e\)') as said:
        found = baselines(split, which='last item by image')
    assert said[0].filename == __file__
    r = found.ranks['last item by image']
    # red after red, blue after blue, not blue after red; nothing is known after e
    assert r.greater[[0, 1, 3]].tolist() == [0, 0, 0]
    assert r.greater[2] >= 1
    assert r.ties.tolist() == [0, 0, 0, 2]
    assert '2 of 6 items without image; for 1 of 4 rows' in found.notes[1]
    assert found.to_dict()['notes'] == list(found.notes)


def test_same_figures_as_the_model_that_scores_alike():
    data = shop(1)
    split = leave_one_out(data, history=8)
    x = {'about': text_matrix(split.catalogue.content['about']).toarray()}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for negatives in (None, 20):
            last, rows = x['about'][last_items(split.test)], split.test
            model = evaluate(x, {'about': last}, rows.targets, rows.seen, negatives=negatives, seed=7)
            found = baselines(split, which=['last item by about'], negatives=negatives, seed=7)
            assert found['last item by about'] == pytest.approx(model['about'])


def beauty(words=True, history=50):
    "Leave-one-out of the file; with the keywords and attributes of its items, or the same word for all."
    chosen = [[int(i) - 1 for i in line.split()[1:]] for line in open(SHARED / 'seq_beauty' / 'Beauty.txt')]
    items = pd.read_csv(SHARED / 'seq_beauty' / 'items.csv', dtype=str).set_index('item_id')
    items = items.reindex(map(str, range(1, max(map(max, chosen)) + 2)))
    text = ['item'] * len(items)
    if words:
        attributes = [a.replace('|', ' ') if a == a else None for a in items.attributes]
        text = [compose_text({'text': k, 'attributes': a}) for k, a in zip(items.machine_keywords, attributes)]
    catalogue = Catalogue(tuple(items.index), {'text': text}, {'text': 'text'})
    return leave_one_out(Dataset(catalogue, Interactions.of_sequences(chosen), 'Beauty'), history=history)


@pytest.mark.skipif(not (SHARED / 'seq_beauty').is_dir(), reason='no shared/data/seq_beauty beside the project')
def test_beauty():
    "Popularity reaches the published HR@20 of .0217 where validation is counted too."
    split = beauty()
    start = time.time()
    found = baselines(split, progress=False)
    print(f'\n{split.name}: {time.time() - start:.1f} s\n{found}')
    assert (len(split.test), len(split.catalogue)) == (22363, 12101)
    assert found['co-occurrence']['HR@20'] > 3 * found['popularity']['HR@20']
    assert 'left out' in found.notes[0]
    for counted, figure in (('past', 0.0217), ('train', 0.0201)):
        got = {'masked': baselines(split, which='popularity', counted=counted)['popularity']['HR@20']}
        rows = replace(split.test, seen_offsets=np.zeros(len(split.test) + 1), seen_items=np.zeros(0))
        whole = baselines(replace(split, test=rows), which='popularity', counted=counted)
        got['nothing excluded'] = whole['popularity']['HR@20']
        print(f'popularity, counted={counted}: HR@20', {k: round(v, 4) for k, v in got.items()})
        assert got['masked'] == pytest.approx(figure, abs=5e-5)
    alike = baselines(beauty(False), which='last item by text', progress=False)['last item by text']
    assert alike == pytest.approx(found.chance)  # the same word for all tells nothing


@pytest.mark.skipif(not (SHARED / 'ml100k_mm').is_dir(), reason='no shared/data/ml100k_mm beside the project')
def test_movies_with_posters():
    data = load_folder(SHARED / 'ml100k_mm', image={'poster': 'image'}, progress=False)
    split, start = leave_one_out(data, history=50), time.time()
    found = baselines(split, dataset=data, progress=False)
    print(f'\n{split.name}: {time.time() - start:.1f} s\n{found}')
    assert tuple(found) == baseline_names(data.catalogue)
    for name in found:
        if name != 'random':
            assert found[name]['HR@20'] > found['random']['HR@20'], name


def test_a_second_split_decodes_no_picture(tmp_path, monkeypatch):
    "Thumbnails are kept with the catalogue: the same figures, and nothing is decoded again."
    from vlm2rec_lab.shop import pictures

    opened, decode = [], pictures._decode

    def counting(*args):
        opened.append(args)
        return decode(*args)

    monkeypatch.setattr(pictures, '_decode', counting)
    studio = make_studio(items=30, users=90)
    for i, array in enumerate(studio.catalogue.content['image']):
        Image.fromarray(array).save(tmp_path / f'{i}.png')
    files = [tmp_path / f'{i}.png' for i in range(30)]
    shop = replace(studio, catalogue=replace(studio.catalogue, content=dict(studio.catalogue.content, image=files)))
    first = baselines(leave_one_out(shop), which='last item by image', progress=False).to_dict()
    assert len(opened) == 30
    assert baselines(leave_one_out(shop), which='last item by image', progress=False).to_dict() == first
    baselines(shop.split(valid=20, test=20, train=50), which='last item by image', progress=False)
    assert len(opened) == 30
