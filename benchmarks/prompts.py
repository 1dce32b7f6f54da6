"""What learning a part of T5 saves: parameters, seconds of a step, memory and what is kept, in the shape of t5-small.

    python benchmarks/prompts.py [--device cuda] [--batch 64] [--length 128 512] [--rounds 5] [--steps 3]
                                 [--autocast bfloat16] [--items 1000] [--prompts 64] [--threads 1]
                                 [--parts learning ranking] [--out benchmarks/results/prompts.json] [--toy]

Weights are random and nothing is downloaded; prompts are random tokens, one item shown by a picture of 512 numbers for
every 16 of them, and answers have 8 tokens. `--length` counts the tokens of a prompt with two words for each item; the
text stays the same where items have more words or fewer.

- `learning`: adapters of five widths, LoRA of rank 8 and everything, with two words for each item, and adapters with
  one to five words. A step is forward, backward and AdamW. Steps run in turn, a case after the other, and the mean
  of the rounds is told: seconds of the wall on a GPU, of the CPU elsewhere. Memory on a GPU is the most that tensors
  took in a step, the model included; elsewhere it is the sum of parameters, gradients and what AdamW keeps, without
  activations.
- `ranking`: the names of all items scored for some prompts at the first length, name by name and, where the lab has
  it, by one pass over all beginnings; and the ten best by the search with 20 beams.

`--toy` runs all of it on a tiny shape in seconds; its figures mean nothing.
"""

import argparse
import copy
import importlib.util
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

from common import interleave, machine, quantiles, quiet, say, table, write

SMALL = dict(vocab_size=32128, d_model=512, d_kv=64, d_ff=2048, num_layers=6, num_heads=8, decoder_start_token_id=0)
TOY = dict(vocab_size=120, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0)
WAYS = {f'adapters, reduction {r}': dict(learn='adapters', reduction=r) for r in (2, 4, 8, 16, 32)}
WAYS |= {'lora, rank 8': dict(learn='lora', rank=8), 'everything': dict(learn='everything')}
CASES = {way: dict(how, item_words=2) for way, how in WAYS.items()}
CASES |= {f'adapters, reduction 8, words {n}': dict(learn='adapters', item_words=n) for n in (1, 3, 4, 5)}
ANSWER, EVERY = 8, 16  # tokens of an answer; of a prompt, for each item in it
PARTS = 'learning', 'ranking'


def random_t5(toy, seed=0):  # -> T5ForConditionalGeneration
    "The shape of t5-small, on the CPU."
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    return T5ForConditionalGeneration(T5Config(**TOY if toy else SMALL))


def random_asked(rows, length, words, toy, device, seed=0):  # -> Asked
    "Prompts of tokens and items, as many of both however many words an item has."
    import torch

    from vlm2rec_lab.prompts.model import Asked

    g, items = torch.Generator().manual_seed(seed), max(1, length // EVERY)
    whole = length - 2 * items + words * items
    kinds = torch.zeros(whole, dtype=torch.long)
    kinds[: items * words] = 1
    vocabulary, features = (TOY if toy else SMALL)['vocab_size'], 12 if toy else 512
    asked = Asked(
        torch.randint(2, vocabulary, (rows, whole), generator=g),
        torch.ones(rows, whole).bool(),
        torch.arange(1, whole + 1).expand(rows, whole),
        kinds.expand(rows, whole),
        dict(image=torch.randn(rows * items, features, generator=g)),
        torch.randint(2, vocabulary, (rows, ANSWER), generator=g),
    )
    return asked.to(device)


def sync(device):
    import torch

    if device == 'cuda':
        torch.cuda.synchronize()


class Case:
    "A model that learns in one way, with its optimiser and prompts."

    def __init__(self, t5, how, rows, length, o):
        import torch

        from vlm2rec_lab.prompts.model import PromptModel, learned_parts

        self.o, self.device = o, o.device
        features = dict(image=12 if o.toy else 512)
        self.model = PromptModel(copy.deepcopy(t5), features, **how).to(o.device).train()
        self.asked = random_asked(rows, length, how['item_words'], o.toy, o.device)
        self.adam = torch.optim.AdamW(learned_parts(self.model), lr=1e-4, weight_decay=0.01)

    def step(self):
        "Forward, backward, AdamW; dropout as in training."
        import torch

        with torch.autocast(self.device, torch.bfloat16) if self.o.autocast == 'bfloat16' else nullcontext():
            loss = self.model(self.asked).mean()
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        return loss

    def run(self, k):
        "Some steps, to their end on the device."
        for _ in range(self.o.steps):
            self.step()
        sync(self.device)

    def kept(self):  # -> bytes
        "Of parameters, gradients and what AdamW keeps."
        state = [v for s in self.adam.state.values() for v in s.values() if v.dim()]
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        return sum(t.numel() * t.element_size() for t in [*self.model.parameters(), *grads, *state])


def measured(t5, how, rows, length, o):  # -> Case, dict(states, peak)
    "A case after two steps, and the memory of the second."
    import torch

    before = torch.cuda.memory_allocated() if o.device == 'cuda' else 0
    case = Case(t5, how, rows, length, o)
    case.step()
    if o.device == 'cuda':
        sync(o.device)
        torch.cuda.reset_peak_memory_stats()
    loss = float(case.step().detach())
    peak = torch.cuda.max_memory_allocated() - before if o.device == 'cuda' else None
    return case, dict(states=case.kept(), peak=peak, loss=loss)


def saved_bytes(model):
    "What is kept of a model, in bytes."
    from vlm2rec_lab.prompts.saved import save_prompts

    with tempfile.TemporaryDirectory() as folder:
        saved = save_prompts(model, Path(folder) / 'saved')
        return sum(f.stat().st_size for f in saved.iterdir())


def learning(o):  # -> list of dict
    "Every case at every length."
    from vlm2rec_lab.prompts.model import learned_share

    t5, rows, saved = random_t5(o.toy), [], {}
    measured(t5, CASES['lora, rank 8'], o.batch, o.length[0], o)  # kernels are loaded before anything is measured
    for length in o.length:
        cases, found = {}, {}
        for name, how in CASES.items():
            cases[name], found[name] = measured(t5, how, o.batch, length, o)
            if name not in saved:
                saved[name] = saved_bytes(cases[name].model)
        say(f'{len(cases)} models at {length} tokens')
        spent = interleave({name: case.run for name, case in cases.items()}, o.rounds)
        for name, case in cases.items():
            learned, whole = learned_share(case.model)
            wall, cpu = ([t[k] / o.steps for t in spent[name]] for k in (0, 1))
            row = dict(case=name, tokens=case.asked.tokens.shape[1], length=length, learned=learned, whole=whole)
            row |= dict(share=learned / whole, wall=quantiles(wall), cpu=quantiles(cpu), saved=saved[name])
            row |= dict(mean=dict(wall=round(sum(wall) / len(wall), 4), cpu=round(sum(cpu) / len(cpu), 4)))
            rows.append(row | found[name])
        del cases, case
    return rows


def catalogue(n, toy):  # -> Trie
    "Names of up to four tokens, as numbers are written."
    from vlm2rec_lab.prompts.answers import make_trie

    base = 10 if toy else 100
    return make_trie([[2 + int(d) for d in _digits(k + 1, base)] for k in range(n)])


def _digits(number, base):
    return [*_digits(number // base, base), number % base] if number >= base else [number]


def ranking(o):  # -> list of dict
    "Seconds of every way to rank all items."
    import torch

    from vlm2rec_lab.prompts import answers

    case = Case(random_t5(o.toy), CASES['adapters, reduction 8'], o.prompts, o.length[0], o)
    model, trie = case.model.eval(), catalogue(o.items, o.toy)
    at_once = 4096 if o.device == 'cuda' else 256
    runs = {
        'score_names': lambda: answers.score_names(model, case.asked, trie, at_once),
        'best_items': lambda: answers.best_items(model, case.asked, trie, 10),
    }
    if importlib.util.find_spec('vlm2rec_lab.prompts.scores'):
        from vlm2rec_lab.prompts.scores import all_scores

        runs['all_scores'] = lambda: all_scores(model, case.asked, trie)
    told, memory = {}, {}

    def run(name):
        if o.device == 'cuda':
            torch.cuda.reset_peak_memory_stats()
        told[name] = runs[name]()
        sync(o.device)
        memory[name] = torch.cuda.max_memory_allocated() if o.device == 'cuda' else None

    spent = interleave({name: lambda _, name=name: run(name) for name in runs}, min(o.rounds, 3))
    apart = {k: round(float((told[k] - told['score_names']).abs().max()), 6) for k in told if k == 'all_scores'}
    best = told['score_names'].topk(min(10, o.items)).indices
    same = float((told['best_items'][0][:, :1].to(best.device) == best[:, :1]).float().mean())
    return [
        dict(
            way=name,
            prompts=o.prompts,
            items=o.items,
            tokens=case.asked.tokens.shape[1],
            **{kind: quantiles([t[k] for t in spent[name]]) for k, kind in enumerate(('wall', 'cpu'))},
            peak=memory[name],
            apart=apart.get(name),
            same_best=same if name == 'best_items' else None,
        )
        for name in runs
    ]


def shown(rows, clock):
    "The table of the cases at one length."
    base = next(r for r in rows if r['case'] == 'everything')
    return table(
        [
            {
                'case': r['case'],
                'tokens': r['tokens'],
                'learn': f'{r["learned"]:,}',
                'share': f'{r["share"]:.2%}',
                f'{clock} s a step': f'{r["mean"][clock]:.4f}',
                'of everything': f'{r["mean"][clock] / base["mean"][clock]:.2f}',
                'memory MB': f'{(r["peak"] or r["states"]) / 1e6:,.1f}',
                'saved MB': f'{r["saved"] / 1e6:,.2f}',
            }
            for r in rows
        ]
    )


def shown_ranking(rows, clock):
    "The table of the ways to rank."
    return table(
        [
            {
                'way': r['way'],
                'prompts': r['prompts'],
                'items': r['items'],
                f'{clock} s': f'{r[clock][0]:.3f}',
                'ms a prompt': f'{1000 * r[clock][0] / r["prompts"]:.2f}',
                'peak MB': f'{r["peak"] / 1e6:,.1f}' if r['peak'] else '-',
            }
            for r in rows
        ]
    )


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    p.add_argument('--batch', type=int, default=64, help='prompts of a step')
    p.add_argument('--length', type=int, nargs='+', default=[128, 512], help='tokens of a prompt')
    p.add_argument('--rounds', type=int, default=5, help='in each of which every case runs once')
    p.add_argument('--steps', type=int, default=3, help='of a case in a round')
    p.add_argument('--autocast', choices=('bfloat16', 'none'), default='none', help='type of the passes')
    p.add_argument('--items', type=int, default=1000, help='that are ranked')
    p.add_argument('--prompts', type=int, default=64, help='that items are ranked for')
    p.add_argument('--threads', type=int, default=1, help='of torch on the CPU')
    p.add_argument('--parts', nargs='+', choices=PARTS, default=PARTS, help='what to measure')
    p.add_argument('--toy', action='store_true', help='a tiny shape: does it run?')
    p.add_argument('--out', type=Path, help='write the figures as JSON here')
    o = p.parse_args()
    for name in ('batch', 'rounds', 'steps', 'items', 'prompts', 'threads'):
        if getattr(o, name) < 1:
            p.error(f'--{name} {getattr(o, name)}: give 1 or more')
    if min(o.length) < 4:
        p.error(f'--length {min(o.length)}: give 4 tokens or more, two of which are an item')
    if o.toy:
        o.batch, o.length, o.rounds, o.steps, o.items, o.prompts = 2, [16], 2, 1, 12, 3
    begun = time.perf_counter()
    quiet(o.threads)
    import torch

    if o.device == 'cuda' and not torch.cuda.is_available():
        p.exit(3, 'no GPU here: nothing is measured and nothing is estimated (--device cpu measures the processor)\n')
    clock = 'wall' if o.device == 'cuda' else 'cpu'
    asked = {k: getattr(o, k) for k in ('toy', 'device', 'batch', 'length', 'rounds', 'steps', 'autocast')}
    found = dict(benchmark='prompts', machine=machine(), answer=ANSWER, clock=clock, **asked)
    if 'learning' in o.parts:
        found['learning'] = learning(o)
        write(o.out, found)
        for length in o.length:
            print(f'{o.batch} prompts of {length} tokens on {o.device}, autocast {o.autocast}\n')
            print(shown([r for r in found['learning'] if r['length'] == length], clock) + '\n')
    if 'ranking' in o.parts:
        found['ranking'] = ranking(o)
        print(shown_ranking(found['ranking'], clock))
    found['seconds'] = round(time.perf_counter() - begun, 1)
    write(o.out, found)


if __name__ == '__main__':
    main()
