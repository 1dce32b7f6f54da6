"""The tiny checkpoints: what is shipped, and what pre-training asks for."""

import pytest
import torch

from vlm2rec_lab.model.tiny import READERS, TASKS, build_config, build_tokenizer, load_tiny, studio_corpus, tiny_vlm


@pytest.mark.parametrize('reader', READERS)
def test_a_shipped_checkpoint_is_of_the_default_sizes(reader):
    model, tokenizer, _ = load_tiny(tiny_vlm(reader))
    config = build_config(tokenizer)
    assert model.config.text_config.hidden_size == config.text_config.hidden_size
    assert model.config.vision_config.depth == config.vision_config.depth
    assert model.dtype == torch.float32


def test_readers_ask_for_tasks_that_there_are():
    assert all(set(tasks) <= set(TASKS) for tasks in READERS.values())


def test_a_corpus_is_the_same_for_the_same_seed():
    assert studio_corpus(20, seed=3) == studio_corpus(20, seed=3) != studio_corpus(20, seed=4)


def test_the_shipped_vocabulary_is_made_by_the_corpus():
    assert load_tiny(tiny_vlm())[1].get_vocab() == build_tokenizer(studio_corpus()).get_vocab()


def test_a_missing_checkpoint_says_what_makes_it(monkeypatch, tmp_path):
    monkeypatch.setattr('vlm2rec_lab.base.files.resources.files', lambda package: tmp_path / package)
    monkeypatch.setattr('sys.prefix', str(tmp_path))
    with pytest.raises(FileNotFoundError, match='python -m vlm2rec_lab.model.tiny'):
        tiny_vlm()
