// Topology: who is like whom, in each space. It needs views.js behind it.

const ABOUT_PAIR =
  'Point at a cell, or move to a map with Tab and use the arrow keys. ' +
  'A click or Enter opens the pair and keeps it.'
const alike = z => (z > 1 ? 'alike' : z < -1 ? 'unlike' : 'neither alike nor unlike')
const num = v => v.toFixed(2).replace('-', '−')
const agreed = z => (z > 1 ? 'agreed' : z < -1 ? 'disputed' : 'undecided')

function topology(root, src) {
  const meta = src.meta
  const m = meta.n
  const S = meta.spaces.length
  const {live, tip, place} = frame(root, meta.heading)
  const pictures = new Pictures(src)
  const titles = lines(src.blob('titles'))
  const ids = lines(src.blob('ids'))
  const like = typed(Float32Array, src.blob('similarity'))
  const both = S > 1 ? typed(Float32Array, src.blob('consistency')) : null
  const agree = S > 1 ? typed(Float32Array, src.blob('agreement')) : null
  const st = {hover: null, pin: null}
  const r = meta.r === null ? 'r unknown' : `r = ${(meta.r ?? 0).toFixed(2)}`
  const sd = (s, i, j) => (like[(s * m + i) * m + j] - meta.mean[s]) / meta.sd[s]
  const value = (k, i, j) => (k < S ? sd(k, i, j) : both[i * m + j])
  const how = 'Arrow keys move from pair to pair, Enter keeps the pair, Escape clears.'
  const names = [
    ...meta.spaces,
    ...(both ? [`consistency of ${meta.between[0]} and ${meta.between[1]}`] : []),
  ]
  const figure = (cls, name, p, note = '') => {
    const head = el(
      'div',
      {class: 'head'},
      el('h4', {class: 'h', textContent: name}),
      el('span', {textContent: note}),
    )
    return el('div', {class: cls}, head, p.box)
  }
  const panels = names.map((name, k) => {
    const p = plot(`${name}: ${m} by ${m} products. ${how}`, 'heat map', 'heat')
    const fig =
      k < S ? figure('panel', name, p) : figure('panel', 'consistency', p, r)
    return Object.assign(p, {k, name, fig})
  })
  if (agree) {
    const ways = 'Up and down move, Enter opens its most disputed pair.'
    const label = `agreement of ${meta.between[0]} and ${meta.between[1]} for each product. ${ways}`
    const p = plot(label, 'bar chart', 'heat')
    panels.push(Object.assign(p, {k: -1, name: 'agreement', fig: figure('panel thin', 'agreement', p)}))
  }
  const scale = el(
    'span',
    {class: 'scale'},
    'unlike',
    el('i'),
    'alike',
    el('span', {textContent: '(±3 standard deviations)'}),
  )
  const card = el('div', {class: 'duet'})
  const table = el('div')
  const strip = el('div', {class: 'strip'})
  root.append(
    el('div', {class: 'bar'}, scale),
    el('div', {class: 'panels'}, ...panels.map(p => p.fig)),
    el('p', {class: 'soft note', textContent: meta.note}),
    el('div', {class: 'foot pair'}, card, table),
    strip,
    live,
    tip,
  )
  if (both) strip.append(el('strong', {textContent: 'Most disputed'}), ...meta.disputed.map(dispute))

  // A button that opens a pair.
  function dispute([i, j]) {
    const title = `${titles[i]} and ${titles[j]}`
    const onclick = () => pin([i, j])
    const b = el('button', {type: 'button', class: 'duo', title, 'aria-label': title, onclick})
    if (meta.pictures) b.append(pictures.tile(i, 44), pictures.tile(j, 44))
    else {
      b.style.lineHeight = 1.3
      b.append(title)
    }
    return b
  }
  // The product that a product's spaces dispute about most.
  const partner = i => {
    let best = i ? 0 : 1
    for (let j = 0; j < m; j++) if (j !== i && both[i * m + j] < both[i * m + best]) best = j
    return best
  }
  const focus = () => st.hover || st.pin
  function heat(p) {
    ;[p.w, p.h, p.d] = fit(p.base)
    if (!p.w || !p.h) return
    const g = p.base.getContext('2d')
    g.setTransform(1, 0, 0, 1, 0, 0)
    g.fillStyle = tone(root, '--bg')
    g.fillRect(0, 0, p.base.width, p.base.height)
    if (p.k < 0) return bars(p, g)
    p.small ||= cells(p)
    g.imageSmoothingEnabled = false
    g.drawImage(p.small, 0, 0, p.base.width, p.base.height)
  }
  // The agreement of each product, from the middle to the left or right.
  function bars(p, g) {
    const W = p.base.width
    const H = p.base.height
    const x = v => W / 2 + v * (W / 2 - 4)
    g.fillStyle = tone(root, '--c1')
    for (let i = 0; i < m; i++) {
      const y = Math.floor((i * H) / m)
      const to = Math.floor(((i + 1) * H) / m)
      const a = x(0)
      const b = x(agree[i])
      const gap = H / m > 3 ? 1 : 0
      g.fillRect(Math.min(a, b), y, Math.max(1, Math.abs(b - a)), Math.max(1, to - y - gap))
    }
    g.fillStyle = `rgb(${rgb(tone(root, '--line'))})`
    g.fillRect(x(0) - 0.5, 0, 1.5, H)
  }
  // A map with one pixel per pair: unlike, paper, alike.
  function cells(p) {
    const [lo, bg, hi] = ['--c1', '--bg', '--c2'].map(v => rgb(tone(root, v)))
    const c = document.createElement('canvas')
    c.width = c.height = m
    const g = c.getContext('2d')
    const image = g.createImageData(m, m)
    for (let i = 0, at = 0; i < m; i++) {
      for (let j = 0; j < m; j++, at += 4) {
        const t = i === j ? 0 : Math.max(-1, Math.min(1, value(p.k, i, j) / 3))
        image.data.set([...mix(bg, t < 0 ? lo : hi, Math.abs(t)), 255], at)
      }
    }
    g.putImageData(image, 0, 0)
    return c
  }
  const over = later(() => {
    const at = focus()
    const ink = tone(root, '--ink')
    for (const p of panels) {
      const [w, h, d] = fit(p.top)
      const g = p.top.getContext('2d')
      g.setTransform(d, 0, 0, d, 0, 0)
      g.clearRect(0, 0, w, h)
      if (!at) continue
      const [i, j] = at
      const y = ((i + 0.5) * h) / m
      const x = ((j + 0.5) * w) / m
      g.strokeStyle = ink
      g.lineWidth = 1
      g.globalAlpha = 0.55
      g.beginPath()
      g.moveTo(0, y)
      g.lineTo(w, y)
      if (p.k >= 0) {
        g.moveTo(x, 0)
        g.lineTo(x, h)
      }
      g.stroke()
      g.globalAlpha = 1
      if (p.k >= 0) {
        g.lineWidth = 2
        const a = Math.max(w / m, 7)
        g.strokeRect(x - a / 2, y - a / 2, a, a)
      }
    }
  })
  let again = false
  const paint = later(() => {
    if (!panels[0].box.clientWidth) {
      if (!again) setTimeout(paint, 300) // as in spaces.js
      again = !again
      return
    }
    again = false
    if (agree) panels.at(-1).box.style.height = `${panels.at(-2).box.offsetHeight}px` // bars stand beside their rows
    panels.forEach(heat)
    over()
  })
  function show() {
    over()
    const at = focus()
    table.replaceChildren()
    if (!at) {
      const props = {class: 'soft', style: 'grid-column:1/-1', textContent: ABOUT_PAIR}
      card.replaceChildren(el('p', props))
      return
    }
    const [i, j] = at
    card.replaceChildren(item(i), ...(i === j ? [] : [item(j)]))
    if (i !== j) table.append(comparison(i, j))
    if (!agree) return
    const second = i === j ? '' : `, ${num(agree[j])} for the second`
    const words = `Agreement of ${meta.between[0]} and ${meta.between[1]}: ${num(agree[i])} for the first${second}.`
    table.append(el('p', {class: 'soft agree', textContent: words}))
  }
  function item(k) {
    const picture = meta.pictures ? [pictures.tile(k, 104, titles[k])] : []
    const name = el('p', {class: 'name', textContent: titles[k]})
    return el('div', {class: 'item'}, ...picture, name, el('span', {class: 'soft', textContent: ids[k]}))
  }
  // The two products in each space, as a table.
  function comparison(i, j) {
    const row = (tag, ...cells) => el('tr', {}, ...cells.map(c => el(tag, {textContent: c})))
    const rows = meta.spaces.map((name, s) => {
      const z = sd(s, i, j)
      return row('td', name, num(like[(s * m + i) * m + j]), num(z), alike(z))
    })
    if (both) rows.push(row('td', 'consistency', '', num(both[i * m + j]), agreed(both[i * m + j])))
    const head = el('thead', {}, row('th', 'space', 'cosine', 'in sd', 'these two are'))
    return el('table', {class: 'like'}, head, el('tbody', {}, ...rows))
  }
  function hover(at, x, y) {
    if (String(at) !== String(st.hover)) {
      st.hover = at
      if (at)
        tip.replaceChildren(
          ...[...new Set(at)].flatMap(k => [
            ...(meta.pictures ? [pictures.tile(k, 56, titles[k])] : []),
            el('span', {textContent: titles[k]}),
          ]),
        )
      show()
    }
    tip.classList.toggle('on', !!at && x !== undefined)
    if (at && x !== undefined) place(x, y)
  }
  function pin(at) {
    st.pin = at
    st.hover = null
    tip.classList.remove('on')
    show()
    src.choose(Uint32Array.from(at || []))
    if (at) speak(at)
  }
  function speak([i, j]) {
    live.textContent =
      `Row ${i + 1}, column ${j + 1}: ${titles[i]} and ${titles[j]}. ` +
      meta.spaces.map((name, s) => `${name}: ${alike(sd(s, i, j))}`).join(', ')
  }
  panels.forEach(p => {
    const at = e => {
      const b = p.base.getBoundingClientRect()
      const cell = (v, size) => Math.max(0, Math.min(m - 1, Math.floor((v / size) * m)))
      const i = cell(e.clientY - b.top, b.height)
      return [i, p.k < 0 ? i : cell(e.clientX - b.left, b.width)]
    }
    const open = a => pin(p.k < 0 ? [a[0], partner(a[0])] : a)
    let last = null
    const look = later(() => {
      if (last) hover(at(last), ...tipAt(last))
    })
    p.box.addEventListener('pointermove', e => {
      last = e
      look()
    })
    p.box.addEventListener('pointerleave', () => {
      last = null
      hover(null)
    })
    p.box.addEventListener('click', e => {
      open(at(e))
      intoSight(card)
    })
    p.box.addEventListener('keydown', e => {
      const ways = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}
      const now = focus() || [0, 0]
      const far = e.shiftKey ? 10 : 1
      const clip = v => Math.max(0, Math.min(m - 1, v))
      if (ways[e.key]) {
        const [a, b] = ways[e.key]
        const next = focus() ? [clip(now[0] + far * a), clip(now[1] + far * b)] : now
        st.pin = null
        hover(p.k < 0 ? [next[0], next[0]] : next)
        speak(st.hover)
      } else if (e.key === 'Enter') open(now)
      else return
      e.preventDefault()
      e.stopPropagation()
    })
  })
  root.addEventListener('keydown', e => {
    if (e.key === 'Escape') {
      e.stopPropagation()
      st.hover = null
      pin(null)
      live.textContent = 'cleared'
    }
  })
  const anew = draw => () => {
    for (const p of panels) p.small = null
    draw()
  }
  const untheme = theme(anew(paint), anew(paint.now))
  const sizes = new ResizeObserver(paint)
  panels.forEach(p => sizes.observe(p.box))
  const chosen = () => {
    const c = [...src.chosen()]
    if (c.length === 2 && String(c) !== String(st.pin)) {
      st.pin = c
      show()
    }
  }
  src.on('chosen', chosen)
  show()
  chosen()
  root.view = {
    place: (k, i, j) => {
      const b = panels[k].base.getBoundingClientRect()
      return [b.left + ((j + 0.5) / m) * b.width, b.top + ((i + 0.5) / m) * b.height]
    },
    state: st,
    panels,
  }
  return () => {
    untheme()
    sizes.disconnect()
  }
}
