"""What a report says first: what happened, by how much, whether it is clear of zero, and one thing to do."""

import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from vlm2rec_lab.diagnosis.compare import compare, pair_headline, pair_html
from vlm2rec_lab.diagnosis.headline import by_command, headline, spoken
from vlm2rec_lab.diagnosis.report import collapse_report
from vlm2rec_lab.diagnosis.verdict import REASONS, explain, verdict_word
from vlm2rec_lab.diagnosis.worlds import hurt, world

QUICK = dict(permutations=3, bootstrap=200, progress=False)
FACTS = dict(m='image', users='9', best='text', ratio='3 %', low='1 %', high='9 %', drop='.1', share='2 %')


def history(loss, **settings):
    "A training of two steps."
    frame = pd.DataFrame({'grad/text': [1.0, 1.0], 'grad/image': [1.0, 1.0]})
    return SimpleNamespace(frame=frame, settings=dict(loss=loss, steps=120, fuse='concat') | settings)


@pytest.fixture(scope='module')
def healthy():
    return world()


@pytest.fixture(scope='module')
def lost(healthy):
    "Judges an image that died, trained with a loss."
    reference = {side: healthy[side] for side in ('items', 'sequences')}
    dead = hurt(healthy, 'image', 'noise in items')
    return lambda loss, **how: collapse_report(**dead, reference=reference, history=history(loss, **how), **QUICK)


def test_what_happened_by_how_much_and_whether_it_is_clear(lost):
    said = headline(lost('sft').data)
    assert said['tone'] == 'bad'
    assert re.match(r'Image has collapsed: alone it keeps -?\d+ % \[-?\d+, \d+\] of what it gains', said['said'])
    assert 'a loss clear of zero' in said['said']
    assert re.search(r'worse than text alone by 0\.\d{3} \[0\.\d{3}, 0\.\d{3}\] NDCG@10, clear of zero', said['said'])


@pytest.mark.parametrize('loss', ['per-modality', 'wpcl', 'vlm2rec'])
def test_what_was_just_used_is_not_advised(lost, loss):
    report = lost(loss)
    for words in (headline(report.data)['action'], report.modalities['image']['advice'], repr(report)):
        assert f"loss='{loss}'" not in words
    told = by_command(report, 'train', apart=True)
    assert f'--losses {loss}' not in repr(told) + told._repr_html_()


def test_sft_is_advised_what_the_study_recommends(lost):
    assert "loss='per-modality', weight=3, fuse='concat'" in headline(lost('sft').data)['action']


def test_a_half_used_remedy_is_completed(lost):
    report = lost('per-modality', fuse='sum')
    assert headline(report.data)['action'].startswith("Train the same with fuse='concat'")


@pytest.mark.parametrize('called', ['train', 'report', 'demo'])
@pytest.mark.parametrize('reason', REASONS)
def test_commands_speak_in_flags(called, reason):
    d = dict(modalities={'image': dict(advice=explain(reason, **FACTS)[2])}, fusion="fuse={'text': 2, 'image': 1} is.")
    told = spoken(d, {}, called)
    said = told['modalities']['image']['advice']
    assert not re.search(r'\b(loss|fuse|weight|alpha|reference)=', said), said
    assert told['fusion'] == '--fuse text=2,image=1 is.'


def test_python_speaks_in_arguments(lost):
    assert '--' not in repr(lost('sft'))


def test_worse_is_said_with_its_size_and_coloured(healthy):
    pair = compare(
        collapse_report(**healthy, name='before', **QUICK),
        collapse_report(**hurt(healthy, 'image', 'noise in items'), name='after', **QUICK),
    )
    found = pair_headline(pair)
    assert found['tone'] == 'bad' and found['action'].startswith('Keep before.')
    d = pair.changes()['after']['fused']
    words = f'the fused ranking worse by {-d["value"]:.3f} [{-d["high"]:.3f}, {-d["low"]:.3f}], clear of zero'
    html = pair_html(pair)
    assert found['said']['after']['fused'] == words
    assert f'<span class="worse">▼&nbsp;{words}</span>' in html and words in repr(pair)
    assert f'<span class="worse">▼&nbsp;{d["value"]:+.3f} [{d["low"]:+.3f}, {d["high"]:+.3f}] worse</span>' in html
    assert 'class="better"' not in html


def test_what_is_not_clear_of_zero_is_neither_better_nor_worse(healthy):
    pair = compare(collapse_report(**healthy, name='a', **QUICK), collapse_report(**healthy, name='b', **QUICK))
    html = pair_html(pair)
    assert 'class="worse"' not in html and 'class="better"' not in html and 'not clear of zero' in html
    assert pair_headline(pair)['action'].startswith('Bring more users')


def test_cold_items_are_asked_for_in_the_words_of_the_shell():
    from vlm2rec_lab.diagnosis.headline import in_words_of

    said = 'Ask it about items that nobody had bought (split with cold_items, or pass bought=).'
    assert in_words_of('', said) == said
    assert in_words_of('train', said).endswith('had bought (--split cold-items when you train).')


@pytest.mark.parametrize('called', ['train', 'demo', 'report'])
def test_an_advice_names_what_to_type_once(called):
    from vlm2rec_lab.diagnosis.headline import TYPED, in_words_of

    said = in_words_of(called, 'Bring more users: nothing here is clear of zero.')
    flags = TYPED[called][r'\bBring more users\b']
    assert said == f'Bring more users ({flags}): nothing here is clear of zero.' == in_words_of(called, said)


def cancelled():
    "Two modalities that tell the next item, and whose sum is nothing."
    r = np.random.default_rng(1)
    taste, y = r.normal(size=(500, 32)), r.integers(0, 500, 1000)
    i, s = (x + 1.2 * r.normal(size=x.shape) for x in (taste, taste[y]))
    return dict(items=dict(text=i, image=-i), sequences=dict(text=s, image=-s), targets=y)


def test_where_the_fusion_is_at_fault_no_training_is_advised():
    found = headline(collapse_report(**cancelled(), **QUICK).data)
    assert 'Popularity ranks better' in found['said'] and found['action'].startswith(
        "Rank with fuse='concat': NDCG@10 +"
    )
    found = headline(collapse_report(**cancelled(), fuse=lambda v: 0 * v['text'], **QUICK).data)
    assert 'Train longer' not in found['action'] and found['action'].startswith('Rank')


def test_where_nothing_beats_popularity_it_is_training_that_lacks():
    r = np.random.default_rng(0)
    y = (r.pareto(1.2, 2000) * 20).astype(int) % 400
    taste = r.normal(size=(400, 16))
    weak = {m: taste[y] + 6 * r.normal(size=(2000, 16)) for m in ('text', 'image')}
    found = headline(collapse_report(items=dict(text=taste, image=taste), sequences=weak, targets=y, **QUICK).data)
    assert 'Popularity ranks better' in found['said'] and found['action'].startswith('Train longer')


def test_what_is_true_of_several_is_said_of_several():
    r = np.random.default_rng(0)
    nothing = {m: r.normal(size=(200, 8)) for m in ('text', 'image')}
    users, y = {m: r.normal(size=(150, 8)) for m in nothing}, r.integers(0, 200, 150)
    alone = collapse_report(items=nothing, sequences=users, targets=y, **QUICK)
    both = collapse_report(
        items=nothing, sequences=users, targets=y, reference=dict(items=nothing, sequences=users), **QUICK
    )
    assert headline(alone.data)['said'].startswith('Nothing is sure about text. The same is true of image.')
    assert 'reference=' in repr(alone) and 'pass reference' not in repr(both)
    assert {x['reason'] for x in both.modalities.values()} == {'nothing known'}


def test_a_damaged_modality_is_called_damaged():
    hurt_only = dict(verdict='undecided', reason='damaged')
    assert verdict_word(hurt_only) == 'damaged'
    reference = world(seed=3)
    items, users = reference['items'], reference['sequences']
    for noise in np.linspace(0.2, 4, 20):
        r = np.random.default_rng(0)
        worse = {**items, 'image': items['image'] + noise * r.normal(size=items['image'].shape)}
        found = collapse_report(**{**reference, 'items': worse}, reference=dict(items=items, sequences=users), **QUICK)
        if found.modalities['image']['reason'] == 'damaged':
            break
    assert found.verdict == 'undecided' and found.modalities['image']['reason'] == 'damaged'
    html = found._repr_html_()
    assert 'pill damaged' in html and 'pill undecided' not in html and 'DAMAGED' in repr(found)
    both = compare(found, found)
    assert 'damaged' in repr(both) and 'pill damaged' in pair_html(both) and 'pill undecided' not in pair_html(both)


def test_where_no_fusion_is_surely_better_the_best_modality_is_advised():
    d = collapse_report(**cancelled(), **QUICK).data
    kept = {n: x for n, x in d['evidence'].items() if n not in ('concat_gain', 'sum_gain', 'weights_gain')}
    d = d | dict(evidence=kept)
    alone = d['modalities'][d['best']]['evidence']['ndcg']['value']
    assert (
        headline(d)['action'] == f'Rank by {d["best"]} alone, which reaches NDCG@10 {alone:.3f}, or by another fusion.'
    )
    d['modalities'][d['best']]['evidence'].pop('ndcg')
    assert headline(d)['action'].startswith('Train longer')
