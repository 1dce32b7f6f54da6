"""What a training was made of: another title, prompt or base is not gone on with, and each has its name."""

import functools
import multiprocessing
import warnings
from dataclasses import replace

import pytest
import torch

from vlm2rec_lab.base.checkpoint import save_checkpoint
from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.model.embedder import VLMEmbedder
from vlm2rec_lab.model.pieces import Prompts
from vlm2rec_lab.shop.catalogue import Catalogue
from vlm2rec_lab.shop.drawn import make_studio
from vlm2rec_lab.train import train

QUICK = dict(batch=8, eval_every=0, progress=False, steps=3)


@pytest.fixture(scope='module')
def toy():
    return make_studio('balanced', seed=0, items=40, users=60, length=6).split(train=30, valid=15, test=15, history=4)


@pytest.fixture
def fresh(checkpoint):
    return functools.partial(VLMEmbedder.from_pretrained, checkpoint, device='cpu', **dict(lora=4, seed=0))


def begun(toy, embedder, file):
    "A run that was stopped after its first step."
    train(embedder, toy, checkpoint=file, save_every=1, callback=lambda r: 'stop', **QUICK)


def with_content(split, modality, values):
    catalogue = split.catalogue
    content = {**catalogue.content, modality: values}
    return replace(split, catalogue=Catalogue(catalogue.ids, content, catalogue.kinds, catalogue.table))


def test_other_contents_are_not_gone_on_with(toy, fresh, tmp_path):
    file, cat = tmp_path / 'run.safetensors', toy.catalogue
    begun(toy, fresh(), file)
    titles = with_content(toy, 'text', ['another title', *cat.content['text'][1:]])
    pictures = with_content(toy, 'image', [*cat.content['image'][1:], cat.content['image'][0]])
    gap = with_content(toy, 'image', [None, *cat.content['image'][1:]])
    for other, name in ((titles, 'content/text'), (pictures, 'content/image'), (gap, 'content/image')):
        with pytest.raises(ValueError, match=f"was trained with {name}='[0-9a-f]+' .now '[0-9a-f]+'.: use"):
            train(fresh(), other, checkpoint=file, resume=True, **QUICK)
    assert train(fresh(), toy, checkpoint=file, resume=True, **QUICK).finished


def test_the_same_contents_from_elsewhere_are(toy, fresh, tmp_path):
    "Pictures as files with the same bytes, wherever they lie."
    cat, splits = toy.catalogue, []
    for place in (tmp_path / 'a', tmp_path / 'b'):
        place.mkdir()
        files = [place / f'{i}.png' for i in range(len(cat))]
        for i, file in enumerate(files):
            cat.image('image', i).save(file)
        splits.append(with_content(toy, 'image', files))
    begun(splits[0], fresh(), tmp_path / 'run.safetensors')
    assert train(fresh(), splits[1], checkpoint=tmp_path / 'run.safetensors', resume=True, **QUICK).finished


@pytest.mark.parametrize(
    ('how', 'said'),
    [
        (dict(prompts=Prompts(item='Thing: {}')), r"prompts/all/item=.* \(now 'Thing: {}'\)"),
        (dict(prompts={'text': Prompts(), 'image': Prompts()}), 'prompts/all/item=.*prompts/text/item'),
        (dict(fusion='internal'), r"reading='external' \(now 'internal'\)"),
        (dict(max_pixels=784), 'max_pixels=50176'),
        (dict(max_text_tokens=5), 'max_text_tokens=64'),
        (dict(lora_alpha=1), r"adapters/default='rank 4, alpha 8' \(now 'rank 4, alpha 1'\)"),
    ],
)
@pytest.mark.filterwarnings('ignore:.*is cut to max_text_tokens')
def test_another_reading_is_not_gone_on_with(toy, fresh, tmp_path, how, said):
    begun(toy, fresh(), tmp_path / 'run.safetensors')
    with pytest.raises(ValueError, match=said):
        train(fresh(**how), toy, checkpoint=tmp_path / 'run.safetensors', resume=True, **QUICK)


def test_another_base_is_not_gone_on_with(toy, fresh, tmp_path):
    begun(toy, fresh(), tmp_path / 'run.safetensors')
    other = fresh()
    with torch.no_grad():
        other.core.model.language_model.layers[0].mlp.up_proj.base_layer.weight[0, 0] += 1
    with pytest.raises(ValueError, match="was trained with base weights='[0-9a-f]+' .now"):
        train(other, toy, checkpoint=tmp_path / 'run.safetensors', resume=True, **QUICK)


def test_a_checkpoint_from_before_is_gone_on_with_and_says_so(toy, fresh, tmp_path, monkeypatch):
    def as_before(path, named, optimiser, records, settings, memory, *more):
        settings = {k: v for k, v in settings.items() if k != 'inputs'}
        save_checkpoint(path, named, optimiser, records, settings, memory, *more)

    with monkeypatch.context() as m:
        m.setattr('vlm2rec_lab.train.save_checkpoint', as_before)
        begun(toy, fresh(), tmp_path / 'run.safetensors')
    with pytest.warns(UserWarning, match='does not say of which contents and weights it is'):
        assert train(fresh(), toy, checkpoint=tmp_path / 'run.safetensors', resume=True, **QUICK).finished


def test_the_record_of_a_run_is_what_it_was(toy, fresh, tmp_path):
    "Inputs are noted in the checkpoint; a History says what it always said."
    kept = train(fresh(), toy, checkpoint=tmp_path / 'run.safetensors', **QUICK)
    assert kept.to_dict() == train(fresh(), toy, **QUICK).to_dict()


# ---- one writer


def hold(folder, ready, end):
    "A process that trains into a checkpoint until it is told to end."
    split = make_studio('balanced', seed=0, items=40, users=60, length=6).split(train=30, valid=15, test=15, history=4)
    embedder = VLMEmbedder.from_pretrained(folder / 'tiny', lora=4, device='cpu')

    def wait(records):
        ready.set()
        end.wait(600)

    train(embedder, split, checkpoint=folder / 'run.safetensors', callback=wait, **QUICK)


@pytest.mark.processes
def test_two_trainings_of_one_checkpoint(toy, fresh, checkpoint, tmp_path):
    "The second is told before it loads a picture; when the first is done, the checkpoint is the first one's."
    (tmp_path / 'tiny').symlink_to(checkpoint)
    spawn = multiprocessing.get_context('spawn')
    ready, end = spawn.Event(), spawn.Event()
    first = spawn.Process(target=hold, args=(tmp_path, ready, end))
    first.start()
    try:
        assert ready.wait(600)
        embedder = fresh()
        with pytest.raises(DataError, match='is being written by another process'):
            train(embedder, toy, checkpoint=tmp_path / 'run.safetensors', **QUICK)
        assert not len(embedder._banks)
        assert train(embedder, toy, checkpoint=tmp_path / 'other.safetensors', **QUICK).finished
    finally:
        end.set()
        first.join(600)
    assert first.exitcode == 0
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert train(fresh(), toy, checkpoint=tmp_path / 'run.safetensors', resume=True, **QUICK).finished


def test_a_recommender_s_folder_has_one_writer(tmp_path):
    from vlm2rec_lab.recommenders.fit import fit
    from vlm2rec_lab.recommenders.seqrec import ItemTable, SASRec

    split = make_studio('balanced', seed=0, items=40, users=60, length=6).split(train=30, valid=15, test=15, history=4)

    def net():
        return SASRec(ItemTable(40, 8, seed=0), length=4, seed=0)

    def second(records):
        with pytest.raises(DataError, match='is being written by another process'):
            fit(net(), split, epochs=2, folder=tmp_path, progress=False)

    assert fit(net(), split, epochs=2, folder=tmp_path, progress=False, callback=second).finished


def test_an_interrupt_ends_the_cell_that_fits_in_a_loop():
    import signal

    from vlm2rec_lab.recommenders.fit import fit
    from vlm2rec_lab.recommenders.seqrec import ItemTable, SASRec
    from vlm2rec_lab.training.history import Interrupted

    split = make_studio('balanced', seed=0, items=40, users=60, length=6).split(train=30, valid=15, test=15, history=4)
    begun = []
    with pytest.raises(Interrupted, match='stopped after 2 epochs, which is no result') as stop:
        for seed in range(2):
            begun.append(seed)
            net = SASRec(ItemTable(40, 8, seed=seed), length=4, seed=seed)
            fit(net, split, epochs=3, progress=False, callback=lambda records: signal.raise_signal(signal.SIGINT))
    assert begun == [0] and len(stop.value.run.frame) == 2  # heeded after the epoch that follows


def test_vectors_of_other_contents_are_not_taken_for_these(toy, checkpoint, tmp_path):
    from vlm2rec_lab.recommenders.downstream import source_vectors

    how = dict(source='raw', model=checkpoint, folder=tmp_path, progress=False)
    first = source_vectors(lambda seed, history: toy, **how)
    assert all((source_vectors(lambda seed, history: toy, **how)[m] == z).all() for m, z in first.items())
    titles = with_content(toy, 'text', ['another title', *toy.catalogue.content['text'][1:]])
    with pytest.raises(DataError, match='raw-0.npz holds vectors with content/text='):
        source_vectors(lambda seed, history: titles, **how)
