// Finding products and taking them along: search, filters, a grid of pictures, CSV, PNG, SVG and a link.
// It stands before spaces.js, whose view it is given; views.js behind both has the small tools.

const PAGEFUL = 60 // tiles of the grid that are shown at a time

// The values of a column as text; numbers as written, '' where one is missing.
class Values {
  constructor(meta, src) {
    this.meta = meta
    this.src = src
    this.had = new Map()
  }
  column(c) {
    if (this.had.has(c)) return this.had.get(c)
    const number = this.meta.columns[c].kind === 'number'
    const value = typed(number ? Float64Array : Uint32Array, this.src.blob('value' + c))
    const found = {value, words: number ? null : lines(this.src.blob('words' + c))}
    if (value.length) this.had.set(c, found) // a part of a large page that has not arrived yet is empty
    return found
  }
  text(c, i) {
    const {value, words} = this.column(c)
    if (words) return words[value[i]] ?? ''
    return Number.isFinite(value[i]) ? String(value[i]) : ''
  }
  // Modalities without content: ['image'].
  lacking(i) {
    const names = this.meta.lacking || []
    if (!names.length) return []
    if (!this.lack?.length) this.lack = bytes(this.src.blob('lacking'))
    return names.filter((_, m) => this.lack[m * this.meta.n + i])
  }
}

// What a spreadsheet takes for a formula, and what is a number; as in base/cells.py, which undoes the guard.
const FORMULA = /^(?:['\s]*[=+\-@\uff1d\uff0b\uff0d\uff20]|'*[\t\r\n])/
const PLAIN = /^[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?$/

// One field of a CSV file; a text that a spreadsheet would compute has an apostrophe in front.
function csvField(v) {
  const safe = FORMULA.test(v) && !PLAIN.test(v) ? `'${v}` : v
  return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe
}

// A selection as a short text: the gaps between its places where it is small, else a bit for every product.
function packed(chosen, n) {
  const out = []
  let last = -1
  for (const i of chosen) {
    let gap = i - last - 1
    for (; gap > 127; gap >>>= 7) out.push((gap & 127) | 128)
    out.push(gap)
    last = i
  }
  if (out.length <= n / 8) return 'g' + coded(Uint8Array.from(out))
  const bits = new Uint8Array(Math.ceil(n / 8))
  for (const i of chosen) bits[i >> 3] |= 1 << (i & 7)
  return 'b' + coded(bits)
}
// The mask of n products that such a text names; whatever lies outside is left out.
function unpacked(text, n) {
  const mask = new Uint8Array(n)
  const found = decoded(text.slice(1))
  if (text[0] === 'b') {
    for (let i = 0; i < Math.min(n, found.length * 8); i++) mask[i] = (found[i >> 3] >> (i & 7)) & 1
    return mask
  }
  let [at, gap, shift] = [-1, 0, 0]
  for (const b of found) {
    gap += (b & 127) * 2 ** shift
    shift += 7
    if (b > 127) continue
    at += gap + 1
    if (at >= n) break
    mask[at] = 1
    gap = shift = 0
  }
  return mask
}
// Bytes as text for an address, and back; what is no such text throws.
function coded(found) {
  let plain = ''
  for (let k = 0; k < found.length; k += 8192) plain += String.fromCharCode(...found.subarray(k, k + 8192))
  return btoa(plain).replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', '')
}
function decoded(text) {
  return Uint8Array.from(atob(text.replaceAll('-', '+').replaceAll('_', '/')), c => c.charCodeAt(0))
}

// Give a file to the reader.
function save(blob, name) {
  const a = el('a', {href: URL.createObjectURL(blob), download: name})
  document.body.append(a)
  a.click()
  a.remove()
  setTimeout(() => URL.revokeObjectURL(a.href), 10000)
}

class Finder {
  static most = 48000 // characters of a selection in an address: some browsers keep no more than 80,000 in all
  // `view`: {root, meta, src, values, st, panels, titles(), ids(), pictures, select, paint, pin, say, state, restore}
  constructor(view) {
    this.view = view
    this.rules = new Map() // column, or 'lacking' -> function of an item's place
    this.words = []
    this.found = null // Uint8Array, or null where nothing is asked
    this.count = 0
    this.build()
  }
  build() {
    const {meta} = this.view
    this.search = el('input', {
      type: 'search',
      placeholder: 'title or id',
      'aria-label': 'Find products by title or id',
      oninput: () => this.look(),
      onkeydown: e => {
        if (e.key === 'Enter') this.take()
        if (e.key !== 'Escape' || this.search.value) e.stopPropagation()
        if (e.key === 'Escape') this.clear()
      },
    })
    this.said = el('span', {class: 'soft', role: 'status'})
    this.taking = el('button', {type: 'button', textContent: 'Select these', onclick: () => this.take()})
    this.clearing = el('button', {type: 'button', textContent: 'Show all again', onclick: () => this.clear()})
    this.fields = el('div', {class: 'fields'}, ...meta.columns.map((c, k) => this.field(c, k)))
    if (meta.lacking?.length) this.fields.append(this.contents(meta.lacking))
    const filters = el('details', {class: 'filters'}, el('summary', {}, 'Filters'), this.fields)
    const files = [
      this.button('PNG', 'Download the picture as PNG', () => this.png()),
      this.button('SVG', 'Download the picture as SVG', () => this.svg()),
    ]
    if (this.view.link) files.push(this.button('Copy link', 'Copy a link that restores this view', b => this.link(b)))
    this.bar = el(
      'div',
      {class: 'find', role: 'search'},
      el('label', {}, 'Find', this.search),
      ...(this.fields.children.length ? [filters] : []),
      el('span', {class: 'tools'}, this.taking, this.clearing),
      this.said,
      el('span', {class: 'tools files', role: 'group', 'aria-label': 'take the view along'}, ...files),
    )
    this.grid = el('div', {class: 'gallery', hidden: true})
    this.tell()
  }
  button(text, title, run) {
    const b = el('button', {type: 'button', textContent: text, title, onclick: () => run(b)})
    b.setAttribute('aria-label', buttonName(text, title))
    return b
  }
  // A filter of one column: a value of its words, or the bounds of its numbers.
  field(c, k) {
    return c.kind === 'number' ? this.bounds(c, k) : this.choice(c, k)
  }
  choice(c, k) {
    const any = el('option', {value: '', textContent: 'any'})
    const select = el('select', {onfocus: () => fill(), onpointerdown: () => fill()}, any)
    const fill = () => {
      if (select.options.length > 1) return
      const words = this.view.values.column(k).words
      words.forEach((w, j) => select.append(el('option', {value: j, textContent: w})))
    }
    select.addEventListener('change', () => {
      const {value} = this.view.values.column(k)
      const j = +select.value
      this.rule(k, select.value === '' ? null : i => value[i] === j)
    })
    select.fill = fill
    select.dataset.filter = k
    return el('label', {}, c.name, select)
  }
  bounds(c, k) {
    const end = (name, hint) =>
      el('input', {
        type: 'number',
        step: 'any',
        placeholder: hint,
        'aria-label': `${c.name}, ${name}`,
        oninput: () => this.between(k, low.value, high.value),
        onkeydown: e => e.key !== 'Escape' && e.stopPropagation(),
      })
    const low = end('at least', c.lo)
    const high = end('at most', c.hi)
    low.dataset.filter = k + '-low'
    high.dataset.filter = k + '-high'
    return el('span', {class: 'bounds'}, c.name, low, 'to', high)
  }
  between(k, low, high) {
    if (low === '' && high === '') return this.rule(k, null)
    const {value} = this.view.values.column(k)
    const a = low === '' ? -Infinity : +low
    const b = high === '' ? Infinity : +high
    this.rule(k, i => value[i] >= a && value[i] <= b)
  }
  contents(names) {
    const select = el(
      'select',
      {onchange: () => this.rule('lacking', select.value === '' ? null : this.lacks(select.value))},
      el('option', {value: '', textContent: 'any'}),
      el('option', {value: 'all', textContent: 'complete'}),
      ...names.map(m => el('option', {value: 'no ' + m, textContent: `without ${m}`})),
    )
    select.dataset.filter = 'lacking'
    return el('label', {}, 'Contents', select)
  }
  lacks(wanted) {
    const {values} = this.view
    return wanted === 'all' ? i => !values.lacking(i).length : i => values.lacking(i).includes(wanted.slice(3))
  }
  rule(key, rule) {
    if (rule) this.rules.set(key, rule)
    else this.rules.delete(key)
    this.look()
  }
  look() {
    const {titles, ids, meta, paint} = this.view
    // every word must be there; words in quotes must stand together
    const asked = this.search.value.toLowerCase().match(/"[^"]+"|[^\s"]+/g) || []
    this.words = asked.map(w => w.replaceAll('"', ''))
    this.found = null
    this.count = 0
    if (this.words.length || this.rules.size) {
      this.hay ||= titles().map((t, i) => `${t}\n${ids()[i]}`.toLowerCase())
      this.found = new Uint8Array(meta.n)
      const rules = [...this.rules.values()]
      for (let i = 0; i < meta.n; i++) {
        const ok = this.words.every(w => this.hay[i].includes(w)) && rules.every(r => r(i))
        this.found[i] = ok
        this.count += ok
      }
    }
    this.tell()
    paint()
  }
  tell() {
    this.said.textContent = this.found ? `${word(this.count)} of ${word(this.view.meta.n)} found` : ''
    this.taking.hidden = !this.count
    this.clearing.hidden = !this.found
  }
  take() {
    if (this.count) this.view.select(this.found.slice())
  }
  clear() {
    this.search.value = ''
    this.fields.querySelectorAll('select, input').forEach(f => {
      f.value = ''
    })
    this.rules.clear()
    this.look()
  }
  // What is in a rule's controls, for a link.
  asked() {
    const of = [...this.fields.querySelectorAll('[data-filter]')]
    return Object.fromEntries(of.filter(f => f.value !== '').map(f => [f.dataset.filter, f.value]))
  }
  ask(search, filters) {
    this.search.value = String(search || '')
    for (const f of this.fields.querySelectorAll('[data-filter]')) {
      const v = filters?.[f.dataset.filter]
      if (v === undefined) continue
      f.fill?.()
      f.value = String(v)
      f.dispatchEvent(new Event(f.tagName === 'SELECT' ? 'change' : 'input'))
    }
    this.look()
  }
  // The selection, or what was found, as a grid of pictures and titles.
  gallery(chosen) {
    this.grid.hidden = !chosen.length
    this.shown = 0
    this.grid.replaceChildren()
    if (!chosen.length) return
    const tiles = el('ul', {class: 'tiles', 'aria-label': `${word(chosen.length)} selected products`})
    const more = el('button', {type: 'button', onclick: () => add()})
    const add = () => {
      const next = chosen.slice(this.shown, this.shown + PAGEFUL)
      for (const i of next) tiles.append(this.tile(i))
      this.shown += next.length
      more.hidden = this.shown >= chosen.length
      more.textContent = `Show more (${word(chosen.length - this.shown)} left)`
    }
    const close = el('button', {type: 'button', textContent: 'Close the grid', onclick: () => this.gallery([])})
    this.grid.append(tiles, el('div', {class: 'tools'}, more, close))
    add()
  }
  tile(i) {
    const {meta, pictures, titles, values, pin} = this.view
    const lack = values.lacking(i)
    const parts = [el('span', {textContent: titles()[i]})]
    if (meta.pictures) parts.unshift(pictures.tile(i, 96, ''))
    if (lack.length) parts.push(el('small', {class: 'lack', textContent: `no ${lack.join(', no ')}`}))
    return el('li', {}, el('button', {type: 'button', onclick: () => pin(i)}, ...parts))
  }
  csv(chosen) {
    const {meta, titles, ids, values} = this.view
    const rows = [['id', 'title', ...meta.columns.map(c => c.name)]]
    for (const i of chosen) rows.push([ids()[i], titles()[i], ...meta.columns.map((_, c) => values.text(c, i))])
    return rows.map(r => r.map(csvField).join(',')).join('\r\n')
  }
  // The panels side by side with their names, as one canvas.
  canvas() {
    const {panels, root, meta} = this.view
    const [gap, top, d] = [12, 40, 2]
    const w = panels.reduce((a, p) => a + p.w + gap, gap)
    const h = Math.max(...panels.map(p => p.h)) + top + gap
    const c = el('canvas', {width: w * d, height: h * d})
    const g = c.getContext('2d')
    g.scale(d, d)
    g.fillStyle = tone(root, '--bg')
    g.fillRect(0, 0, w, h)
    g.fillStyle = tone(root, '--ink')
    g.font = '600 15px system-ui, sans-serif'
    let x = gap
    for (const p of panels) {
      const frame = this.view.film ? `, ${this.view.film.frames[this.view.film.now]}` : ''
      g.fillText(meta.spaces[p.s] + frame, x, 26, p.w)
      g.drawImage(p.base, x, top, p.w, p.h)
      x += p.w + gap
    }
    return [c, w, h]
  }
  png() {
    this.canvas()[0].toBlob(b => save(b, 'spaces.png'), 'image/png')
  }
  // Points as circles up to 20,000 of them in a panel; above, the picture of the panel.
  svg() {
    save(new Blob([this.drawn()], {type: 'image/svg+xml'}), 'spaces.svg')
  }
  drawn() {
    const {panels, root, meta} = this.view
    const [gap, top] = [12, 40]
    const safe = t => t.replace(/[&<>"]/g, c => `&#${c.charCodeAt(0)};`)
    const w = panels.reduce((a, p) => a + p.w + gap, gap)
    const h = Math.max(...panels.map(p => p.h)) + top + gap
    const at = v => v.toFixed(1)
    const out = [`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${at(w)} ${at(h)}" font-family="sans-serif">`]
    out.push(`<rect width="100%" height="100%" fill="${tone(root, '--bg')}"/>`)
    let x = gap
    panels.forEach((p, s) => {
      const frame = this.view.film ? `, ${this.view.film.frames[this.view.film.now]}` : ''
      const name = safe(meta.spaces[s] + frame)
      out.push(`<text x="${at(x)}" y="26" font-size="15" fill="${tone(root, '--ink')}">${name}<\/text>`)
      out.push(`<svg x="${at(x)}" y="${top}" width="${at(p.w)}" height="${at(p.h)}">`)
      if (meta.n > 20000) out.push(`<image href="${p.base.toDataURL()}" width="${at(p.w)}" height="${at(p.h)}"/>`)
      else {
        for (let i = 0; i < meta.n; i++) {
          const [a, b] = p.to(i)
          out.push(`<circle cx="${at(a)}" cy="${at(b)}" r="2.6" fill="${this.view.shade(i)}"/>`)
        }
      }
      out.push('<\/svg>')
      x += p.w + gap
    })
    return out.join('\n') + '\n<\/svg>\n'
  }
  // What a link restores, as the part of an address behind '#'.
  hash() {
    const text = JSON.stringify({...this.view.state(), find: this.search.value, filters: this.asked()})
    return `${this.view.link}=${coded(new TextEncoder().encode(text))}`
  }
  link(button) {
    const hash = '#' + this.hash()
    try {
      history.replaceState(null, '', hash)
    } catch {
      // a page inside another may not change its address
    }
    copy(location.href.split('#')[0] + hash, button)
    const left = this.view.state().left
    if (!left) return
    const why = `${word(left)} products do not fit in an address`
    this.view.say(`The link restores all but the selection: ${why}. Take them along with Copy as CSV.`)
  }
  // Restore what the address asks for; whatever is no link of this view is left alone.
  restore() {
    const [name, code] = location.hash.slice(1).split('=')
    if (!this.view.link || name !== this.view.link || !code) return
    let asked
    try {
      asked = JSON.parse(new TextDecoder().decode(decoded(code)))
      if (typeof asked.chosen === 'string') asked.mask = unpacked(asked.chosen, this.view.meta.n)
    } catch {
      this.view.say('This link is damaged: the view is shown from the start.')
      return
    }
    this.view.restore(asked)
    if (Number.isInteger(asked.left) && asked.left > 0) {
      this.view.say(`The link came without its selection of ${word(asked.left)} products: it was too long.`)
    }
    this.ask(asked.find, asked.filters)
  }
}
