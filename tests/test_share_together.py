"""Questions that are answered together: each as if it were alone, none of them lost, whatever happens to the others."""

import asyncio
import threading
from functools import partial

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.share.answers import recommend, recommend_all, shelf_of
from vlm2rec_lab.share.desk import Desk
from vlm2rec_lab.share.index import Index, build_index
from vlm2rec_lab.share.limits import Limits, Refused
from vlm2rec_lab.share.stock import Shop, recommended


@pytest.fixture(scope='module')
def shelf(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp('together') / 'index', np.random.default_rng(0)
    vectors = {m: rng.normal(size=(50, d)).round(1) for m, d in dict(text=3, image=2).items()}  # many ties
    vectors['image'][::7] = 0
    build_index(folder, vectors, pd.DataFrame(dict(item_id=[f'i{k}' for k in range(50)], price=range(50))))
    return shelf_of(Index(folder))


def alone(shelf, history, **how):
    "What one question is answered, an error as its words."
    try:
        return recommend(shelf, history, **how)
    except DataError as e:
        return str(e)


ids = st.integers(0, 52).map('i{}'.format)  # i50 to i52 are not there


@given(
    st.lists(st.lists(ids, min_size=1, max_size=6), min_size=1, max_size=9),
    st.integers(1, 60),
    st.booleans(),
    st.sampled_from([None, dict(text=1, image=0), dict(text=0.3, image=2.0)]),
    st.sampled_from([None, [], [('price', '<', 20)], [('price', '<', 0)]]),
    st.sampled_from([None, 0, 0.4]),
)
def test_answers_are_those_of_one_by_one(shelf, histories, k, repeat, weights, where, diversity):
    how = dict(k=k, repeat=repeat, weights=weights, where=where, diversity=diversity)
    found = recommend_all(shelf, [(h, None) for h in histories], **how)
    said = [str(x) if isinstance(x, DataError) else x for x in found]
    assert said == [alone(shelf, h, **how) for h in histories]  # scores and parts to the last bit


def test_vectors_of_a_model_and_means_may_stand_side_by_side(shelf):
    made = {m: np.ones((1, d), np.float32) for m, d in shelf.index.modalities.items()}
    found = recommend_all(shelf, [(['i1'], made), (['i2'], None)], k=5)
    assert found == [recommend(shelf, ['i1'], k=5, vectors=made), recommend(shelf, ['i2'], k=5)]
    assert [x['by'] for x in found] == ['encoder', 'mean']


def test_vectors_that_cannot_be_used_hinder_no_other(shelf):
    made = {m: np.ones((1, d), np.float32) for m, d in shelf.index.modalities.items()}
    bad = [
        made | dict(text=np.full((1, 3), np.nan)),
        made | dict(sound=made['text']),
        made | dict(text=np.ones((1, 9))),
    ]
    found = recommend_all(shelf, [(['i1'], v) for v in (made, *bad, dict(text=made['text']))], k=5)
    assert [type(x) for x in found] == [dict, ValueError, DataError, DataError, dict]
    assert found[0] == recommend(shelf, ['i1'], k=5, vectors=made)
    assert {i['parts']['image'] for i in found[4]['items']} == {0.0}


def test_a_title_that_says_nothing_is_the_id(tmp_path):
    titles = ['a', '', '  ', None, np.nan]
    build_index(tmp_path / 'i', {'text': np.eye(5)}, pd.DataFrame(dict(item_id=list('vwxyz'), title=titles)))
    assert shelf_of(Index(tmp_path / 'i')).titles == ('a', 'w', 'x', 'y', 'z')


def test_what_is_wrong_with_all_is_said_to_all(shelf):
    with pytest.raises(DataError, match="'text'"):
        recommend_all(shelf, [(['i1'], None)], weights=dict(txt=1, image=1))


class Gate:
    "A function of a list of questions that waits until it may go on."

    def __init__(self):
        self.open, self.calls = threading.Event(), []

    def __call__(self, questions):
        self.calls.append(list(questions))
        assert self.open.wait(300)
        return [DataError(f'no {q}') if q < 0 else -q for q in questions]


async def begun(gate):
    "Until the function has been called."
    while not gate.calls:
        await asyncio.sleep(0.001)


def test_those_that_wait_are_answered_by_one_call():
    async def run():
        desk, gate = Desk(1, 20), Gate()
        first = asyncio.create_task(desk.together('a', gate, 1))
        await begun(gate)
        others = [asyncio.create_task(desk.together('a', gate, q)) for q in (2, -3, 4)]
        stranger = asyncio.create_task(desk.together('b', gate, 5))
        await asyncio.sleep(0.01)
        gate.open.set()
        found = await asyncio.gather(first, *others, stranger, return_exceptions=True)
        desk.close()
        return gate.calls, [str(x) if isinstance(x, Exception) else x for x in found]

    calls, found = asyncio.run(run())
    assert calls == [[1], [2, -3, 4], [5]] and found == [-1, -2, 'no -3', -4, -5]


def test_what_the_function_raises_is_heard_by_all_and_places_are_free_again():
    async def run():
        desk = Desk(1, 3)

        def fail(questions):
            raise ValueError('all at once')

        asked = [desk.together('a', fail, q) for q in range(3)]
        found = await asyncio.gather(*asked, return_exceptions=True)
        again = await desk.together('a', lambda questions: questions, 7)
        desk.close()
        return [str(x) for x in found], again

    assert asyncio.run(run()) == (['all at once'] * 3, 7)


def test_a_bounded_number_waits_even_where_clients_go_away():
    async def run():
        desk, gate, wrong = Desk(1, 3), Gate(), []
        asyncio.get_running_loop().set_exception_handler(lambda loop, about: wrong.append(about))
        tasks = [asyncio.create_task(desk.together('a', gate, 1))]
        await begun(gate)
        tasks += [asyncio.create_task(desk.together('a', gate, q)) for q in (2, 3)]
        await asyncio.sleep(0.01)
        tasks[1].cancel()
        await asyncio.sleep(0.01)
        with pytest.raises(Refused) as refused:  # the question of who went away still waits, and holds its place
            await desk.together('a', gate, 4)
        gate.open.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        places = [desk.places.acquire(blocking=False) for _ in range(4)]
        desk.close()
        return refused.value.status, found, places, wrong

    status, found, places, wrong = asyncio.run(run())
    assert not wrong  # nobody is told twice
    assert status == 503 and (found[0], found[2]) == (-1, -3) and isinstance(found[1], asyncio.CancelledError)
    assert places == [True, True, True, False]


def test_a_desk_that_closes_sends_away_those_that_wait():
    async def run():
        desk, gate = Desk(1, 9), Gate()
        tasks = [asyncio.create_task(desk.together('a', gate, 1))]
        await begun(gate)
        tasks += [asyncio.create_task(desk.together('a', gate, q)) for q in (2, 3)]
        await asyncio.sleep(0.01)
        closing = asyncio.create_task(asyncio.to_thread(desk.close))
        await asyncio.sleep(0.05)
        gate.open.set()
        await closing
        found = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        return [x if isinstance(x, int) else x.status for x in found]

    assert asyncio.run(run()) == [-1, 503, 503]


def test_many_threads_and_keys_lose_nothing():
    async def run():
        desk = Desk(2, 3000)
        double = partial(map, lambda q: 2 * q)
        asked = [desk.together(q % 7, lambda questions: list(double(questions)), q) for q in range(2000)]
        found = await asyncio.wait_for(asyncio.gather(*asked), 60)
        desk.close()
        return found

    assert asyncio.run(run()) == [2 * q for q in range(2000)]


def test_questions_that_differ_in_more_than_their_histories_are_answered_apart(shelf, tmp_path):
    "Of one shelf and of one that lacks an item; all at once, before any thread is free."
    build_index(tmp_path / 'i', {m: np.asarray(v[:49]) for m, v in shelf.index.vectors.items()}, shelf.index.table[:49])
    newer, shop = shelf_of(Index(tmp_path / 'i')), Shop(shelf, Limits(waiting=1000))
    hows = [
        dict(k=k, repeat=r, weights=w) for k in (3, 60) for r in (False, True) for w in (None, dict(text=1, image=0))
    ]
    hows += [dict(diversity=0.4), dict(diversity=0.9), dict(where=[('price', '<', 9)]), dict(where=[('price', '>', 9)])]
    asked = [(s, [f'i{n}', f'i{n + 3}'], how) for n in range(6) for s in (shelf, newer) for how in hows]

    async def run():
        free = threading.Event()
        busy = [shop.desk.pool.submit(free.wait, 20) for _ in range(2)]
        tasks = [asyncio.create_task(recommended(shop, s, h, **how)) for s, h, how in asked]
        await asyncio.sleep(0.05)
        waiting = len(shop.desk._waiting)
        free.set()
        found = await asyncio.gather(*tasks)
        assert all(b.result() for b in busy)
        shop.close()
        return waiting, found

    waiting, found = asyncio.run(run())
    assert waiting == 2 * len(hows) and found == [recommend(s, h, **how) for s, h, how in asked]
