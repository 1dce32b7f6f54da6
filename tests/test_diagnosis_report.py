"""Everything that people bring to a report: few users, one modality or three, half precision, files, an embedder."""

import json
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.diagnosis import report as room
from vlm2rec_lab.diagnosis.inputs import read_downstream
from vlm2rec_lab.diagnosis.measure import EVIDENCE, Line
from vlm2rec_lab.diagnosis.pages import page, report_html, report_markdown
from vlm2rec_lab.diagnosis.report import Report, as_data, collapse_report
from vlm2rec_lab.diagnosis.verdict import RULES
from vlm2rec_lab.diagnosis.worlds import hurt, world
from vlm2rec_lab.ranking.evaluate import Estimate

QUICK = dict(permutations=3, bootstrap=200)
SIDES = ('items', 'sequences')
TITLES = [f'item {i}' for i in range(200)]


@pytest.fixture(scope='module')
def healthy():
    return world()


@pytest.fixture(scope='module')
def noisy(healthy):
    return hurt(healthy, 'image', 'noise in items')


@pytest.fixture(scope='module')
def plain(healthy):
    "The report of the healthy world."
    return collapse_report(**healthy, **QUICK).to_dict()


def only(w, modality):
    "A world with one modality."
    return {k: {modality: v[modality]} if k in SIDES else v for k, v in w.items()}


def quietly(**kw):
    "A report whose warnings are expected."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return collapse_report(**kw, **QUICK)


def verdicts(report):
    return {m: x['verdict'] for m, x in report.modalities.items()}


@pytest.mark.parametrize('users', [0, 1, 5])
def test_few_users_are_undecided_in_every_form(healthy, users):
    some = {m: x[:users] for m, x in healthy['sequences'].items()}
    targets = healthy['targets'][:users]
    r = collapse_report(items=healthy['items'], sequences=some, targets=targets, permutations=2, titles=['x'] * 200)
    assert (r.verdict, r.modalities['text']['reason']) == ('undecided', 'few users')
    json.dumps(r.to_dict(), allow_nan=False)
    assert repr(r) and r._repr_html_() and report_markdown(r.data)


def test_one_modality(healthy):
    assert collapse_report(**only(healthy, 'text'), **QUICK).verdict == 'healthy'
    assert collapse_report(**only(hurt(healthy, 'text', 'noise'), 'text'), **QUICK).verdict == 'undecided'


def test_knowledge_that_the_cosine_does_not_see_is_hidden(healthy):
    mirrored = healthy['sequences']['image'][:, ::-1].copy()
    turned = dict(healthy, sequences={**healthy['sequences'], 'image': mirrored})
    x = collapse_report(**turned, **QUICK).modalities['image']
    assert (x['verdict'], x['reason']) == ('collapsed', 'hidden')


def test_three_modalities():
    wide = world(noise={'text': 0.3, 'image': 0.5, 'audio': 0.4})
    r = collapse_report(**hurt(wide, 'audio', 'noise in items'), **QUICK)
    assert verdicts(r) == {'text': 'healthy', 'image': 'healthy', 'audio': 'collapsed'}
    assert 'neighbours text | audio' in r.evidence


def test_half_precision(healthy):
    half = {k: {m: torch.tensor(x).half() for m, x in healthy[k].items()} for k in SIDES}
    assert collapse_report(**half, targets=torch.tensor(healthy['targets']), **QUICK).verdict == 'healthy'


@pytest.mark.parametrize('fuse', ['concat', {'text': 2, 'image': 1}])
def test_other_fusions(healthy, fuse):
    assert collapse_report(**healthy, fuse=fuse, **QUICK).verdict == 'healthy'
    dead = collapse_report(**hurt(healthy, 'text', 'constant'), fuse=fuse, **QUICK)
    assert dead.modalities['text']['verdict'] == 'collapsed'


def test_a_modality_without_weight_is_under_used(healthy):
    r = collapse_report(**healthy, fuse={'text': 1, 'image': 0}, **QUICK)
    assert r.modalities['image']['verdict'] == 'under-used'


def test_a_fusion_of_ones_own(healthy):
    def weighted(vectors):
        return np.concatenate([np.sqrt(w) * vectors[m] for m, w in (('text', 0.5), ('image', 0.5))], 1)

    own = collapse_report(**healthy, fuse=weighted, **QUICK)
    assert (own.verdict, own.to_dict()['fuse']) == ('healthy', 'weighted')
    by_name = collapse_report(**healthy, fuse='concat', **QUICK)
    assert own.evidence['fused_ndcg'] == by_name.evidence['fused_ndcg']


def test_names_from_data_are_escaped(healthy):
    spiky = collapse_report(**healthy, titles=['<script>alert(1)</script>'] * 200, name='<script>', **QUICK)
    assert '<script' not in page(spiky.name, report_html(spiky.data)) + report_markdown(spiky.data)


def test_zero_vectors_are_warned_of_and_noted(healthy):
    zero = {**healthy, 'items': {**healthy['items'], 'image': healthy['items']['image'].copy()}}
    zero['items']['image'][:3] = 0
    assert 'zero' in quietly(**zero).data['notes'][0]
    with pytest.warns(UserWarning) as caught:
        collapse_report(**zero, **QUICK)
    assert caught[0].filename == __file__


def test_an_absent_modality_is_judged_where_it_is(healthy):
    gone = quietly(**hurt(healthy, 'image', 'absent', 0.8))
    assert gone.modalities['image']['verdict'] == 'healthy'
    assert gone.modalities['image']['sentence'].startswith('Among the 40 of 200 items')
    assert any('160 of 200 (80 %) vectors are zero' in n for n in gone.data['notes'])


@pytest.fixture(scope='module')
def tables(healthy):
    "The healthy world as two tables."
    out = {k: pd.DataFrame({m: list(x) for m, x in healthy[k].items()}) for k in SIDES}
    out['items']['item_id'] = [f'p{i}' for i in range(200)]
    out['sequences']['target'] = [f'p{i}' for i in healthy['targets']]
    return out


def test_tables_and_files_say_the_same_as_arrays(healthy, tables, plain, tmp_path):
    for k, t in tables.items():
        t.to_parquet(tmp_path / f'{k}.parquet')
    files = {k: str(tmp_path / f'{k}.parquet') for k in tables}
    assert collapse_report(**tables, **QUICK).to_dict() == plain
    assert collapse_report(**files, **QUICK).to_dict() == plain
    assert collapse_report(**healthy, reference=files, **QUICK).to_dict()['ceiling'] == 'reference'


class Fixed:
    "An embedder that knows its vectors."

    def __init__(self, w):
        self.w = w

    def encode_items(self, catalogue):
        return {m: torch.tensor(x) for m, x in self.w['items'].items()}

    def encode_sequences(self, catalogue, history):
        return {m: torch.tensor(x) for m, x in self.w['sequences'].items()}


class Titles(list):
    "A catalogue that knows its titles."

    def title(self, i):
        return self[i]


@pytest.fixture(scope='module')
def split(healthy):
    rows = SimpleNamespace(
        history=None, targets=healthy['targets'], seen_offsets=np.zeros(1001, int), seen_items=np.zeros(0, int)
    )
    return SimpleNamespace(catalogue=Titles(TITLES), test=rows)


def test_an_embedder_with_a_split_and_a_history(healthy, split):
    norms = {'grad/text': [3.0, 3.0, np.nan], 'grad/image': [1.0, 1.0, np.nan]}
    log = SimpleNamespace(frame=pd.DataFrame(norms))
    r = collapse_report(Fixed(healthy), split, history=log, **QUICK)
    assert r.verdict == 'healthy'
    assert r.modalities['text']['evidence']['gradient_share']['value'] == 0.75
    assert len(r.to_dict()['examples']) == 5


def test_inputs_that_do_not_fit(healthy, split):
    for kw, said in (
        (dict(embedder=Fixed(healthy)), 'needs split='),
        (dict(embedder=Fixed(healthy), split=split, targets=[1]), 'not both'),
        (dict(items=healthy['items']), 'items, sequences and targets'),
        (dict(healthy, titles=['a']), 'titles has 1'),
        (dict(healthy, fuse='konkat'), "did you mean 'concat'"),
        (dict(healthy, targets=healthy['targets'] + 500), 'targets: row'),
    ):
        with pytest.raises(ValueError, match=said):
            collapse_report(**kw)
    with pytest.raises(TypeError, match='has no encode_items'):
        collapse_report(object(), split)


def test_other_rules(healthy):
    assert collapse_report(**healthy, rules=dict(RULES, users=1001), **QUICK).verdict == 'undecided'


def test_both_modalities_lost(healthy):
    both = hurt(hurt(healthy, 'text', seed=1), 'image', seed=2)
    r = collapse_report(**both, reference={k: healthy[k] for k in SIDES}, permutations=5)
    assert verdicts(r) == {'text': 'collapsed', 'image': 'collapsed'}


def test_the_same_as_its_reference_is_healthy(healthy):
    r = collapse_report(**healthy, reference={k: healthy[k] for k in SIDES}, permutations=5)
    assert (verdicts(r), r.to_dict()['ceiling']) == ({'text': 'healthy', 'image': 'healthy'}, 'reference')


def test_a_report_as_an_object(noisy, tmp_path):
    r = collapse_report(**noisy, name='noise', **QUICK)
    assert isinstance(r, Report)
    assert (r.name, r.evidence, r.to_dict()['schema_version']) == ('noise', r.to_dict()['evidence'], room.SCHEMA)
    assert r._repr_html_().startswith('<style>') and 'COLLAPSED' in repr(r)
    for suffix in ('html', 'json', 'md'):
        r.save(tmp_path / 'deep' / f'report.{suffix}')
    assert len(list((tmp_path / 'deep').iterdir())) == 3
    assert as_data.__annotations__ == {}


def test_a_downstream_table_is_shown_and_changes_nothing_else(noisy):
    figures = {'NDCG@10 all': [0.05, 0.061], 'NDCG@10 all spread': [0.001, np.nan], 'seeds': [3, 1]}
    table = pd.DataFrame(figures, index=['random ids', 'text'])
    bare = collapse_report(**noisy, titles=TITLES, **QUICK)
    shown = collapse_report(**noisy, titles=TITLES, downstream=table, **QUICK)
    data = shown.to_dict()
    assert data.pop('downstream') == read_downstream(table)['downstream']
    assert data == bare.to_dict()
    assert '0.0500 ± 0.0010' in repr(shown) and '0.0500 ± 0.0010' in shown._repr_html_()
    assert 'Downstream' not in bare._repr_html_()


@pytest.fixture
def toy():
    "A line of evidence from outside, taken away again."
    EVIDENCE['toy'] = Line(
        'place of the next item, {k} at most', lambda task, raw, m: np.minimum(raw['ranks'][m].expected + 1, task.k)
    )
    yield 'toy'
    del EVIDENCE['toy']


def test_a_registered_line_appears_in_every_form_and_changes_nothing_else(healthy, plain, toy):
    r = collapse_report(**healthy, **QUICK)
    label = 'place of the next item, 10 at most'
    assert repr(r).count(label) == 2
    assert label in report_markdown(r.data) and f'<td>{label} (context)</td>' in r._repr_html_()
    data = r.to_dict()
    for x in data['modalities'].values():
        e = x['evidence'].pop(toy)
        assert 1 < e['low'] < e['value'] < e['high'] < 10
    assert data == plain


def test_without_the_line_nothing_is_left_of_it(healthy, plain):
    assert 'toy' not in EVIDENCE
    assert collapse_report(**healthy, **QUICK).to_dict() == plain


def test_a_line_that_nobody_registered_is_an_error(healthy, monkeypatch):
    def decide(*args, _decide=room.decide, **kw):
        found, best = _decide(*args, **kw)
        found['text']['evidence']['shapely_share'] = Estimate(0.5, 0.4, 0.6)
        return found, best

    monkeypatch.setattr(room, 'decide', decide)
    with pytest.raises(DataError, match="no line of evidence 'shapely_share'; did you mean 'shapley_share'"):
        collapse_report(**healthy, **QUICK)
