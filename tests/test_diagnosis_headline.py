"""What a report says first: what happened, by how much, whether it is clear of zero, and one thing to do."""

import re
from types import SimpleNamespace

import pandas as pd
import pytest

from vlm2rec_lab.diagnosis.compare import compare, pair_headline, pair_html
from vlm2rec_lab.diagnosis.headline import by_command, headline, spoken
from vlm2rec_lab.diagnosis.report import collapse_report
from vlm2rec_lab.diagnosis.verdict import REASONS, explain
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
    assert f'<span class="worse">▼ {words}</span>' in html and words in repr(pair)
    assert f'<span class="worse">▼ {d["value"]:+.3f} [{d["low"]:+.3f}, {d["high"]:+.3f}] worse</span>' in html
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
