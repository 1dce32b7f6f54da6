"""The decision over numbers by hand, and its words."""

import numpy as np
import pytest
from fastcore.test import test_close as close
from lifts import exactly, sure

from vlm2rec_lab.diagnosis.evidence import Task, fused_gain, shuffled_gain
from vlm2rec_lab.diagnosis.pages import SIGNS
from vlm2rec_lab.diagnosis.verdict import REASONS, VERDICTS, Lift, explain, judge, lifts, metric_at_k_mean
from vlm2rec_lab.diagnosis.worlds import world
from vlm2rec_lab.ranking.evaluate import Estimate

WIDE = Lift(0.06, np.linspace(0.0, 0.12, 100), np.linspace(0, 0.12, 100), True)
FACTS = dict(m='image', users=50, ratio='3 %', low='1 %', high='9 %', drop='.001', share='2 %', best='text')


def reason(own, drop=0.1, share=0.5, **more):
    "The reason for a modality beside a best one of lift 0.2, fused to 0.25."
    drop = drop if isinstance(drop, Estimate) else exactly(drop)
    return judge(own, sure(0.2), sure(0.25), drop, exactly(share), **more)[0]


def test_every_verdict_has_a_sign():
    assert set(SIGNS) == {*VERDICTS, 'damaged'}


def test_what_the_reference_did_not_know_can_be_learned():
    assert reason(sure(0.1), ceiling=sure(0.001, False)) == 'used'


def test_wide_intervals_leave_silence_and_loss_open():
    assert reason(WIDE) == 'silence unclear'
    assert reason(WIDE, ceiling=sure(0.1)) == 'loss unclear'


@pytest.mark.parametrize('drop', [0, 0.05])
def test_use_is_unclear_where_the_loss_is_not_sure(drop):
    assert reason(sure(0.2), Estimate(drop, -0.1, 0.1), 0.02) == 'use unclear'


def test_a_modality_that_is_not_surely_above_chance():
    assert reason(sure(0.06, False)) == 'at chance'
    assert reason(sure(0.0, False), ceiling=sure(0.1, False)) == 'ceiling unclear'


def test_nobody_is_silent_beside_a_best_that_is_not_surely_above_chance():
    used = dict(fused=sure(0.25), drop=exactly(0.1), share=exactly(0.5))
    assert judge(sure(0.01, False), sure(0.2), **used)[0] == 'silent'
    assert judge(sure(0.01, False), sure(0.2, False), **used)[0] == 'at chance'
    assert judge(sure(0.01, False), [sure(0.2, False), sure(0.19, False)], **used)[0] == 'at chance'
    # what a probe finds, or a reference had, needs no other modality
    assert judge(sure(0.01, False), sure(0.2, False), probe=sure(0.1), **used)[0] == 'hidden'
    assert judge(sure(0.01, False), sure(0.2, False), ceiling=sure(0.1), **used)[0] == 'lost'


@pytest.mark.parametrize(
    'own, probe, why', [(0.01, 0.1, 'hidden'), (0.01, 0.012, 'silent'), (0.1, 0.2, 'dimmed'), (0.19, 0.2, 'used')]
)
def test_a_probe_tells_hidden_from_silent(own, probe, why):
    assert reason(sure(own), probe=sure(probe)) == why


@pytest.mark.parametrize('why', REASONS)
def test_every_reason_names_its_modality(why):
    verdict, sentence, advice = explain(why, **FACTS)
    assert verdict in VERDICTS
    assert 'mage' in sentence + advice or why == 'few users'


def test_lifts_of_a_task():
    task = Task.of(**world())
    gains = {m: fused_gain(task, modalities=[m]) for m in task.items}
    found = lifts(gains, task, {m: shuffled_gain(task.items[m], task.sequences[m], task) for m in task.items})
    assert isinstance(found['text'], Lift)
    assert set(lifts({'a': np.zeros(0)}, task.take(np.arange(0)), {'a': np.full(3, np.nan)})) == {'a'}


def test_one_place_is_worth_one():
    close(metric_at_k_mean(1), 1.0)


def test_a_sentence_names_the_rule_that_was_asked_for():
    said = explain('few users', m='image', users='100', rule_users=200)
    assert 'fewer than 200' in said[1] and 'at least 200' in said[2]


@pytest.mark.parametrize('m', ['{ratio}', '{m}', '{{best}}', '{M}{high}'])
def test_a_name_in_braces_stays_as_it_is(m):
    facts = dict(m=m, best=m, ratio='3 %', low='1 %', high='9 %', drop='-.001', share='2 %', users='50')
    for reason in ('silent', 'ignored', 'lost'):
        _, sentence, advice = explain(reason, **facts)
        assert m.lower() in sentence.lower()
        assert '{{' not in advice.replace(m, '') and ('reference=' not in advice or m in advice)
