"""Training on a GPU: random weights in the true shape of a family's model, bfloat16, LoRA rank 16 on the language
model, histories of 10, 224-pixel pictures.

python benchmarks/gpu.py [--family qwen2_5_vl] [--toy] [--out benchmarks/results/gpu.json] [--seconds 450]

Needs torch, transformers and peft, and this repository; downloads nothing. Results are written as they come, so
that a run that is cut off leaves what it had.
`--toy` runs the same functions on a toy shape on the CPU: that is how the tests run it, and its figures mean nothing.

Three views per customer and item: a text and a table of `--words` tokens each, and a picture of 64 tokens. The
utilisation counts what the model must compute: 4 x the
weights of the language model per token (forward, and backward to the activations, as the weights are frozen), 6 x
those of the adapters, and attention; filler
and whatever is computed twice count nothing. Its denominator is the rate of one large matrix product, measured in
the same run.
"""

import argparse
import os
import time
import warnings

from common import machine, quiet, say, table, write

os.environ.setdefault('PYTORCH_CUDA_ALLOC_CONF', 'expandable_segments:True')  # before torch: batches of changing shapes
import numpy as np
import torch
from shapes import SHAPES, processor_of, shape_of
from train import ALL, PLAIN, Recipe, works

from vlm2rec_lab.data import Catalogue, Dataset, Interactions, hold_out_users
from vlm2rec_lab.embed import VLMEmbedder, add_lora
from vlm2rec_lab.losses import get_loss
from vlm2rec_lab.model.family import language_model
from vlm2rec_lab.model.passes import plan_sizes, prefix_plan
from vlm2rec_lab.model.tiny import build_tokenizer, studio_corpus
from vlm2rec_lab.train import batch_rows, make_batch, training_rows
from vlm2rec_lab.training.step import step_gradients

# ---------------------------------------------------------------- model and data, made here


def random_embedder(toy, device, recompute=False, rank=16, words=32, seed=0, family='qwen2_5_vl'):  # -> VLMEmbedder
    "Random weights, made on the device in its type, with adapters on the language model."
    from transformers import AutoModelForImageTextToText

    tokenizer, before = build_tokenizer(studio_corpus(300)), torch.get_default_dtype()
    config, dtype = shape_of(family, tokenizer, toy), torch.float32 if toy else torch.bfloat16
    torch.manual_seed(seed)
    try:
        torch.set_default_dtype(dtype)
        with torch.device(device):
            model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    finally:
        torch.set_default_dtype(before)
    model = add_lora(model.to(device).eval().requires_grad_(False), 4 if toy else rank, seed=seed)
    embedder = VLMEmbedder(model, tokenizer, processor_of(family, toy), max_text_tokens=words)
    return recomputing(embedder, recompute)


def recomputing(embedder, on):  # -> embedder
    "Gradient checkpointing switched on or off, as `from_pretrained(recompute=True)` does it."
    if on:
        embedder.model.gradient_checkpointing_enable({'use_reentrant': False})
    else:
        embedder.model.gradient_checkpointing_disable()
    for module in embedder.model.modules():
        module.training = on and hasattr(module, 'gradient_checkpointing')
    return embedder


def random_shop(items, users, history, pixels, words, seed=0):  # -> Split
    "Items of random words and pixels; customers whose purchases fall off like 1 / rank."
    rng = np.random.default_rng(seed)
    vocabulary = np.array(
        sorted({w for line in studio_corpus(50) for w in line.split() if w.isalpha() and '|' not in w})
    )

    def text():
        return ' '.join(
            rng.choice(vocabulary, 2 * words)
        )  # longer than what is read of it: every text costs `words` tokens

    catalogue = Catalogue(
        tuple(f'i{i}' for i in range(items)),
        dict(
            text=[text() for _ in range(items)],
            image=list(rng.integers(0, 256, (items, pixels, pixels, 3), np.uint8)),
            table=[text() for _ in range(items)],
        ),
        dict(text='text', image='image', table='text'),
    )
    weight = 1 / np.arange(1, items + 1)
    bought = [rng.choice(items, history + 1, replace=False, p=weight / weight.sum()) for _ in range(users)]
    return hold_out_users(
        Dataset(catalogue, Interactions.of_sequences(bought), 'random shop'), users - 2, 1, 1, history=history
    )


# ---------------------------------------------------------------- measures


def sync(device):
    if torch.device(device).type == 'cuda':
        torch.cuda.synchronize()


def seconds(f, device):  # -> (result, seconds)
    "Time of one call, to its end on the device."
    sync(device)
    start = time.perf_counter()
    result = f()
    sync(device)
    return result, time.perf_counter() - start


def peak_memory(device):  # -> GB, or None on a CPU
    "Largest memory in use since `forget_memory`."
    return round(torch.cuda.max_memory_allocated() / 1e9, 2) if torch.device(device).type == 'cuda' else None


def forget_memory(device):
    if torch.device(device).type == 'cuda':
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def matrix_peak(device, dtype, side, times=20):  # -> TFLOP per second
    "Rate of one large matrix product, the best of three series."
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))

    def series():
        for _ in range(times):
            a @ b

    series()
    return 2 * side**3 * times / min(seconds(series, device)[1] for _ in range(3)) / 1e12


def token_counts(bank, batch, recipe):  # -> {view: list of lengths}
    "Tokens of every prompt that the recipe passes through the language model, filler not counted."
    out = {}
    for view, pieces in bank.views.items():
        plan = prefix_plan(bank, batch.history, view)[0] if recipe.every else bank.sequence_plan(batch.history, view)
        out[view] = np.concatenate(
            [
                plan_sizes(pieces, plan),
                plan_sizes(pieces, bank.item_plan(batch.items if recipe.distinct else batch.targets)),
            ]
        )
    return out


def model_flops(embedder, lengths):  # of token_counts
    "Floating-point operations that a step's language model must do."
    c = embedder.core.config.get_text_config()
    lm = language_model(embedder.core)
    adapters = sum(p.numel() for n, p in lm.named_parameters() if 'lora_' in n)
    weights = sum(p.numel() for n, p in lm.layers.named_parameters() if p.dim() == 2 and 'lora_' not in n)
    n = np.concatenate(list(lengths.values())).astype(float)
    attention = (
        3 * 4 * c.num_hidden_layers * c.hidden_size * (n**2 / 2).sum()
    )  # causal: half of the square; the way back costs twice the way there
    return (4 * weights + 6 * adapters) * n.sum() + attention


def stepper(embedder, split, recipe, rows, autocast=None, seed=0):  # -> function of a step number -> dict
    "A training step, optimiser included, of a recipe."
    bank, parameters = (
        embedder.bank(split.catalogue, False, None if recipe.cached else 'live'),
        [p for _, p in embedder.adapter_parameters()],
    )
    assert torch.is_tensor(bank.features) == recipe.cached, (
        'the first bank of a catalogue is used where none is named: ask for the stored one first'
    )
    drawn, optimiser, objective = (
        training_rows(split, 'all' if recipe.every else 'last'),
        torch.optim.AdamW(parameters, lr=1e-4),
        get_loss('sft', tau=0.07),
    )
    if not recipe.every:
        drawn = drawn[(split.train.history >= 0).sum(1) == split.train.history.shape[1]]  # whole histories

    def step(k):
        this = make_batch(split, drawn[batch_rows(k, len(drawn), rows, seed)], 'all' if recipe.every else 'last')
        loss, parts = step_gradients(
            objective,
            works(embedder, bank, this, recipe),
            {'sequences': len(this.targets), 'items': len(this.items)},
            this.positives.to(embedder.device),
            this.exclude.to(embedder.device),
            parameters,
            cached=recipe.chunk is not None,
            autocast=autocast,
        )
        for p, *g in zip(parameters, *parts.values()):
            p.grad = sum(g)
        optimiser.step()
        optimiser.zero_grad()
        lengths = token_counts(bank, this, recipe)
        return dict(
            loss=float(loss),
            sequences=rows,
            pairs=len(this.targets),
            items=len(this.items),
            tokens=int(sum(n.sum() for n in lengths.values())),
            flops=model_flops(embedder, lengths),
        )

    return step


def rates(
    embedder, split, recipes, rounds, device, peak, autocast=None
):  # {name: (Recipe, rows, recompute)} -> list of dict
    "Sequences and pairs per second, utilisation and peak memory of each recipe, in turn; what does not fit is said."
    steps, spent, found, memory, failed = (
        {n: stepper(embedder, split, r, rows, autocast) for n, (r, rows, _) in recipes.items()},
        {n: [] for n in recipes},
        {n: [] for n in recipes},
        {},
        {},
    )
    for k in range(rounds + 1):
        for name, (recipe, rows, recompute) in recipes.items():
            if name in failed:
                continue
            recomputing(embedder, recompute)
            forget_memory(device)
            try:
                result, t = seconds(lambda: steps[name](k), device)
            except torch.OutOfMemoryError:
                failed[name] = True
                forget_memory(device)
                say(f'{name}: does not fit')
                continue
            memory[name] = peak_memory(device)
            if k:
                spent[name].append(t)
                found[name].append(result)
            say(f'{name}: {t:.2f} s, {memory[name]} GB' + ('' if k else ' (warm)'))
    out, base = [], next(iter(recipes))
    for name, (recipe, rows, recompute) in recipes.items():
        row = dict(recipe=name, rows_per_step=rows, chunk=recipe.chunk, recompute=recompute, fits=name not in failed)
        if name not in failed:
            total, each = sum(spent[name]), lambda key: sum(r[key] for r in found[name])
            rate = np.array([r['pairs'] for r in found[name]]) / np.array(spent[name])
            row |= dict(
                pairs_per_step=each('pairs') / rounds,
                tokens_per_step=each('tokens') / rounds,
                seconds_per_step=round(float(np.median(spent[name])), 4),
                sequences_per_second=round(each('sequences') / total, 3),
                pairs_per_second=round(each('pairs') / total, 3),
                tokens_per_second=round(each('tokens') / total, 1),
                utilisation=round(each('flops') / total / 1e12 / peak, 4),
                peak_memory_gb=memory[name],
            )
            if base not in failed:
                plain = np.array([r['pairs'] for r in found[base]]) / np.array(spent[base])
                of_sums = row['pairs_per_second'] * sum(spent[base]) / sum(r['pairs'] for r in found[base])
                row['ratio'] = [round(float(v), 3) for v in (of_sums, (rate / plain).min(), (rate / plain).max())]
        out.append(row)
    return out


def layers(embedder, split, recipe, rows, rounds, device, peak, autocast=None):  # -> list of dict
    "The same steps with the layers as peft and transformers write them, with lean adapters, and with fused norms too."
    quick = [(m, type(m)) for m in embedder.model.modules() if type(m).__name__.startswith(('Lean', 'Fused'))]
    out, ways = [], {'as written': (), 'lean adapters': ('Lean',), 'lean': ('Lean', 'Fused')}
    for way, kept in ways.items():
        for m, kind in quick:
            m.__class__ = kind if kind.__name__.startswith(kept) else kind.__mro__[1]
        found = rates(embedder, split, {way: (recipe, rows, True)}, rounds, device, peak, autocast)[0]
        out.append(found | {'ratio': round(found['pairs_per_second'] / out[0]['pairs_per_second'], 3) if out else 1.0})
    for m, kind in quick:
        m.__class__ = kind
    return out


def largest(
    embedder, split, recipe, recompute, tries, device, left, autocast=None
):  # rising row counts; function -> seconds left
    "Whether each of rising batches fits, until one does not or time is short."
    out = []
    recomputing(embedder, recompute)
    for rows in tries:
        if out and 2.2 * out[-1]['seconds'] * rows / out[-1]['rows'] > left():
            out.append(dict(rows=rows, fits=None, why='no time left to try'))
            break
        forget_memory(device)
        try:
            _, t = seconds(lambda: stepper(embedder, split, recipe, rows, autocast)(0), device)
        except torch.OutOfMemoryError:
            out.append(dict(rows=rows, fits=False))
            forget_memory(device)
            break
        out.append(dict(rows=rows, fits=True, seconds=round(t, 2), peak_memory_gb=peak_memory(device)))
        say(f'{rows} rows: {t:.1f} s, {peak_memory(device)} GB')
    fit = [o['rows'] for o in out if o['fits']]
    return dict(largest=max(fit, default=0), bounded=any(o['fits'] is False for o in out), tries=out)


def encoding(embedder, split, device, batch):  # -> dict
    """Pictures per second through image processing and vision tower, and items and customers per second through the
    language model."""
    recomputing(embedder, False)
    n = len(split.catalogue)
    bank, pictures = seconds(lambda: embedder.bank(split.catalogue, False), device)
    _, items = seconds(lambda: embedder.encode_items(split.catalogue, batch, False), device)
    history = split.train.history[(split.train.history >= 0).all(1)][: n // 4]
    _, sequences = seconds(lambda: embedder.encode_sequences(split.catalogue, history, batch, False), device)
    return dict(
        items=n,
        views=len(bank.views),
        tokens_per_item={v: int(plan_sizes(p, bank.item_plan(np.arange(1)))[0]) for v, p in bank.views.items()},
        pictures_per_second=round(n / pictures, 2),
        items_per_second=round(n / items, 2),
        sequences_per_second=round(len(history) / sequences, 2),
        note='seconds for all views of an item or customer; pictures with opening and scaling, on the processor',
    )


# ---------------------------------------------------------------- the whole


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--toy', action='store_true', help='a toy shape on the CPU')
    families = f'family whose shape is taken, one of {", ".join(SHAPES)} (default: qwen2_5_vl)'
    parser.add_argument('--family', choices=SHAPES, default='qwen2_5_vl', metavar='FAMILY', help=families)
    parser.add_argument('--out', help='JSON file, written as results come')
    parser.add_argument(
        '--seconds',
        type=float,
        default=450,
        help='time for the whole script; what does not fit into it is left out, and said',
    )
    parser.add_argument('--rows', type=int, help='rows per step of the comparison; default 16, and 3 for --toy')
    parser.add_argument(
        '--autocast',
        choices=('bfloat16', 'none'),
        default='bfloat16',
        help='type of the passes, as in train(autocast=): adapters stay in the type peft gives them',
    )
    parser.add_argument('--words', type=int, default=32, help='tokens of each text')
    parts = 'parts that are left out: encoding, rates, layers'
    parser.add_argument('--skip', nargs='+', default=[], choices=('encoding', 'rates', 'layers'), help=parts)
    o = parser.parse_args()
    begun, device = time.perf_counter(), 'cpu' if o.toy else 'cuda'

    def left():
        return o.seconds - (time.perf_counter() - begun)

    if not o.toy and not torch.cuda.is_available():
        parser.exit(
            3, 'no GPU here: nothing is measured and nothing is estimated (--toy runs the same functions on the CPU)\n'
        )
    quiet(torch.get_num_threads() if not o.toy else 1)
    rows, words = o.rows or (3 if o.toy else 16), 8 if o.toy else o.words
    pixels = SHAPES[o.family].toy_pixels if o.toy else SHAPES[o.family].pixels
    result = dict(
        benchmark='gpu',
        toy=o.toy,
        machine=machine(),
        family=o.family,
        shape='toy' if o.toy else f'{SHAPES[o.family].name}, random weights',
        dtype='float32' if o.toy else 'bfloat16',
        lora=4 if o.toy else 16,
        history=4 if o.toy else 10,
        pixels=pixels,
        words=words,
        views=3,
        autocast='none' if o.toy else o.autocast,
        done=[],
    )

    def note(name, found):
        result[name] = found
        result['done'].append(name)
        result['seconds'] = round(time.perf_counter() - begun, 1)
        write(o.out, result)
        say(f'-- {name} done after {result["seconds"]} s')

    dtype, autocast = (
        torch.float32 if o.toy else torch.bfloat16,
        None if o.toy or o.autocast == 'none' else torch.bfloat16,
    )
    note('matrix_peak_tflops', round(matrix_peak(device, dtype, 256 if o.toy else 8192), 3))
    embedder = random_embedder(o.toy, device, words=words, family=o.family)

    def count(ps):
        return int(sum(p.numel() for p in ps))

    decoder = count(p for n, p in language_model(embedder.core).named_parameters() if 'lora_' not in n)
    frozen = count(p for n, p in embedder.core.model.named_parameters() if 'lora_' not in n)
    adapters = count(p for _, p in embedder.adapter_parameters())
    note('parameters', dict(language_model=decoder, vision_tower=frozen - decoder, adapters=adapters))
    split = random_shop(*((40, 30, 4) if o.toy else (1000, 1200, 10)), pixels, words)
    warnings.filterwarnings('ignore', message='.*cut to max_text_tokens.*')  # meant to be: see random_shop
    chunk = 4 if o.toy else 16
    cached_all = Recipe(True, True, True, True, chunk)
    recipes = {
        '(a) plain, recomputing': (PLAIN, rows, True),
        '(c) all, recomputing': (ALL, rows, True),
        f'(c) all, caching by {chunk}': (cached_all, rows, False),
    }
    peak = result['matrix_peak_tflops']
    if 'encoding' not in o.skip:
        note('encoding', encoding(embedder, split, device, 16 if o.toy else 64))
    if 'rates' not in o.skip:
        note('rates', rates(embedder, split, recipes, 2, device, peak, autocast))
    if 'layers' not in o.skip:
        note('layers', layers(embedder, split, ALL, rows, 2, device, peak, autocast))
    stored, last = Recipe(True, True, True), lambda chunk: Recipe(True, True, True, False, chunk)
    note(
        'largest_without',
        largest(
            embedder,
            split,
            last(None),
            False,
            (2, 4) if o.toy else (2, 4, 8, 16, 32),
            device,
            left,
            autocast,
        ),
    )
    small = max(1, result['largest_without']['largest'] * 3 // 4)  # a batch that fits
    if left() > 60:
        note(
            'caching',
            rates(
                embedder,
                split,
                {'without caching': (stored, small, False), 'caching': (last(chunk), small, False)},
                3,
                device,
                result['matrix_peak_tflops'],
                autocast,
            ),
        )
    if left() > 90:
        note(
            'utilisation',
            rates(
                embedder,
                split,
                {
                    'every position': (ALL, max(1, small // 2), False),
                    'every position, caching': (cached_all, 4 * rows, False),
                },
                2,
                device,
                result['matrix_peak_tflops'],
                autocast,
            ),
        )
    if left() > 60:
        note(
            'largest_recomputing',
            largest(
                embedder,
                split,
                last(None),
                True,
                (2, 4) if o.toy else (64, 96, 128, 192, 256),
                device,
                lambda: left() - 60,
                autocast,
            ),
        )
    if left() > 30:
        note(
            'largest_with',
            largest(embedder, split, last(chunk), False, (4, 8) if o.toy else (192, 384, 768), device, left, autocast),
        )
    wanted = ('encoding', 'rates', 'layers', 'caching', 'utilisation', 'largest_recomputing', 'largest_with')
    result['left_out'] = [name for name in wanted if name not in result]
    write(o.out, result)
    show(result)


def show(result):
    "Print the result as tables."
    print(
        f'\n{result["shape"]}, {result["dtype"]}, LoRA rank {result["lora"]}; matrix product '
        f'{result["matrix_peak_tflops"]} TFLOP/s; {result["parameters"]}\n'
    )
    for part in ('rates', 'layers', 'caching', 'utilisation'):
        print(
            table(
                [
                    {
                        'recipe': r['recipe'],
                        'rows': r['rows_per_step'],
                        'pairs': r.get('pairs_per_step', ''),
                        'sequences per s': r.get('sequences_per_second', 'does not fit'),
                        'pairs per s': r.get('pairs_per_second', ''),
                        'utilisation': r.get('utilisation', ''),
                        'peak GB': r.get('peak_memory_gb', ''),
                        'ratio': r.get('ratio', ''),
                    }
                    for r in result.get(part, [])
                ]
            ),
            '\n',
        )
    for part in ('largest_without', 'largest_recomputing', 'largest_with'):
        if part in result:
            print(
                f'{part.replace("_", " ")}: {result[part]["largest"]} rows'
                + ('' if result[part]['bounded'] else ', and nothing larger was found not to fit')
            )
    print(
        f'encoding: {result.get("encoding", "left out")}\nleft out: {result["left_out"]}\n'
        f'machine: {result["machine"]}; {result["seconds"]} s'
    )


if __name__ == '__main__':
    main()
