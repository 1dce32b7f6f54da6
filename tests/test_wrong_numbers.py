"""Numbers that no recommender takes are refused by the name of their argument; those of numpy are numbers."""

import numpy as np
import pytest
from graph_worlds import planted
from prompt_shops import bought_once, called, contents, tiny

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.data import Catalogue, Dataset, Interactions, leave_one_out
from vlm2rec_lab.graph.fit import evaluate_graph, fit_graph
from vlm2rec_lab.graph.graph import graph_of
from vlm2rec_lab.graph.make import GRAPH_MODELS, make_model, settings_of
from vlm2rec_lab.prompts.fit import fit_prompts
from vlm2rec_lab.prompts.lessons import customer_names, next_lessons
from vlm2rec_lab.prompts.t5 import build_t5, build_t5_tokenizer
from vlm2rec_lab.recommenders.fit import figures, fit, worth
from vlm2rec_lab.recommenders.flame import flame
from vlm2rec_lab.recommenders.seqrec import MODELS, ItemTable

pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')
SPLIT, VECTORS = planted(users=30, items=20, each=6)
GRAPH = graph_of(SPLIT)
ROWS = [np.random.default_rng(k).permutation(12)[:6] for k in range(20)]
SHOP = leave_one_out(Dataset(Catalogue([f'i{k}' for k in range(12)], {}, {}), Interactions.of_sequences(ROWS), 'shop'))
WHOLE = 'dim layers heads wide length k'.split()  # settings of models that count something
ONCE = dict(epochs=1, progress=False)


def refused(name, call):
    with pytest.raises(ValueError, match=rf"\b{name}(=| is )"):
        call()


def net(name='SASRec', dim=8, **how):
    return MODELS[name](ItemTable(12, dim), **dict(length=10) | how)


@pytest.mark.parametrize('wrong', [-1, 2.5, 2.0, float('nan'), True, '3', None])
def test_sizes_and_seeds_of_models(wrong):
    for name in GRAPH_MODELS:
        for setting in {'dim', 'k', 'seed'} & set(settings_of(name)):
            refused(setting, lambda: make_model(name, GRAPH, VECTORS, **{setting: wrong}))
    for name in MODELS:
        for setting in ('dim', 'layers', 'length'):
            refused(setting, lambda: net(name, **{setting: wrong}))
    refused('heads', lambda: net(heads=wrong))
    refused('heads', lambda: build_t5(build_t5_tokenizer(['a b c'], 300), heads=wrong))
    refused('item_words', lambda: tiny('image', item_words=wrong))
    refused('modules', lambda: flame(net(), net(), SHOP, modules=wrong))


@pytest.mark.parametrize('wrong', [0, -1, 2.5, float('nan'), True, '3'])
def test_numbers_of_trainings(wrong):
    shop = bought_once()
    lessons, wording = next_lessons(shop, customer_names(shop), 2), called(contents('image'))
    for name in ('batch', 'epochs', 'every', 'patience'):
        how = ONCE | {name: wrong}
        refused(name, lambda: fit_graph(make_model('BPR-MF', GRAPH, dim=4), SPLIT, **how))
        refused(name, lambda: fit(net(), SHOP, **how))
        refused(name, lambda: fit_prompts(tiny('image'), wording, lessons, **how))
    refused('negatives', lambda: fit(net(), SHOP, 'sampled', negatives=wrong, **ONCE))
    refused('k', lambda: figures(net(), SHOP, k=wrong))
    refused('k', lambda: evaluate_graph(make_model('BPR-MF', GRAPH, dim=4), SPLIT, k=wrong))
    refused('cuts', lambda: flame(net(), net(), SHOP, cuts=(0.5,)))


@pytest.mark.parametrize('metric', ['NDCG', 'NDCG@0', 'NDCG@x', 'MRR@10', 10])
def test_a_metric_is_looked_at_before_anything_is_trained(metric):
    vectors = {'text': np.ones((12, 3), np.float32)}
    with pytest.raises(DataError, match='metric'):
        worth(SHOP, vectors, metric=metric, callback=lambda records: 1 / 0, **ONCE)


def test_numbers_of_numpy_are_numbers(tmp_path):
    "Also where a run is kept, and goes on."
    two = np.int64(2)
    for name in GRAPH_MODELS:
        how = {a: two for a in {'dim', 'layers', 'k', 'seed'} & set(settings_of(name))}
        for epochs in (1, 2):
            model, folder = make_model(name, GRAPH, VECTORS, **how), tmp_path / name
            fit_graph(
                model, SPLIT, batch=two, every=two, lr=np.float32(0.01), folder=folder, **ONCE | dict(epochs=epochs)
            )
    for name in MODELS:
        fit(net(name, dim=two, layers=two, seed=two), SHOP, batch=np.int32(9), folder=tmp_path / name, **ONCE)
    make_model('LightGCN', GRAPH, fanout=two)
