"""Embedders of ours as models of mteb, a split as a task of mteb, and anybody's model beside a verdict."""

import socket
import warnings
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import small_encoders as small
import torch
import transformers
from PIL import Image

from vlm2rec_lab.base.errors import DataError, warned
from vlm2rec_lab.diagnose import collapse_report
from vlm2rec_lab.model.pair import PairEmbedder
from vlm2rec_lab.model.plain import OWN_READER, PlainEmbedder, mean_histories, plain_embedder
from vlm2rec_lab.model.tiny import build_tiny, build_tokenizer, save_tiny, studio_corpus
from vlm2rec_lab.ranking.evaluate import evaluate
from vlm2rec_lab.shop.catalogue import Catalogue
from vlm2rec_lab.shop.drawn import make_studio

transformers.utils.logging.disable_progress_bar()
needed = pytest.mark.skipif(find_spec('mteb') is None, reason='mteb is not installed')
library = pytest.mark.skipif(
    find_spec('sentence_transformers') is None, reason='sentence-transformers is not installed'
)
pytestmark = [
    pytest.mark.filterwarnings('ignore::DeprecationWarning'),
    pytest.mark.filterwarnings('ignore::FutureWarning'),
    pytest.mark.filterwarnings('ignore::UserWarning'),
]
BRIEF = dict(permutations=3, bootstrap=50, missing=(), progress=False)
QUIET = dict(cache=None, show_progress_bar=False, co2_tracker=False)


@pytest.fixture(scope='module')
def split():
    "A drawn shop of 40 items; item 3 has no text, item 5 no picture."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        whole = make_studio('balanced', seed=0, items=40, users=100, length=6).split(
            train=30, valid=10, test=60, history=4
        )
    cat = whole.catalogue
    content = {
        m: [None if i == dict(text=3, image=5)[m] else v for i, v in enumerate(c)] for m, c in cat.content.items()
    }
    return replace(whole, catalogue=Catalogue(cat.ids, content, cat.kinds, cat.table))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "A small random vision-language model."
    torch.manual_seed(0)
    parts = build_tiny(tokenizer=build_tokenizer(studio_corpus(300)), hidden=32, layers=1, vision=32, vision_layers=1)
    save_tiny(tmp_path_factory.mktemp('vlm') / 'small', *parts, dtype=torch.float32)
    return tmp_path_factory.getbasetemp() / 'vlm0' / 'small'


@pytest.fixture(scope='module')
def words(tmp_path_factory):
    "A SentenceTransformer of texts."
    sentence_transformers = pytest.importorskip('sentence_transformers')
    torch.manual_seed(0)
    where = small.sentence_folder(tmp_path_factory.mktemp('words') / 'm')
    return sentence_transformers.SentenceTransformer(str(where), device='cpu')


@pytest.fixture(scope='module')
def both(tmp_path_factory):
    "A SentenceTransformer of texts and pictures."
    sentence_transformers = pytest.importorskip('sentence_transformers')
    from sentence_transformers.sentence_transformer.modules import Transformer

    torch.manual_seed(0)
    model, processor = small.dual_models()['clip']()
    where = small.save(tmp_path_factory.mktemp('clip') / 'm', model, small.tokenizer(16))
    transformers.CLIPProcessor(processor, small.tokenizer(16)).save_pretrained(where)
    try:
        return sentence_transformers.SentenceTransformer(modules=[Transformer(str(where))], device='cpu')
    except Exception as e:  # the library may want torchvision for this
        pytest.skip(f'the library cannot open a picture model here: {e}')


def scores_of(model, task):
    "The figures of mteb."
    import mteb

    (result,) = mteb.evaluate(model, task, **QUIET).task_results
    return result.scores[task.metadata.eval_splits[0]][0]


def kept(items, sequences, **record):
    "Vectors at hand, under a record that says nothing."
    from mteb.models import ModelMeta

    from vlm2rec_lab.share.mteb_task import KeptVectors

    about = dict(name='toys/kept', revision='1', modalities=['text', 'image']) | record
    return KeptVectors(items, sequences, ModelMeta.create_empty(about))


def drawn(split, values, seed=0, dims=6):
    "Vectors of both modalities for a split; `values` makes them of a generator and a shape."
    rng = np.random.default_rng(seed)
    items, sequences = (
        {m: values(rng, (n, dims)).astype(np.float32) for m in ('text', 'image')} for n in (40, len(split.test))
    )
    items['text'][3], items['image'][5] = 0, 0
    return items, sequences


def smooth(rng, shape):
    "Numbers that hardly ever make a tie."
    return rng.normal(size=shape)


def coarse(rng, shape):
    "Numbers that make many ties."
    return rng.integers(0, 2, shape) + 0.0 * rng.normal(size=shape)


def ours(split, items, sequences, fuse='sum', **more):
    "Our figures at 10."
    rows = split.test
    seen = dict(seen=(rows.seen_offsets, rows.seen_items)) | more
    return evaluate(items, sequences, rows.targets, fuse=fuse, k=10, bootstrap=0, progress=False, **seen)


# ---- the two evaluators


@needed
@pytest.mark.parametrize('values', [smooth, coarse])
@pytest.mark.parametrize('view, fuse', [('fused', 'sum'), ('fused', 'concat'), ('text', 'sum'), ('image', 'sum')])
def test_the_two_evaluators_agree(split, values, view, fuse):
    "On the same vectors, without seen items, and with ties as means over their orders."
    from vlm2rec_lab.share.mteb_task import shop_task

    items, sequences = drawn(split, values)
    theirs = scores_of(kept(items, sequences), shop_task(split, view, fuse=fuse))
    want, unmasked = ours(split, items, sequences, fuse), ours(split, items, sequences, fuse, seen=None)
    assert theirs['expected_ndcg_at_10'] == pytest.approx(want[view]['NDCG@10'], abs=1e-6)
    assert theirs['expected_hit_rate_at_10'] == pytest.approx(want[view]['HR@10'], abs=1e-6)
    assert abs(want[view]['NDCG@10'] - unmasked[view]['NDCG@10']) > 1e-3  # it matters what is left out
    if values is smooth:
        assert theirs['ndcg_at_10'] == pytest.approx(want[view]['NDCG@10'], abs=6e-6)  # mteb rounds to 5 decimals
        assert theirs['main_score'] == theirs['ndcg_at_10']
    else:
        assert abs(theirs['ndcg_at_10'] - want[view]['NDCG@10']) > 1e-4


@needed
def test_mtebs_own_order_of_a_tie_is_that_of_ids(split):
    from vlm2rec_lab.share.mteb_task import candidates_of, open_shop, shop_task

    items, sequences = drawn(split, coarse)
    shop, ids = open_shop(split, 'text'), split.catalogue.ids
    x, y = (z['text'] / np.maximum(np.linalg.norm(z['text'], axis=1, keepdims=True), 1e-9) for z in (items, sequences))
    gains = []
    for user, target, listed in zip(y, split.test.targets, candidates_of(shop)):
        scores = np.float32(x[listed].astype(float) @ user.astype(float))
        order = sorted(zip(scores, (ids[i] for i in listed)), reverse=True)
        place = [i for _, i in order].index(ids[target])
        gains.append(1 / np.log2(place + 2) if place < 10 else 0)
    theirs = scores_of(kept(items, sequences), shop_task(split, 'text'))
    assert theirs['ndcg_at_10'] == pytest.approx(np.mean(gains), abs=6e-6)


@needed
@pytest.mark.parametrize('values', [smooth, coarse])
def test_sets_and_given_negatives(split, values):
    from vlm2rec_lab.share.mteb_task import shop_task

    items, sequences = drawn(split, values)
    rows, rng = split.test, np.random.default_rng(1)
    more = [sorted({t, *(i for i in rng.permutation(40)[:2] if i not in s)}) for t, s in zip(rows.targets, rows.seen)]
    offsets = np.concatenate([[0], np.cumsum([len(m) for m in more])])
    asked = replace(split, test=replace(rows, set_offsets=offsets, set_items=np.concatenate(more)))
    want = ours(asked, items, sequences, sets=(offsets, np.concatenate(more)))['fused']
    theirs = scores_of(kept(items, sequences), shop_task(asked, fuse='sum'))
    assert theirs['expected_ndcg_at_10'] == pytest.approx(want['NDCG@10'], abs=1e-6)
    assert theirs['expected_hit_rate_at_10'] == pytest.approx(want['HR@10'], abs=1e-6)
    negatives = np.array(
        [[i for i in rng.permutation(40) if i != t and i not in s][:15] for t, s in zip(rows.targets, rows.seen)]
    )
    few = replace(split, test=replace(rows, negatives=negatives))
    want = ours(few, items, sequences, negatives=negatives)['fused']
    theirs = scores_of(kept(items, sequences), shop_task(few, fuse='sum'))
    assert theirs['expected_ndcg_at_10'] == pytest.approx(want['NDCG@10'], abs=1e-6)


@needed
def test_tasks_differ_by_name_where_figures_may_differ(split):
    from vlm2rec_lab.share.mteb_task import shop_task

    other = replace(
        split,
        catalogue=Catalogue(
            split.catalogue.ids,
            split.catalogue.content | dict(text=['same'] * 40),
            split.catalogue.kinds,
            split.catalogue.table,
        ),
    )
    made = [
        shop_task(split), shop_task(other), shop_task(split, fuse='concat'), shop_task(split, queries='mean'),
        shop_task(split, 'text'), shop_task(split, users=20), shop_task(split, users=20, seed=1),
        shop_task(split, part='valid'),
    ]  # fmt: skip
    assert len({t.metadata.name for t in made}) == len(made)
    assert shop_task(split, users=20).metadata.name == shop_task(split, users=20).metadata.name


# ---- our models for mteb


@needed
def test_a_model_of_ours_ranks_the_same_by_mteb(split, folder):
    from vlm2rec_lab.share.mteb_model import as_mteb
    from vlm2rec_lab.share.mteb_task import shop_task, vectors_of

    model = as_mteb(folder, device='cpu')
    found = vectors_of(model, split)
    want = ours(split, found['items'], found['sequences'])
    for view in ('text', 'image', 'fused'):
        theirs = scores_of(model, shop_task(split, view))
        assert theirs['expected_ndcg_at_10'] == pytest.approx(want[view]['NDCG@10'], abs=1e-6)
    means = vectors_of(model, split, queries='mean')
    assert np.abs(means['sequences']['text'] - found['sequences']['text']).max() > 1e-3
    np.testing.assert_allclose(means['items']['text'], found['items']['text'], atol=1e-6)


@needed
def test_found_by_its_name_with_a_full_record(folder):
    import mteb
    from mteb.models import EncoderProtocol

    from vlm2rec_lab.share.mteb_model import register

    meta = register(folder, 'my-shop/by-name', device='cpu', license='mit')
    assert mteb.get_model_meta('my-shop/by-name') is meta
    model = mteb.get_model('my-shop/by-name', revision=meta.revision)
    assert isinstance(model, EncoderProtocol)
    held = model.mteb_model_meta
    size = sum(p.numel() for p in model.embedder.model.parameters())
    assert (held.n_parameters, held.embed_dim, held.license, held.languages) == (size, 32, 'mit', None)
    assert held.modalities == ['image', 'text'] and held.similarity_fn_name == 'cosine' and held.max_tokens == 64
    assert str(folder) not in str(held.to_dict())  # no path of a machine in what mteb writes
    with pytest.raises(ValueError, match='revision'):
        mteb.get_model('my-shop/by-name', revision='other')


@needed
def test_weights_that_changed_have_another_revision(folder):
    from vlm2rec_lab.share.mteb_model import as_mteb, revision_of

    model = as_mteb(folder, device='cpu')
    before = revision_of(model.embedder)
    with torch.no_grad():
        next(model.embedder.model.parameters()).add_(1)
    assert revision_of(model.embedder) != before


@needed
def test_texts_pictures_and_both(folder):
    from vlm2rec_lab.share.mteb_model import as_mteb

    model, red = as_mteb(folder, device='cpu'), Image.new('RGB', (40, 30), 'red')
    text, image, pair = (
        model.encode([rows])[0] for rows in ({'text': ['a mug']}, {'image': [red]}, {'text': ['a mug'], 'image': [red]})
    )
    want = (text + image) / np.linalg.norm(text + image)
    np.testing.assert_allclose(pair, want, atol=1e-5)
    assert not model.encode([{'text': [' ']}]).any()
    one = model.encode([{'text': ['a mug', 'a lamp']}, {'text': ['a chair']}])
    np.testing.assert_allclose(one, model.encode([{'text': ['a mug', 'a lamp', 'a chair']}]), atol=1e-5)
    close = model.similarity(one, one[0])
    assert close.shape == (3, 1) and float(close[0, 0]) == pytest.approx(1, abs=1e-5)


class Lengths:
    "A text as how long it is, and how many e it has."

    kind, name, size, mark = 'text', 'lengths', 2, 'd' * 64

    def vectors(self, contents, *, batch=64, progress=True, names=None):
        return torch.tensor([[float(len(t)), float(t.count('e'))] for t in contents])


@needed
def test_a_pair_that_has_read_nothing_is_refused_and_learns_nothing_of_batches(split):
    from vlm2rec_lab.share.mteb_model import as_mteb

    pair = PairEmbedder({'text': Lengths()}, dims=2, device='cpu')
    model = as_mteb(pair, 'my-shop/pair')
    with pytest.raises(ValueError, match='read no catalogue'):
        model.encode([{'text': ['a mug']}])
    texts = Catalogue(split.catalogue.ids, {'text': split.catalogue.content['text']}, {'text': 'text'})
    pair.bank(texts)
    mean = pair.heads['text'].mean.clone()
    assert model.encode([{'text': ['a mug', 'lamp']}]).shape == (2, 2)
    assert torch.equal(mean, pair.heads['text'].mean)
    plain = as_mteb(PlainEmbedder({'text': Lengths()}), 'my-shop/plain')
    assert plain.mteb_model_meta.embed_dim == 2 and plain.encode([{'text': ['tee']}]).shape == (1, 2)


@needed
def test_without_mteb_a_sentence_says_what_to_do(monkeypatch, split):
    from vlm2rec_lab.share import mteb_model
    from vlm2rec_lab.share.mteb_task import shop_task

    monkeypatch.setattr(mteb_model, 'find_spec', lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "vlm2rec_lab\[mteb\]"'):
        shop_task(split)


# ---- anybody's models


@needed
@library
def test_means_and_texts_by_hand(split, both):
    from vlm2rec_lab.share.mteb_task import vectors_of

    cat, rows = split.catalogue, split.test
    found = vectors_of(both, split)
    for m, contents in (
        ('text', cat.content['text']),
        ('image', [None if c is None else cat.image('image', i) for i, c in enumerate(cat.content['image'])]),
    ):
        there = [i for i, c in enumerate(contents) if c is not None]
        want = np.zeros((40, 24), np.float32)
        want[there] = both.encode([contents[i] for i in there], normalize_embeddings=True)
        np.testing.assert_allclose(found['items'][m], want, atol=1e-5)
        h = rows.history[7]
        mean = np.mean([want[i] for i in h[h >= 0] if want[i].any()], axis=0)
        np.testing.assert_allclose(found['sequences'][m][7], mean / np.linalg.norm(mean), atol=1e-5)
    h = [i for i in rows.history[7] if i >= 0]
    said = '\n'.join(cat.content['text'][i] for i in h if cat.content['text'][i])
    texts = vectors_of(both, split, queries='text')['sequences']
    np.testing.assert_allclose(texts['image'][7], both.encode(said, normalize_embeddings=True), atol=1e-5)


@needed
@library
def test_what_a_model_does_not_read_is_said(split, words):
    from vlm2rec_lab.share.mteb_task import as_model, shop_task, vectors_of

    (said,) = [w for w in warned(lambda: vectors_of(words, split)) if 'not judged' in w]
    assert 'reads text: image is not judged' in said
    with pytest.raises(ValueError, match='image'):
        scores_of(as_model(words), shop_task(split, 'image'))
    with pytest.raises(DataError, match='reads no sequences'):
        vectors_of(words, split, queries='sequences')


@needed
@library
def test_measured_side_by_side(split, folder, words, both, tmp_path, monkeypatch):
    "Nothing is fetched or sent, and nothing is written but into the folder that was given."
    from vlm2rec_lab.share.mteb_measure import measure
    from vlm2rec_lab.share.mteb_model import as_mteb

    def refuse(*_):
        raise AssertionError('a connection was tried')

    monkeypatch.setattr(socket.socket, 'connect', refuse)
    monkeypatch.setenv('MTEB_CACHE', str(tmp_path / 'not here'))
    models = dict(ours=as_mteb(folder, device='cpu'), words=words, both=both)
    found = measure(models, split, results=tmp_path / 'kept', bootstrap=50, permutations=3)
    frame = found.frame.set_index(['model', 'view'])
    assert [len(frame.loc[m]) for m in models] == [3, 1, 3]
    np.testing.assert_allclose(frame['NDCG@10'], frame['mteb expected_ndcg_at_10'], atol=1e-6)
    assert list(frame.queries) == ['sequences'] * 3 + ['mean'] * 4
    assert (frame['NDCG@10 low'] <= frame['NDCG@10']).all() and (frame['NDCG@10'] <= frame['NDCG@10 high']).all()
    for (model, view), row in frame.iterrows():
        report = found.reports[model]
        assert row.verdict == (report.verdict if view == 'fused' else report.modalities[view]['verdict'])
    assert not list((tmp_path / 'not here').rglob('*')), (
        'the library makes this folder when it is imported, and it stays empty'
    )
    assert len(list((tmp_path / 'kept').rglob('Shop-*.json'))) == 7
    assert any(n.startswith('words: ') and 'image is not judged' in n for n in found.notes)
    assert 'seed 0' in found.protocol and 'test' in found.protocol and 'those the user had' in found.protocol
    assert '<script' not in replace(found, notes=('<script>',))._repr_html_()


@needed
def test_a_cross_encoder_is_given_texts_and_never_what_the_user_had(split):
    from mteb.models import ModelMeta

    from vlm2rec_lab.share.mteb_task import shop_task

    read = []

    class Cross:
        mteb_model_meta = ModelMeta.create_empty(dict(name='toys/cross', revision='1', modalities=['text']))

        def predict(self, inputs1, inputs2, **_):
            a, b = ([t for batch in side for t in batch['text']] for side in (inputs1, inputs2))
            read.extend(zip(a, b))
            return np.array([len(x) - len(y) for x, y in zip(a, b)], float)

    with pytest.raises(DataError, match="queries='text'"):
        scores_of(Cross(), shop_task(split, 'text', users=5))
    task = shop_task(split, 'text', users=5, queries='text')
    assert 0 <= scores_of(Cross(), task)['ndcg_at_10'] <= 1
    rows = task.shop.rows
    assert len(read) == sum(40 - len(set(s)) for s in rows.seen)


# ---- a report of somebody's model as it is


@library
def test_a_report_of_a_sentence_transformer(split, words, both):
    report = collapse_report(both, split, **BRIEF)
    assert set(report.modalities) == {'text', 'image'}
    plain = plain_embedder(both, split.catalogue.kinds)
    sides = plain.encode_items(split.catalogue), plain.encode_sequences(split.catalogue, split.test.history)
    rows = split.test
    arrays = dict(items=sides[0], sequences=sides[1], targets=rows.targets, seen=(rows.seen_offsets, rows.seen_items))
    again = collapse_report(split=split, **arrays, **BRIEF)
    for m in ('text', 'image'):
        assert report.modalities[m]['evidence'] == again.modalities[m]['evidence']
    alone = collapse_report(words, split, **BRIEF)
    assert set(alone.modalities) == {'text'}
    assert any('image is not judged' in n for n in alone.to_dict()['notes'])
    pictures = replace(
        split,
        catalogue=Catalogue(
            split.catalogue.ids, {'image': split.catalogue.content['image']}, {'image': 'image'}, split.catalogue.table
        ),
    )
    with pytest.raises(DataError, match='reads text, and the shop has image'):
        collapse_report(words, pictures, **BRIEF)


@library
def test_vectors_of_a_plain_encoder_by_hand(split, words):
    plain, texts = plain_embedder(words, {'text': 'text'}), split.catalogue.content['text']
    want = np.stack([words.encode(t, normalize_embeddings=True) if t else np.zeros(32, np.float32) for t in texts])
    np.testing.assert_allclose(plain.encode_items(split.catalogue)['text'], want, atol=1e-5)
    np.testing.assert_allclose(
        plain.encode_sequences(split.catalogue, split.test.history)['text'],
        mean_histories(want, split.test.history),
        atol=1e-5,
    )


@library
def test_a_model_with_a_reader_of_its_own_is_asked_by_it(split, words, folder, monkeypatch):
    from vlm2rec_lab.model.loading import load_embedder

    reader = load_embedder(folder, device='cpu')
    monkeypatch.setattr(words, OWN_READER, lambda: reader, raising=False)
    report = collapse_report(words, split, **BRIEF)
    assert (
        report.modalities['image']['evidence']
        == collapse_report(reader, split, **BRIEF).modalities['image']['evidence']
    )


@library
def test_a_model_without_weights(split):
    "One that counts words has no parameters to say where it lies."
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import BoW

    counts = SentenceTransformer(modules=[BoW(['mug', 'red', 'lamp'])], device='cpu')
    shop = Catalogue(('x', 'y'), {'text': ['a red mug', 'lamp']}, {'text': 'text'})
    found = plain_embedder(counts, shop.kinds).encode_items(shop)['text']
    np.testing.assert_allclose(found, [[0.5**0.5, 0.5**0.5, 0], [0, 0, 1]], atol=1e-6)


def test_arrays_beside_a_model_are_still_refused(split):
    class SentenceTransformer:
        pass

    SentenceTransformer.__module__ = 'sentence_transformers.somewhere'
    with pytest.raises(ValueError, match='needs split='):
        collapse_report(SentenceTransformer(), **BRIEF)
    with pytest.raises(TypeError, match='taken as it is by'):
        collapse_report(object(), split, **BRIEF)


@needed
@library
def test_an_exported_embedder_is_judged_as_the_embedder(split, tmp_path):
    "By its own prompts, and histories as histories, whoever holds it."
    import exported
    import mteb
    from family_checkpoints import FAST, write
    from sentence_transformers import SentenceTransformer

    from vlm2rec_lab.share.mteb_measure import measure
    from vlm2rec_lab.share.mteb_model import as_mteb
    from vlm2rec_lab.share.mteb_task import shop_task, vectors_of

    embedder = exported.taught(write(FAST['llava'], tmp_path / 'base'))
    model = SentenceTransformer(str(embedder.export(tmp_path / 'out')), device='cpu')
    found = measure({'ours': embedder, 'theirs': model}, split, permutations=2, bootstrap=20)
    ours, theirs = (part.drop(columns='model').round(5) for _, part in found.frame.groupby('model', sort=True))
    assert ours.values.tolist() == theirs.values.tolist()
    wrapped, own = vectors_of(as_mteb(model), split), vectors_of(embedder, split)
    for side in ('items', 'sequences'):
        gap = exported.apart(*({m: torch.as_tensor(z) for m, z in v[side].items()} for v in (own, wrapped)))
        assert gap < 1e-5
    assert as_mteb(model).mteb_model_meta.embed_dim == model.get_embedding_dimension()
    task = shop_task(split, 'text')
    scores = [mteb.evaluate(m, task, **QUIET).task_results[0].scores['test'][0] for m in (model, as_mteb(embedder))]
    assert scores[0]['ndcg_at_10'] == scores[1]['ndcg_at_10'] > 0


def test_what_fills_a_short_history_is_no_item():
    z = np.eye(3)
    assert np.allclose(mean_histories(z, [[0, -1], [1, 2]]), [[1, 0, 0], [0, 0.5**0.5, 0.5**0.5]])
