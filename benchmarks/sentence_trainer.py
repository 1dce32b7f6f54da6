"""The same tiny VLM, data, adapters, batch and precision, trained by sentence-transformers' own contrastive trainer
and by this lab, block by block in turn, over an epoch of each of three seeds.

python benchmarks/sentence_trainer.py [--small] [--out benchmarks/results/sentence_trainer.json]

sentence-transformers is no dependency of the lab. Without touching this environment: `python -m pip install
--no-deps --target st_site sentence-transformers` and
`PYTHONPATH=st_site python benchmarks/sentence_trainer.py` (`datasets`, which its trainer needs, is wanted too). The
script is not called sentence_transformers.py: it would hide the package.

Both sides read one prompt with text and picture (`fusion='internal'`), from the same checkpoint with the same
adapters; that their vectors agree is checked before anything is timed.
Theirs: SentenceTransformerTrainer, MultipleNegativesRankingLoss at the same temperature with
`BatchSamplers.NO_DUPLICATES`, which its documentation recommends for this loss, last-token pooling, AdamW without
decay or clipping, pictures read in every step. Its own reader of pictures
wants torchvision, so a module of its `InputModule` kind does the reading here, with the lab's image processor, one
call per batch and side. What differs and is left so: their loss does not know which
items a customer bought besides, and no target comes twice in a batch of theirs; batches of ours are drawn plainly,
and a target that comes twice counts once.
"""

import argparse
import importlib.util
import logging
import tempfile

import numpy as np
import torch
from common import Clock, cell, in_range, machine, quiet, say, table, write
from train import PLAIN, RANK, TAU, Recipe, gradients, shop

from vlm2rec_lab.embed import VLMEmbedder
from vlm2rec_lab.metrics import evaluate
from vlm2rec_lab.model.family import own_forward
from vlm2rec_lab.model.tiny import tiny_vlm
from vlm2rec_lab.train import batch_rows, encode_split, make_batch, training_rows

LAST, ALL = Recipe(True, True, True), Recipe(True, True, True, True)
OURS = {'lab, plain recipe': PLAIN, 'lab, same pairs, nothing twice': LAST, 'lab, every position': ALL}
THEIRS = 'sentence-transformers'
WORK = {
    THEIRS: 'pairs of the last position',
    'lab, plain recipe': 'the same pairs',
    'lab, same pairs, nothing twice': 'the same pairs',
    'lab, every position': 'not the same: pairs of one sequence resemble each other',
}


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


def their_epoch(model, optimiser, rows, batch, folder, seed, block, between):  # -> list of (CPU, wall) per block
    """An epoch of their trainer, from its first batch to its last step. After every block of steps `between` is
    called with how many, and the clock stands."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.training_args import BatchSamplers
    from transformers import PrinterCallback, TrainerCallback

    spent, clock, open_steps = [], Clock(), [0]

    def block_ends():
        clock.__exit__()
        spent.append((clock.cpu, clock.wall))
        between(open_steps[0])
        clock.cpu = clock.wall = 0.0
        open_steps[0] = 0
        clock.__enter__()

    class Watch(TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            clock.__enter__()

        def on_step_end(self, *args, **kwargs):
            open_steps[0] += 1
            if open_steps[0] == block:
                block_ends()

        def on_train_end(self, *args, **kwargs):
            if open_steps[0]:
                block_ends()

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
        seed=seed,
        dataloader_drop_last=True,
        batch_sampler=BatchSamplers.NO_DUPLICATES,
    )
    constant = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda _: 1.0)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=how,
        train_dataset=Dataset.from_list(rows),
        loss=MultipleNegativesRankingLoss(model, scale=1 / TAU),
        optimizers=(optimiser, constant),
        callbacks=[Watch()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    model.eval()
    return spent


class Ours:
    "A side of the lab: some steps at a time, with their CPU and wall seconds and their pairs."

    def __init__(self, embedder, split, recipe, lr, batch, seed):
        self.embedder, self.split, self.recipe, self.batch, self.seed = embedder, split, recipe, batch, seed
        self.bank = embedder.bank(split.catalogue, False, None if recipe.cached else 'live')
        self.parameters = [p for _, p in embedder.adapter_parameters()]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=lr, weight_decay=0.0)
        self.positions = 'all' if recipe.every else 'last'
        self.drawn, self.done, self.spent, self.pairs = training_rows(split, self.positions), 0, [], []

    def steps(self, many):
        pairs = 0
        with Clock() as clock:
            for k in range(self.done, self.done + many):
                rows = self.drawn[batch_rows(k, len(self.drawn), self.batch, self.seed)]
                this = make_batch(self.split, rows, self.positions)
                _, parts = gradients(self.embedder, self.bank, this, self.recipe)
                for p, *g in zip(self.parameters, *parts.values()):
                    p.grad = sum(g)
                self.optimiser.step()
                self.optimiser.zero_grad()
                pairs += len(this.targets)
        self.done += many
        self.spent.append((clock.cpu, clock.wall))
        self.pairs.append(pairs)


def one_seed(seed, small, batch, block, lr, users):  # -> dict
    "An epoch of all sides, block by block in turn, on the shop of a seed."
    split = shop(seed, 10, 11, small, **{} if small else dict(train=users, valid=50, test=400))

    def load():
        return VLMEmbedder.from_pretrained(tiny_vlm(), lora=RANK, seed=seed, device='cpu', fusion='internal')

    theirs = load()
    item, sequence = prompts(theirs, split.catalogue)
    model = sentence_transformer(theirs, split.catalogue)
    apart = parity(theirs, split, model)
    if not apart <= 1e-4:
        raise SystemExit(f'the two sides do not read the same: vectors differ by {apart:.2g}')
    sides = {name: Ours(load(), split, recipe, lr, batch, seed) for name, recipe in OURS.items()}
    optimiser = torch.optim.AdamW([p for _, p in theirs.adapter_parameters()], lr=lr, weight_decay=0.0)
    taken, names, turn = split.train.take(training_rows(split)), list(OURS), [0]
    data = [dict(anchor=sequence(h), positive=item(t)) for h, t in zip(taken.history, taken.targets)]

    def between(many):
        for name in names[turn[0] % len(names) :] + names[: turn[0] % len(names)]:
            sides[name].steps(many)
        turn[0] += 1
        say(f'seed {seed}: {sides[names[0]].done} of {len(data) // batch} steps')

    with tempfile.TemporaryDirectory() as folder:
        spent = their_epoch(model, optimiser, data, batch, folder, seed, block, between)
    steps = sides[names[0]].done
    many = [min(block, steps - k) for k in range(0, steps, block)]

    def quality(e):
        found = evaluate(**encode_split(e, split, 'test', progress=False), bootstrap=0)
        return round(float(found['joint']['NDCG@10']), 5)

    return dict(
        seed=seed,
        load=machine()['load'][0],
        steps=steps,
        data=split.name,
        apart=apart,
        sides={
            THEIRS: dict(spent=spent, pairs=[batch * n for n in many], test_ndcg=quality(theirs)),
            **{
                name: dict(spent=side.spent, pairs=side.pairs, test_ndcg=quality(side.embedder))
                for name, side in sides.items()
            },
        },
    )


def rows_of(seeds):  # list of what one_seed gives -> list of dict
    "A row per side: sums over all steps of all seeds; the range is that of the seeds."
    out = []
    for name in (THEIRS, *OURS):
        sides = [s['sides'][name] for s in seeds]
        cpu, wall = (np.array([sum(t[k] for t in x['spent']) for x in sides]) for k in (0, 1))
        pairs = np.array([sum(x['pairs']) for x in sides], float)
        if name == THEIRS:
            base = pairs, cpu
        steps, rate = sum(s['steps'] for s in seeds), (pairs / cpu) / (base[0] / base[1])
        whole = (pairs.sum() / cpu.sum()) / (base[0].sum() / base[1].sum())
        ndcg = [x['test_ndcg'] for x in sides]
        out.append(
            dict(
                side=name,
                work=WORK[name],
                pairs_per_step=round(float(pairs.sum() / steps), 1),
                cpu_seconds=round(float(cpu.sum()), 2),
                seconds_per_step=round(float(cpu.sum() / steps), 4),
                wall_seconds_per_step=round(float(wall.sum() / steps), 4),
                pairs_per_second=round(float(pairs.sum() / cpu.sum()), 1),
                ratio=[round(float(v), 4) for v in (whole, rate.min(), rate.max())],
                test_ndcg=[
                    round(float(np.mean(ndcg)), 5),
                    round(float(np.std(ndcg, ddof=1)), 5) if len(ndcg) > 1 else None,
                ],
            )
        )
    return out


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
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--users', type=int, default=100, help='customers to learn from: their rows are the epoch')
    parser.add_argument(
        '--cells', default='runs/benchmarks/sentence_trainer', help='folder that keeps finished seeds; "" for none'
    )
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
    start, batch, block, lr = machine(), 4 if o.small else 32, 2 if o.small else 10, 2e-3
    seeds = [
        cell(
            o.cells or None,
            dict(cell='sentence_trainer', seed=seed, small=o.small, batch=batch, block=block, lr=lr, users=o.users),
            lambda: one_seed(seed, o.small, batch, block, lr, o.users),
        )
        for seed in o.seeds
    ]
    rows = rows_of(seeds)
    result = dict(
        benchmark='sentence_trainer',
        small=o.small,
        machine={k: v for k, v in start.items() if k != 'load'},  # seeds that stood there ran under another load
        loads=[s.get('load') for s in seeds],
        version=sentence_transformers.__version__,
        sampler='BatchSamplers.NO_DUPLICATES',
        model='tiny VLM text-first, float32, LoRA rank 4, one prompt with text and picture',
        data=[s['data'] for s in seeds],
        seeds=list(o.seeds),
        batch=batch,
        steps=[s['steps'] for s in seeds],
        block=block,
        lr=lr,
        temperature=TAU,
        largest_difference_at_start=max(s['apart'] for s in seeds),
        clock='CPU seconds of one thread, summed over an epoch of each seed',
        rows=rows,
    )
    write(o.out, result)
    print(
        f'\nsentence-transformers {result["version"]} with {result["sampler"]} and the lab, in turn: an epoch of '
        f'{", ".join(map(str, result["steps"]))} steps of {batch} rows, seeds {", ".join(map(str, o.seeds))}; vectors '
        f'at the start differ by at most {result["largest_difference_at_start"]:.1e}\n'
    )
    print(
        table(
            [
                {
                    'side': r['side'],
                    'the same work': r['work'],
                    'pairs per step': r['pairs_per_step'],
                    's CPU in all': r['cpu_seconds'],
                    'pairs per s': r['pairs_per_second'],
                    'ratio of sums (seeds)': in_range(r['ratio']),
                    'test NDCG@10 after an epoch': '{:.4f}'.format(r['test_ndcg'][0])
                    + ('' if r['test_ndcg'][1] is None else ' ± {:.4f}'.format(r['test_ndcg'][1])),
                }
                for r in rows
            ]
        )
    )
    print('\nmachine:', result['machine'])


if __name__ == '__main__':
    main()
