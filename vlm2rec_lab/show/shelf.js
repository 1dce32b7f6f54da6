// One customer: what was bought, and what each view would rank next. It needs live.js before it.

const SHELF_WAYS = 'Recommendations. Left and right arrows go to the previous and the next customer.'

// The picture of a product, or the first letter of its title.
function picture(parent, x, pictures) {
  const box = add(parent, 'div', {class: 'pic'})
  const source = (pictures ?? {})[x.item]
  if (source && source.startsWith('data:image/')) add(box, 'img', {src: source, alt: ''})
  else box.textContent = x.title.slice(0, 1)
}

function tile(strip, x, pictures, cls = '', note = '') {
  const t = add(strip, 'div', {class: `tile ${cls}`})
  picture(t, x, pictures)
  if (note) add(t, 'div', {class: 'mark'}, note)
  add(t, 'div', {}, x.title)
}

// The first candidates of one view, in order.
function column(cols, c, pictures) {
  const col = add(cols, 'section', {class: 'col'})
  add(col, 'h4', {}, `${c.view} would rank`)
  add(col, 'div', {class: 'soft'}, `the next purchase is at place ${short(c.place)}`)
  const list = add(col, 'ol')
  for (const x of c.items) {
    if (x.after) add(list, 'div', {class: 'gap', 'aria-hidden': 'true'}, '⋮')
    const li = add(list, 'li', x.truth ? {class: 'truth'} : {})
    add(li, 'span', {class: 'soft'}, x.place)
    picture(li, x, pictures)
    const words = add(li, 'span', {}, x.title)
    if (x.truth) add(words, 'span', {class: 'mark'}, ' ✓ next')
  }
}

function render({model, el}) {
  const root = add(el, 'div', {
    class: 'v2l',
    tabindex: 0,
    role: 'region',
    'aria-label': SHELF_WAYS,
    'data-lm-suppress-shortcuts': 'true',
  })
  if (model.get('mark')) root.dataset.v2rMark = model.get('mark')
  const nav = add(root, 'nav')
  const back = add(nav, 'button', {type: 'button'}, '← previous')
  const on = add(nav, 'button', {type: 'button'}, 'next →')
  const where = add(nav, 'span', {'aria-live': 'polite'})
  const body = add(root, 'div')

  function draw() {
    const p = model.get('page')
    if (!p || !p.columns) return
    const pictures = model.get('pictures')
    back.disabled = p.row === 0
    on.disabled = p.row === p.rows - 1
    where.textContent = `customer ${p.user} (${p.row + 1} of ${p.rows})`
    body.replaceChildren()
    add(body, 'h3', {}, 'Bought so far, oldest first, and what came next')
    const strip = add(body, 'div', {class: 'strip'})
    for (const x of p.history) tile(strip, x, pictures)
    tile(strip, p.truth, pictures, 'truth', '✓ next')
    const cols = add(body, 'div', {class: 'cols'})
    for (const c of p.columns) column(cols, c, pictures)
    const note = `${p.name}. Items already bought are left out. Arrow keys: previous and next customer.`
    add(body, 'p', {class: 'soft'}, note)
  }

  function go(by) {
    const p = model.get('page')
    const to = p.row + by
    if (to < 0 || to >= p.rows) return
    model.set('at', to)
    model.save_changes()
  }

  back.onclick = () => go(-1)
  on.onclick = () => go(1)
  root.addEventListener('keydown', e => {
    const by = {ArrowLeft: -1, ArrowRight: 1}[e.key]
    if (!by) return
    go(by)
    e.preventDefault()
    e.stopPropagation()
  })
  model.on('change:page', draw)
  draw()
  // it stands below a bench: into sight, where its button was pressed a moment ago
  const calm = matchMedia('(prefers-reduced-motion: reduce)').matches
  setTimeout(() => {
    const bench = root.closest('.v2l-bench')
    if (!bench?.dataset.wants) return
    delete bench.dataset.wants
    root.scrollIntoView({block: 'start', behavior: calm ? 'auto' : 'smooth'})
  }, 120)
}

export default {render}
