"""The same tiny VLM, data, adapters, batch and precision, trained by sentence-transformers' own contrastive trainer
and by this lab, block by block in turn.

python benchmarks/sentence_trainer.py [--small] [--out benchmarks/results/sentence_trainer.json]

sentence-transformers is no dependency of the lab. Without touching this environment: `python -m pip install
--no-deps --target st_site sentence-transformers` and
`PYTHONPATH=st_site python benchmarks/sentence_trainer.py` (`datasets`, which its trainer needs, is wanted too). The
script is not called sentence_transformers.py: it would hide the package.

Both sides read one prompt with text and picture (`fusion='internal'`), from the same checkpoint with the same
adapters; that their vectors agree is checked before anything is timed.
Theirs: SentenceTransformerTrainer, MultipleNegativesRankingLoss at the same temperature, last-token pooling, AdamW
without decay or clipping, pictures read in every step. Its own reader of pictures
wants torchvision, so a module of its `InputModule` kind does the reading here, with the lab's image processor, one
call per batch and side. What differs and is left so: their loss does not know which
items a customer bought besides, and counts a target that occurs twice as two.
"""

import argparse
import importlib.util
import logging
import tempfile
import time

import numpy as np
import torch
from common import Clock, machine, quantiles, quiet, say, table, write
from train import PLAIN, RANK, TAU, Recipe, gradients, shop

from vlm2rec_lab.embed import VLMEmbedder
from vlm2rec_lab.metrics import evaluate
from vlm2rec_lab.model.family import own_forward
from vlm2rec_lab.model.tiny import tiny_vlm
from vlm2rec_lab.train import batch_rows, encode_split, make_batch, training_rows

LAST, ALL = Recipe(True, True, True), Recipe(True, True, True, True)
OURS = {'lab, plain recipe': PLAIN, 'lab, same pairs, nothing twice': LAST, 'lab, every position': ALL}
THEIRS = 'sentence-transformers'


def prompts(embedder, catalogue):  # -> (function of an item, function of a history), both -> dict(text, pictures)
    "The prompts of the joint view as strings, with the pictures they show."
    p, modalities = embedder.prompts_for('joint'), catalogue.modalities
    marks = embedder.family.marks(embedder.tokenizer, embedder.core.config)
    picture = p.lead + embedder.tokenizer.decode([*marks.opening, marks.place, *marks.closing])

    def words(i):
        return ''.join(
            picture if catalogue.kinds[m] == 'image' else f'{p.lead}{catalogue.content[m][i]}' for m in modalities
        )

    def item(i):
        return dict(text=p.item.replace('{}', words(i)), pictures=[int(i)])

    def sequence(history):
        there = [int(i) for i in history if i >= 0]
        return dict(text=p.sequence.replace('{}', p.separator.join(words(i) for i in there)), pictures=there)

    return item, sequence


def reader(embedder, catalogue):  # -> a sentence_transformers InputModule
    "Prompts with pictures, read as the model wants them: once per batch and side."
    from sentence_transformers.base.modules.input_module import InputModule

    family, processor, tokenizer = embedder.family, embedder.image_processor, embedder.tokenizer
    place = family.marks(tokenizer, embedder.core.config).place
    word, settings = tokenizer.decode([place]), family.settings(processor, embedder.max_pixels)

    class Reader(InputModule):
        def __init__(self):
            super().__init__()
            self.model, self.tokenizer = embedder.model, tokenizer

        modalities = property(lambda self: ['text', 'image'])

        def preprocess(self, inputs, prompt=None, **kwargs):
            shown = [catalogue.image('image', i) for row in inputs for i in row['pictures']]
            seen = family.prepared(processor, shown, settings)
            tokens = family.grids((), seen, processor).prod(1).tolist()
            texts, k = [], 0
            for row in inputs:
                parts = row['text'].split(word)
                texts.append(parts[0] + ''.join(word * tokens[k + j] + part for j, part in enumerate(parts[1:])))
                k += len(parts) - 1
            batch = self.tokenizer(texts, return_tensors='pt', padding=True)
            return dict(input_ids=batch['input_ids'], attention_mask=batch['attention_mask'], **seen)

        def forward(self, features, **kwargs):
            ids, there = features['input_ids'], features['attention_mask']
            hidden = own_forward(embedder.core, features, ids, ids == place, there)
            return features | {'token_embeddings': hidden}

        def save(self, *args, **kwargs):
            pass

    return Reader()


def sentence_transformer(embedder, catalogue):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    return SentenceTransformer(
        modules=[reader(embedder, catalogue), Pooling(embedder.core.config.text_config.hidden_size, 'lasttoken')],
        device='cpu',
    )


def their_block(
    model, optimiser, rows, batch, folder
):  # rows: list of dict(anchor, positive), as many as steps x batch
    """Some steps of their trainer. Returns (CPU seconds, wall seconds) per step, the first step left out: it holds the
    trainer's own beginning."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from transformers import PrinterCallback, TrainerCallback

    marks = []

    class Watch(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            marks.append((time.process_time(), time.perf_counter()))

    how = SentenceTransformerTrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=batch,
        num_train_epochs=1,
        learning_rate=1e-3,
        weight_decay=0.0,
        max_grad_norm=0.0,
        lr_scheduler_type='constant',
        use_cpu=True,
        save_strategy='no',
        logging_strategy='no',
        report_to='none',
        disable_tqdm=True,
        seed=0,
        dataloader_drop_last=True,
    )
    constant = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda _: 1.0)
    data = Dataset.from_list(rows)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=how,
        train_dataset=data,
        loss=MultipleNegativesRankingLoss(model, scale=1 / TAU),
        optimizers=(optimiser, constant),
        callbacks=[Watch()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    model.eval()
    steps = len(marks) - 1
    return [(marks[-1][k] - marks[0][k]) / steps for k in (0, 1)], len(marks)


def our_block(
    embedder, bank, optimiser, split, recipe, first, steps, batch
):  # -> (CPU, wall) seconds per step, pairs per step
    drawn, parameters, pairs = (
        training_rows(split, 'all' if recipe.every else 'last'),
        [p for _, p in embedder.adapter_parameters()],
        0,
    )
    for k in range(first, first + steps):
        if k == first + 1:
            clock = Clock().__enter__()
        this = make_batch(split, drawn[batch_rows(k, len(drawn), batch, 0)], 'all' if recipe.every else 'last')
        _, parts = gradients(embedder, bank, this, recipe)
        for p, *g in zip(parameters, *parts.values()):
            p.grad = sum(g)
        optimiser.step()
        optimiser.zero_grad()
        pairs += len(this.targets)
    clock.__exit__()
    return [clock.cpu / (steps - 1), clock.wall / (steps - 1)], pairs / steps


def parity(embedder, split, model):  # -> largest difference of unit vectors
    "Their vectors of a few items and customers against ours, before training."
    item, sequence = prompts(embedder, split.catalogue)

    def unit(z):
        return torch.nn.functional.normalize(z.detach().float(), dim=-1)

    def theirs(inputs):
        return unit(model(model.preprocess(inputs))['sentence_embedding'])

    bank, history = embedder.bank(split.catalogue, False), split.train.history[:6]
    ours = (
        unit(embedder.item_vectors(bank, np.arange(5))['joint']),
        unit(embedder.sequence_vectors(bank, history)['joint']),
    )
    with torch.no_grad():
        found = theirs([item(i) for i in range(5)]), theirs([sequence(h) for h in history])
    return max(float((a - b).abs().max()) for a, b in zip(ours, found))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--small', action='store_true', help='a toy setting that runs in seconds; its figures mean nothing'
    )
    parser.add_argument('--out', help='JSON file to write')
    parser.add_argument('--blocks', type=int, help='blocks of steps of each side, in turn')
    o = parser.parse_args()
    for package in ('sentence_transformers', 'datasets'):
        if importlib.util.find_spec(package) is None:
            parser.exit(
                3,
                f'{package} is not here: python -m pip install --no-deps --target st_site {package.replace("_", "-")}, '
                'then PYTHONPATH=st_site\n',
            )
    import datasets
    import sentence_transformers

    quiet()
    datasets.disable_progress_bars()
    logging.disable(logging.WARNING)
    start, batch, steps, blocks, lr = (
        machine(),
        4 if o.small else 32,
        2 if o.small else 10,
        o.blocks or (2 if o.small else 6),
        2e-3,
    )
    split = shop(0, 10, 11, o.small)

    def load():
        return VLMEmbedder.from_pretrained(tiny_vlm(), lora=RANK, seed=0, device='cpu', fusion='internal')

    theirs = load()
    item, sequence = prompts(theirs, split.catalogue)
    model = sentence_transformer(theirs, split.catalogue)
    apart = parity(theirs, split, model)
    if not apart <= 1e-4:
        raise SystemExit(f'the two sides do not read the same: vectors differ by {apart:.2g}')
    sides, spent, pairs = {}, {n: [] for n in (THEIRS, *OURS)}, {THEIRS: batch}
    for name, recipe in OURS.items():
        e = load()
        sides[name] = (
            e,
            e.bank(split.catalogue, False, None if recipe.cached else 'live'),
            torch.optim.AdamW([p for _, p in e.adapter_parameters()], lr=lr, weight_decay=0.0),
            recipe,
        )
    optimiser = torch.optim.AdamW([p for _, p in theirs.adapter_parameters()], lr=lr, weight_decay=0.0)
    drawn, done = training_rows(split), 0
    with tempfile.TemporaryDirectory() as folder:
        for b in range(blocks):
            rows = np.concatenate(
                [drawn[batch_rows(k, len(drawn), batch, 0)] for k in range(b * steps, (b + 1) * steps)]
            )
            taken = split.train.take(rows)
            data = [dict(anchor=sequence(h), positive=item(t)) for h, t in zip(taken.history, taken.targets)]
            order = [THEIRS, *OURS]
            for name in order[b % len(order) :] + order[: b % len(order)]:
                if name == THEIRS:
                    t, n = their_block(model, optimiser, data, batch, folder)
                    done += n
                else:
                    t, pairs[name] = our_block(*sides[name][:3], split, sides[name][3], b * steps, steps, batch)
                spent[name].append(t)
            say(f'block {b + 1} of {blocks}: ' + ', '.join(f'{n} {s[-1][0]:.3f}' for n, s in spent.items()))
    assert done == blocks * steps, f'their trainer took {done} steps'

    def quality(e):
        found = evaluate(**encode_split(e, split, 'test', progress=False), bootstrap=0)
        return round(float(found['joint']['NDCG@10']), 5)

    rate = {n: pairs[n] / np.array(spent[n])[:, 0] for n in spent}
    rows = [
        dict(
            side=n,
            pairs_per_step=round(pairs[n], 1),
            seconds_per_step=quantiles(np.array(spent[n])[:, 0]),
            wall_seconds_per_step=quantiles(np.array(spent[n])[:, 1]),
            pairs_per_second=round(float(pairs[n] / np.array(spent[n])[:, 0].mean()), 1),
            ratio=quantiles(rate[n] / rate[THEIRS]),
            test_ndcg=quality(theirs if n == THEIRS else sides[n][0]),
        )
        for n in spent
    ]
    result = dict(
        benchmark='sentence_trainer',
        small=o.small,
        machine=start | dict(load_at_end=machine()['load']),
        version=sentence_transformers.__version__,
        model='tiny VLM text-first, float32, LoRA rank 4, one prompt with text and picture',
        data=split.name,
        batch=batch,
        steps=blocks * steps,
        block=steps,
        lr=lr,
        temperature=TAU,
        largest_difference_at_start=apart,
        clock='CPU seconds of one thread',
        rows=rows,
    )
    write(o.out, result)
    print(
        f'\nsentence-transformers {result["version"]} and the lab: {blocks} blocks of {steps} steps of {batch} rows in '
        f'turn; vectors at the start differ by at most {apart:.1e}\n'
    )
    print(
        table(
            [
                {
                    'side': r['side'],
                    'pairs per step': r['pairs_per_step'],
                    's per step': r['seconds_per_step'][0],
                    'pairs per s': r['pairs_per_second'],
                    'ratio': '{:.2f} ({:.2f} to {:.2f})'.format(*r['ratio']),
                    f'test NDCG@10 after {result["steps"]} steps': r['test_ndcg'],
                }
                for r in rows
            ]
        )
    )
    print('\nmachine:', result['machine'])


if __name__ == '__main__':
    main()
