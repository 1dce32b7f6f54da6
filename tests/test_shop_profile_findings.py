"""What a profile says: spoilt shops, each with its finding, and the words of it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from vlm2rec_lab.data import Catalogue, Dataset, Interactions, profile
from vlm2rec_lab.shop.profile_figures import (
    content_figures,
    image_figures,
    log_figures,
    order_figures,
    text_figures,
    time_figures,
)
from vlm2rec_lab.shop.profile_findings import (
    FINDINGS,
    LIMITS,
    content_findings,
    finds,
    log_findings,
    time_findings,
    with_limits,
)
from vlm2rec_lab.studio import make_studio

NOW = pd.Timestamp('2026-01-01', tz='UTC').timestamp()
DAY = 86_400.0
STUDIO = make_studio(items=200, users=400)
LOG = STUDIO.interactions
RNG = np.random.default_rng(0)
START = np.repeat(NOW - DAY * RNG.uniform(40, 400, 400), 9)
TIMES = START + DAY * np.tile(np.arange(9), 400) + RNG.uniform(0, DAY, 3600)
CUSTOMERS = tuple(f'u{k}' for k in RNG.permutation(400))


def shop(times=TIMES, items=LOG.items, lengths=LOG.lengths, **content):
    "The studio with times, or with other times, items, lengths or contents."
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    catalogue = replace(STUDIO.catalogue, content={**STUDIO.catalogue.content, **content})
    return Dataset(catalogue, Interactions(CUSTOMERS[: len(lengths)], offsets, items, times), 'a shop')


def said_of(ds, findings):
    "What is said of the log or its times: {name: Finding}."
    f = dict(
        log_figures(ds.interactions, ds.catalogue.ids),
        time=time_figures(ds.interactions, NOW),
        order=order_figures(ds.interactions, ds.catalogue.ids),
    )
    return {x.name: x for x in findings(f, with_limits())}


def about(ds, tokenizer=None, **options):
    "What is said of the content: {name: Finding}."
    c = ds.catalogue
    f = dict(
        log_figures(ds.interactions, c.ids),
        content=content_figures(c, ds.interactions),
        modalities={
            m: text_figures(c, m, tokenizer) if c.kinds[m] == 'text' else image_figures(c, m, **options)[0]
            for m in c.content
        },
    )
    return {x.name: x for x in content_findings(f, with_limits())}


def every(n, modality, other):
    "The contents of a modality, each n-th one replaced by a function of it."
    return [other(v) if i % n == 0 else v for i, v in enumerate(STUDIO.catalogue.content[modality])]


# --- times ----------------------------------------------------------------------------------------------------------


def test_positions_are_no_trouble():
    assert said_of(shop(np.tile(np.arange(9.0), 400)), time_findings) == {}


def test_one_time_for_everything_is_said_of_numbers_too():
    assert 'one time' in said_of(shop(TIMES * 0 + 5), time_findings)['ties'].sentence


def test_times_in_whole_weeks():
    ties = said_of(shop(np.floor(TIMES / 7 / DAY) * 7 * DAY), time_findings)['ties']
    assert 'whole days' in ties.sentence and ties.evidence['tied_targets'] > 200


def test_half_of_the_log_in_one_night_is_serious():
    night = np.where(np.arange(3600) % 9 < 5, NOW - 450 * DAY, TIMES)
    assert said_of(shop(night), time_findings)['one_time'].severity == 'serious'


def test_ties_of_a_night_are_not_in_whole_days():
    night = np.where(RNG.random(3600) < 0.4, NOW - 450 * DAY, TIMES)
    night = np.sort(night.reshape(400, 9)).ravel()
    assert not said_of(shop(night), time_findings)['ties'].evidence['whole_days']


@pytest.mark.parametrize('factor', [1e3, 1e6, 1e9, 1e-3])
def test_another_unit_is_the_only_finding(factor):
    assert list(said_of(shop(TIMES * factor), time_findings)) == ['unit']


def test_how_to_repair_a_unit():
    small, large = (said_of(shop(TIMES * k), time_findings)['unit'] for k in (1e-3, 1e3))
    assert 'Multiply' in small.remedy and 'Divide' in large.remedy
    assert large.evidence['unit'] == 'ms'


def test_one_date_in_the_future():
    late = TIMES.copy()
    late[8] = NOW + 5
    found = said_of(shop(late), time_findings)['odd_dates']
    assert (found.evidence['future'], found.severity, found.ids) == (1, 'caution', (CUSTOMERS[0],))


# --- the log --------------------------------------------------------------------------------------------------------


def test_a_small_catalogue_is_not_judged_by_shares_of_it():
    "Ten items: a hundredth of them, and an order of them, mean nothing."
    log = Interactions.of_sequences([[0] * 199] + [list(range(k)) for k in range(1, 10)] * 30)
    ten = Dataset(Catalogue(tuple('abcdefghij'), {'text': ['x'] * 10}, {'text': 'text'}), log, 'ten items')
    assert set(said_of(ten, log_findings)) & {'order_items', 'concentration', 'bots'} == set()


def test_a_script_is_told_with_its_length():
    lengths = np.full(400, 7)
    lengths[5] = 807
    assert said_of(shop(np.sort(TIMES), lengths=lengths), log_findings)['bots'].evidence['longest'] == 807


def test_a_shop_sorted_by_sales():
    items = np.minimum(RNG.geometric(0.02, 3600) - 1, 199)
    assert said_of(shop(items=items), log_findings)['order_items'].severity == 'caution'


# --- the content ----------------------------------------------------------------------------------------------------

GREY = np.full((90, 120, 3), 200, np.uint8)


def test_a_placeholder_in_a_sample_is_extrapolated():
    found = about(shop(image=every(3, 'image', lambda v: GREY)), max_images=100)['placeholder']
    assert found.sentence.startswith('Some ')


def test_items_without_anything_are_named():
    bare = shop(image=every(5, 'image', lambda v: None), text=every(10, 'text', lambda v: None))
    assert about(bare)['empty'].ids[:2] == ('p0000', 'p0010')


def test_long_texts_are_counted_in_tokens_or_in_words():
    novels = shop(text=every(2, 'text', lambda v: v + ' and so on' * 40))
    assert 'in tokens it is more' in about(novels)['cut'].sentence
    cut = about(novels, lambda texts, add_special_tokens: {'input_ids': [list(t) for t in texts]})['cut']
    assert 'in tokens' not in cut.sentence and cut.evidence['unit'] == 'tokens'


def test_an_empty_catalogue_has_no_findings():
    none = content_figures(Catalogue((), {'text': []}, {'text': 'text'}), Interactions.of_sequences([]))
    assert content_findings(dict(size=dict(items=0), modalities={}, content=none), with_limits()) == []


def test_one_title_of_many_items():
    ds, titles = shop(), list(STUDIO.catalogue.table.title)
    table = pd.DataFrame({'title': ['Untitled' if i % 4 == 0 else t for i, t in enumerate(titles)]})
    untitled = replace(ds, catalogue=replace(ds.catalogue, table=table))
    found = about(untitled)
    assert set(found) == {'titles'} and "50 items are called 'Untitled'" in found['titles'].sentence


# --- all together ---------------------------------------------------------------------------------------------------


def test_limits_that_are_lowered_or_raised():
    assert profile(STUDIO, now=NOW, limits={'missing': 0}).findings == ()
    spoilt = shop(image=every(3, 'image', lambda v: GREY))
    assert profile(spoilt, now=NOW).finding('placeholder').severity == 'serious'
    assert profile(spoilt, now=NOW, limits={'placeholder': 100, 'near': 1}).findings == ()


def test_every_function_is_registered_once_under_its_name():
    names = [name for part in FINDINGS.values() for name in part]
    assert len(names) == len(set(names))
    assert all(f.__name__ == f'_{name}' and f.__doc__ for part in FINDINGS.values() for name, f in part.items())


def test_a_finding_of_ones_own(monkeypatch):
    "One function and one registration: it is asked for a part of the figures, and told with the others."
    from vlm2rec_lab.shop.profile_findings import Finding

    monkeypatch.setitem(FINDINGS, 'log', dict(FINDINGS['log']))

    @finds('log')
    def _round(f, L):
        "A number of users that is round."
        if f['size']['users'] % 100 == 0:
            yield Finding('round', 'note', f'{f["size"]["users"]} users: somebody cut here.', 'Ask.', {})

    assert [x.name for x in profile(STUDIO, now=NOW).findings] == ['round']
    assert 'round' not in LIMITS
