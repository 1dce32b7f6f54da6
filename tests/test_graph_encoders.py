"""Encoders in graph recommenders, of genuine classes with random weights: vectors, tuning on the shop, end to end."""

import copy

import numpy as np
import pytest
import torch
import transformers
from pair_encoders import Colours, HashedWords
from small_encoders import dual_models, image_models, save, text_models, tokenizer, unified_model

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.diagnosis.memory import exchanged
from vlm2rec_lab.graph.encoders import ItemReader, dual_encoders, encoder_vectors, learning, mark_of
from vlm2rec_lab.graph.fit import evaluate_graph, fit_graph, tables_of
from vlm2rec_lab.graph.graph import graph_of
from vlm2rec_lab.graph.make import GRAPH_MODELS, make_model, reads_contents
from vlm2rec_lab.graph.models import content_tables
from vlm2rec_lab.graph.paradigms import paradigm_vectors, run_paradigms, run_together, together_cell
from vlm2rec_lab.graph.study import WHOLE, equal_widths, graph_cell, graph_table
from vlm2rec_lab.graph.together import REACHES, AsRead, Together, make_together
from vlm2rec_lab.graph.tuning import Contrast, content_rows, held_out, tune_on_shop
from vlm2rec_lab.graph.unified import load_unified
from vlm2rec_lab.model.encoders import load_encoder
from vlm2rec_lab.model.pair import PairEmbedder
from vlm2rec_lab.shop.catalogue import Catalogue, Interactions
from vlm2rec_lab.shop.dataset import Dataset
from vlm2rec_lab.shop.shares import shares

pytestmark = pytest.mark.filterwarnings('ignore::vlm2rec_lab.data.DataWarning')
transformers.utils.logging.disable_progress_bar()
READERS = [name for name in GRAPH_MODELS if reads_contents(name)]
BATCH = torch.tensor([0, 1, 2, 3, 4]), torch.tensor([3, 5, 3, 8, 9]), torch.tensor([1, 11, 9, 5, 0])
SIZES = dict(width=6, dim=4)


def catalogue(items=14, own=False):
    "Mugs and lamps in colours, with a word of their own or not; item 2 has no picture, 4 no text, 6 neither, 1 is 0."
    rng = np.random.default_rng(0)
    pick = [rng.choice(['red', 'blue', 'green'], items), rng.choice(['mug', 'lamp', 'chair'], items)]
    texts = [f'a {c} {k} of oak' + f' n{i}' * own for i, (c, k) in enumerate(zip(*pick))]
    tones = dict(red=(200, 30, 30), blue=(30, 30, 200), green=(30, 160, 30))
    noise = rng.integers(0, 55, (items, 16, 16, 3))
    pictures = [(noise[i] + np.array(tones[c])).clip(0, 255).astype(np.uint8) for i, c in enumerate(pick[0])]
    if not own:
        texts[1], pictures[1] = texts[0], pictures[0].copy()
    pictures[2] = texts[4] = texts[6] = pictures[6] = None
    ids = [f'i{k}' for k in range(items)]
    return Catalogue(ids, {'text': texts, 'image': pictures}, {'text': 'text', 'image': 'image'})


@pytest.fixture(scope='module')
def shop():
    return catalogue()


@pytest.fixture(scope='module')
def split(shop):
    rng = np.random.default_rng(1)
    lists = [rng.permutation(len(shop))[:6].tolist() for _ in range(20)]
    return shares(Dataset(shop, Interactions.of_sequences(lists), 'mugs'))


@pytest.fixture(scope='module')
def places(tmp_path_factory):
    "Folders of small checkpoints."
    root = tmp_path_factory.mktemp('encoders')
    torch.manual_seed(0)
    for name in ('clip', 'siglip'):
        save(root / name, *dual_models()[name](), tokenizer())
    save(root / 'flava', *unified_model(), tokenizer())
    save(root / 'bert', text_models()['bert'](), tokenizer())
    save(root / 'vit', *image_models()['vit']())
    return root


def opened(places, name):
    "Encoders as they come."
    if name == 'unified':
        return load_unified(places / 'flava', device='cpu')
    if name == 'separate':
        kinds = dict(text='bert', image='vit')
        return {kind: load_encoder(places / where, kind, device='cpu') for kind, where in kinds.items()}
    return dual_encoders(places / name, device='cpu')


KINDS = ('separate', 'clip', 'siglip', 'unified')


# ---- vectors


@pytest.mark.parametrize('kind', KINDS)
def test_gaps_are_zero_and_live_vectors_are_those_of_the_catalogue(shop, places, kind):
    encoders = opened(places, kind)
    z = encoder_vectors(shop, encoders, progress=False)
    assert list(z) == ['text', 'image'] + ['joint'] * (kind == 'unified')
    gone = dict(text={4, 6}, image={2, 6}, joint={2, 4, 6})
    for m, v in z.items():
        assert set(np.flatnonzero(~v.any(1)).tolist()) == gone[m]
        assert (v[0] == v[1]).all() and np.unique(v[[0, 3, 5, 7]], axis=0).shape[0] > 1
    reader = ItemReader(shop, learning(encoders), most=3)
    items = torch.tensor([6, 0, 4, 2, 1, 0])
    for m, v in reader(items).items():
        assert np.allclose(v.detach(), z[m][items], atol=1e-4 * np.abs(z[m]).max())


@pytest.mark.parametrize('kind', KINDS)
def test_nothing_is_encoded_twice(shop, places, tmp_path, kind, monkeypatch):
    encoders, asked = opened(places, kind), []
    cls = type(next(iter(encoders.values())) if isinstance(encoders, dict) else encoders)
    whole = cls.vectors
    monkeypatch.setattr(
        cls, 'vectors', lambda self, contents, **k: asked.append(len(contents)) or whole(self, contents, **k)
    )
    memory = {}
    first = encoder_vectors(shop, encoders, memory=memory, folder=tmp_path, progress=False)
    assert (
        sum(asked)
        == sum(
            len({v if isinstance(v, str) else v.tobytes() for v in column if v is not None})
            for column in shop.content.values()
        )
        if kind != 'unified'
        else asked == [12]
    )
    asked.clear()
    again = [
        encoder_vectors(shop, encoders, memory=memory, progress=False),
        encoder_vectors(shop, opened(places, kind), folder=tmp_path, progress=False),
    ]
    assert not asked and all((a[m] == first[m]).all() for a in again for m in first)
    if kind == 'clip':  # the pair's bank is the same store
        PairEmbedder(encoders, device='cpu').bank(shop, progress=False, vision=tmp_path)
        assert not asked


@pytest.mark.parametrize('lora', [None, 2])
def test_encoders_that_learned_have_another_mark_and_originals_stay(shop, places, lora):
    encoders = opened(places, 'clip')
    before = encoder_vectors(shop, encoders, progress=False)
    twins = learning(encoders, lora)
    with torch.no_grad():
        for e in twins.values():
            for p in e.module.parameters():
                p.add_(0.05 * p.requires_grad)
    memory = {}
    for m, v in encoder_vectors(shop, twins, memory=memory, progress=False).items():
        assert np.abs(v - before[m]).max() > 1e-3
    for m, v in encoder_vectors(shop, encoders, memory=memory, progress=False).items():
        assert (v == before[m]).all()
    assert all(mark_of(twins[m]) != mark_of(encoders[m]) for m in encoders)


def test_wrong_models_are_refused_by_name(places):
    with pytest.raises(DataError, match='open it by load_unified'):
        dual_encoders(places / 'flava')
    with pytest.raises(DataError, match='open the two sides of a dual encoder by dual_encoders'):
        load_unified(places / 'clip')


# ---- tuned on the shop


@pytest.mark.parametrize(
    'kind, how', [('clip', {}), ('clip', dict(lora=2)), ('separate', dict(dims=4)), ('unified', {})]
)
def test_tuning_moves_both_sides_and_goes_on(places, tmp_path, kind, how):
    goods, encoders = catalogue(24, own=True), opened(places, kind)
    how = how | dict(held=0.2, batch=8, most=4, lr=3e-4, head_lr=1e-9, epochs=2, patience=None, progress=False)
    tuned = tune_on_shop(goods, encoders, **how)
    z, new = (encoder_vectors(goods, e, progress=False) for e in (encoders, tuned.encoders))
    still = tune_on_shop(goods, encoders, **how | dict(lr=1e-12))
    assert tuned.run.frame.loss[1] < still.run.frame.loss[1]
    if tuned.run.frame.MRR.max() > tuned.before:
        assert all(np.abs(z[m] - new[m]).max() > 1e-4 for m in ('text', 'image'))
    else:
        assert all(np.allclose(z[m], new[m], atol=1e-5) for m in z)
    tune_on_shop(goods, encoders, **how, folder=tmp_path, callback=lambda r: 'stop' if len(r) == 1 else None)
    on = tune_on_shop(goods, encoders, **how, folder=tmp_path)
    assert on.run.frame[['loss', 'MRR']].values.tolist() == tuned.run.frame[['loss', 'MRR']].values.tolist()
    other = tune_on_shop(goods, encoders, **how | dict(seed=1))
    assert other.run.frame.loss.tolist() != tuned.run.frame.loss.tolist()


class AsWide(Colours):
    "Vectors as long as those of texts."

    size = HashedWords.size


def test_the_contrast_learns_what_colours_are_called():
    how = dict(held=0.2, lr=1e-2, head_lr=1e-2, epochs=30, patience=None, progress=False)
    tuned = tune_on_shop(catalogue(200, own=True), {'text': HashedWords(), 'image': AsWide()}, **how)
    print(tuned)
    assert tuned.run.frame.MRR.max() > 1.5 * tuned.before


def test_the_loss_of_a_tuning_in_chunks_is_the_whole_one(shop, places):
    rows, items = content_rows(shop, ('text', 'image')), torch.tensor([0, 3, 5, 1, 7])

    def gradient(most):
        model = Contrast(ItemReader(shop, learning(opened(places, 'clip')), most), rows, ('text', 'image'))
        model.loss(items).backward()
        return [torch.zeros(()) if p.grad is None else p.grad for p in model.parameters()]

    for a, b in zip(gradient(None), gradient(2), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_two_encoders_of_other_sizes_need_heads(places):
    with pytest.raises(DataError, match='text 24 numbers and image 16 numbers'):
        tune_on_shop(catalogue(40, own=True), {'text': HashedWords(), 'image': Colours()}, progress=False)


def test_held_out_contents_are_not_shown():
    rows = torch.tensor([[0, 0], [0, 1], [1, 1], [2, 2], [3, 3], [4, 4], [5, -1], [6, 5]])
    for seed in range(20):
        teach, held = held_out(rows, 0.3, seed)
        assert not any((rows[a] == rows[b]).any() for a in teach for b in held)
        assert 6 not in torch.cat([teach, held])


# ---- end to end


def arriving(model, batch=BATCH):
    "The gradient of a batch's losses at all that learns in the encoders, one after the other."
    model.train()
    model.begin_epoch(1, torch.Generator().manual_seed(0))
    found = model.losses(*batch, torch.Generator().manual_seed(0))
    own = [p for p in model.reader.parameters() if p.requires_grad]
    value = sum(model.weights[k] * v for k, v in found.items())
    if not value.requires_grad:
        return torch.zeros(1)
    grads = torch.autograd.grad(value, own, allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(own, grads)])


def plain(model, reach='all'):
    """The same with the whole graph kept: every content is encoded at once, without chunks and without a bank, and the
    recommender reads that."""
    vectors, at = {}, torch.cat(BATCH[1:]).unique()
    for part in model.reader.parts:
        z = part.encoder.forward(part.encoder.prepare(part.contents))
        z = torch.cat([z, torch.zeros(1, z.shape[1])])[part.row]
        vectors |= dict(zip(part.sizes, z.split(list(part.sizes.values()), 1)))
    read = model.read(vectors)
    if reach == 'batch':
        live = torch.isin(torch.arange(model.reader.items), at)[:, None]
        read = {m: torch.where(live, v, v.detach()) for m, v in read.items()}
    other = copy.deepcopy(model.recommender)
    other.take({m: v.detach() for m, v in read.items()})
    other.train()
    if hasattr(other, 'begin_epoch'):
        other.begin_epoch(1, None)
    other.take(read, whole=False)
    found = other.losses(*BATCH, torch.Generator().manual_seed(0))
    own = [p for p in model.reader.parameters() if p.requires_grad]
    grads = torch.autograd.grad(sum(model.weights[k] * v for k, v in found.items()), own, allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(own, grads)])


def far(a, b):
    "How far a gradient lies from another one, for its length."
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('lora', [None, 2])
def test_the_gradient_of_vbpr_is_that_of_the_whole_graph(split, shop, places, kind, lora):
    model = make_together('VBPR', graph_of(split), shop, opened(places, kind), lora=lora, most=3, **SIZES)
    if lora:
        with torch.no_grad():  # adapters that did something
            for n, p in model.reader.named_parameters():
                p.add_(0.05 * ('lora_B' in n))
    wanted = plain(model)
    assert wanted.norm() > 0
    rounding = 3e-5 if kind == 'unified' else 1e-5  # joint vectors of random weights are nearly alike
    assert far(arriving(model), wanted) < rounding
    copy.deepcopy(model)  # it hangs on no graph


@pytest.mark.parametrize('reach', REACHES)
@pytest.mark.parametrize('name', READERS)
def test_the_gradient_of_every_model(split, name, reach):
    encoders = {'text': HashedWords(), 'image': Colours()}
    settings = dict(k=3) if name == 'LATTICE' else {}
    shop = catalogue(own=True)  # where nothing is equally near
    model = make_together(name, graph_of(split), shop, encoders, reach=reach, most=2, **SIZES, **settings)
    model.recommender.weights = model.weights = model.weights | {'bpr': 1.0}
    wanted = plain(model, reach)
    assert wanted.norm() > 0
    assert far(arriving(model), wanted) < 1e-5


class NoGradient(ItemReader):
    "The trap: nothing of what the encoders did is remembered."

    def forward(self, items):
        with torch.no_grad():
            return super().forward(items)


class Detached(Together):
    "The trap: what the encoders said is cut off."

    def read(self, vectors):
        return {m: v.detach() for m, v in super().read(vectors).items()}


def trapped(model, how):
    "A model with one of the mistakes."
    owner, cls = (model.reader, NoGradient) if how == 'no_grad' else (model, Detached)
    owner.__class__ = cls
    return model


@pytest.mark.parametrize('how', ['no_grad', 'detach'])
def test_a_trapped_version_is_found_out(split, shop, how):
    def made():
        return make_together('VBPR', graph_of(split), shop, {'text': HashedWords(), 'image': Colours()}, **SIZES)

    wanted = plain(made())
    assert far(arriving(made()), wanted) < 1e-5 < 0.5 < far(arriving(trapped(made(), how)), wanted)
    quick = dict(batch=32, lr=1e-3, epochs=2, patience=None, metric='Recall@5', progress=False)
    moved = []
    for model in (made(), trapped(made(), how)):
        before = [p.detach().clone() for p in model.reader.parameters()]
        fit_graph(model, split, **quick)
        moved.append([not torch.equal(a, b) for a, b in zip(before, model.reader.parameters())])
    assert all(moved[0]) and not any(moved[1])


@pytest.mark.parametrize('kind', ['clip', 'unified'])
def test_one_chunk_at_a_time_is_on_its_way(split, shop, places, kind):
    "No more than `most` contents are encoded at a time, and each distinct one once there and once on the way back."
    model, events = make_together('VBPR', graph_of(split), shop, opened(places, kind), most=2, **SIZES), []
    for part in model.reader.parts:
        whole = part.encoder.forward

        def forward(batch, whole=whole):
            events.append(len(next(iter(batch.values()))))
            return whole(batch)

        part.encoder.forward = forward
    model.begin_epoch(1, None)
    events.clear()
    losses = model.losses(*BATCH, None)
    there, at = events.copy(), torch.cat(BATCH[1:]).unique()
    distinct = [len(p.row[at][p.row[at] >= 0].unique()) for p in model.reader.parts]
    assert sum(there) == sum(distinct) and max(there) == 2
    losses['bpr'].backward()
    assert sorted(events) == sorted(there + there)


@pytest.mark.parametrize('name', READERS)
def test_ranking_is_by_the_encoders_as_they_stand(split, shop, name):
    "After a fit, and after weights were moved by hand: tables of a fresh recommender with vectors that are read anew."
    encoders = {'text': HashedWords(), 'image': Colours()}
    model = make_together(name, graph_of(split), shop, encoders, share=0.5, **SIZES)
    fit_graph(model, split, batch=32, lr=0.02, epochs=3, patience=None, metric='Recall@5', progress=False)
    seen = []
    for _ in range(2):
        found, figures = tables_of(model), evaluate_graph(model, split, k=3)
        z = encoder_vectors(shop, model.encoders, progress=False)
        fresh = {m: a(torch.from_numpy(z[m])) for m, a in zip(model.modalities, model.as_read)}
        other = make_model(name, graph_of(split), fresh, dim=SIZES['dim'])
        parameters = dict(model.recommender.named_parameters())
        with torch.no_grad():
            for n, p in other.named_parameters():
                p.copy_(parameters[n])
        other.take(fresh)
        for a, b in zip(found, tables_of(other)):
            assert np.abs(a - b).max() < 1e-4 * max(1, np.abs(b).max())
        assert np.allclose(figures, evaluate_graph(other, split, k=3))
        seen.append(found[1])
        with torch.no_grad():
            for p in model.reader.parameters():
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)) * p.std())
    assert np.abs(seen[0] - seen[1]).max() > 1e-3 * np.abs(seen[0]).max()


@pytest.mark.parametrize('name', READERS)
def test_a_training_that_was_stopped_goes_on_bit_for_bit(split, shop, tmp_path, name):
    "The memory bank is not kept: every epoch begins with vectors of all items."

    def fitted(folder=None, stop=99):
        model = make_together(name, graph_of(split), shop, {'text': HashedWords(), 'image': Colours()}, **SIZES)
        how = dict(
            batch=16, lr=0.02, epochs=4, patience=None, every=2, metric='Recall@5', progress=False, folder=folder
        )
        run = fit_graph(model, split, **how, callback=lambda records: 'stop' if len(records) == stop else None)
        return run.frame.loss.tolist(), tables_of(model)

    fitted(tmp_path, 1)
    (losses, tables), (straight, wanted) = fitted(tmp_path), fitted()
    assert losses == straight and all((a == b).all() for a, b in zip(tables, wanted))


def test_without_a_modality_is_by_the_encoders_as_they_stand(split, shop):
    model = make_together('VBPR', graph_of(split), shop, {'text': HashedWords(), 'image': Colours()}, **SIZES)
    before = model.without('image')[1].detach().clone()
    with torch.no_grad():
        for p in model.encoders['text'].module.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    after = model.without('image')[1].detach()
    assert (before - after).abs().max() > 1e-4
    with pytest.raises(DataError, match="did you mean 'image'"):
        model.without('images')


@pytest.mark.parametrize('name', READERS)
def test_it_begins_where_frozen_vectors_begin(split, shop, places, name):
    encoders = opened(places, 'unified')
    start = equal_widths(encoder_vectors(shop, encoders, progress=False), SIZES['width'])
    frozen = make_model(name, graph_of(split), start, dim=SIZES['dim'], seed=3)
    live = make_together(name, graph_of(split), shop, encoders, seed=3, **SIZES)
    for a, b in zip(tables_of(live), tables_of(frozen)):
        assert np.allclose(a, b, atol=1e-4 * np.abs(b).max())
    assert sum(p.numel() for p in live.recommender.parameters()) == sum(p.numel() for p in frozen.parameters())


@pytest.mark.parametrize('width', [3, 6, 40, None])
def test_as_read_is_what_is_done_once_and_for_all(shop, places, width):
    z = encoder_vectors(shop, opened(places, 'unified'), progress=False)
    want = content_tables(equal_widths(z, width), len(shop))
    for m, v in z.items():
        found = AsRead(v, width)(torch.from_numpy(v))
        assert torch.allclose(found, want[m], atol=1e-4)
        assert (found.any(1) == torch.from_numpy(v).any(1)).all()


def test_the_rate_of_the_encoders_is_their_own(split, shop):
    moved = []
    for share in (0, 0.01, 1):
        model = make_together(
            'VBPR', graph_of(split), shop, {'text': HashedWords(), 'image': Colours()}, share=share, **SIZES
        )
        before = [p.detach().clone() for p in model.reader.parameters()]
        fit_graph(model, split, batch=1000, lr=0.01, epochs=1, metric='Recall@5', progress=False)
        moved.append(max(float((a - b.detach()).abs().max()) for a, b in zip(before, model.reader.parameters())))
    assert moved[0] == 0 and moved[1] == pytest.approx(1e-4, rel=0.05) and moved[2] == pytest.approx(1e-2, rel=0.05)


# ---- the comparison


def test_without_a_rate_for_encoders_a_cell_is_the_one_of_frozen_vectors(split, shop):
    encoders = {'text': HashedWords(), 'image': Colours()}
    quick = dict(cut=3, batch=32, lr=0.02, epochs=3, patience=None, progress=False, **SIZES)
    z = encoder_vectors(shop, encoders, progress=False)
    for name in READERS:
        still, fixed = together_cell(split, name, encoders, share=0, **quick), graph_cell(split, name, z, **quick)
        assert list(still['figures']) == list(fixed['figures'])
        a, b = (np.mean(c['figures'][WHOLE]['NDCG@3']) for c in (still, fixed))
        assert a == pytest.approx(b, abs=0.03) and still['kept']['best'] == fixed['kept']['best']


def test_three_paradigms_in_one_table(split, shop, places, tmp_path):
    encoders = opened(places, 'clip')
    tuned = tune_on_shop(shop, encoders, held=0.2, epochs=1, progress=False)
    quick = dict(cut=3, batch=32, lr=0.02, epochs=1, progress=False, **SIZES)
    lines = []
    cells = run_paradigms(tmp_path, split, encoders, tuned, ['LightGCN', 'VBPR'], 1, said=lines.append, lora=2, **quick)
    table = graph_table(cells)
    found = table[table.left == WHOLE][['model', 'encoder']].values.tolist()
    ways = ('pre-trained', 'fine-tuned', 'end-to-end')
    assert found == [['LightGCN', ''], *([['VBPR', way] for way in ways])] and len(lines) == 4
    again = run_together(tmp_path / 'together', split, encoders, ['VBPR'], 1, name='mine', lora=2, **quick)
    assert [c['encoder'] for c in again] == ['mine'] and again[0]['figures'] == cells[-1]['figures']
    assert run_paradigms(tmp_path, split, encoders, tuned, ['LightGCN', 'VBPR'], 1, lora=2, **quick) == cells
    with pytest.raises(DataError, match='lora=2'):
        run_paradigms(tmp_path, split, encoders, tuned, ['VBPR'], 1, **quick)
    with pytest.raises(DataError, match='contents='):
        run_together(tmp_path / 'together', exchanged(split), encoders, ['VBPR'], 1, lora=2, **quick)
    model = make_together('VBPR', graph_of(split), shop, encoders, **SIZES)
    assert list(paradigm_vectors(shop, encoders, tuned, model)) == list(ways)
