// How the search orders what it finds: pages that explain stand before notebooks, and notebooks before signatures,
// unless the query is a name of ours. Sphinx writes this into its search (html_search_scorer).
var Scorer = {
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
  // Pages that answer a word which their titles do not have.
  answers: {
    collapse: ['docs/alive', 'docs/own_vectors'],
    collapsed: ['docs/alive'],
    dead: ['docs/alive'],
    install: ['docs/start', 'docs/gpu'],
    cuda: ['docs/gpu'],
    memory: ['docs/troubleshooting', 'docs/your_model'],
    oom: ['docs/troubleshooting'],
    error: ['docs/troubleshooting'],
    offline: ['docs/troubleshooting'],
    lora: ['docs/your_model', 'docs/fast'],
    dataset: ['docs/own_data'],
    csv: ['docs/own_data'],
    umap: ['docs/pictures'],
    model: ['docs/your_model'],
    compare: ['docs/compare'],
    tools: ['docs/compare'],
  },
  asked: () =>
    (new URLSearchParams(window.location.search).get('q') || '')
      .toLowerCase()
      .split(/[^\p{L}\d_]+/u)
      .filter(Boolean),
  score: result => {
    const [page, , anchor, , score, , kind] = result;
    if (page === 'docs/glossary' && anchor) return score - 100; // a term: the pages about it come first
    if (kind === 'object') return score;
    const words = Scorer.asked();
    const own = words.some(w => (Scorer.answers[w] || []).includes(page));
    const sort = page === 'docs/changelog' ? -10 : page.startsWith('docs/') ? 12 : page.startsWith('api/') ? -4 : 0;
    return score + sort + (own && !anchor ? 30 : 0);
  },
};
