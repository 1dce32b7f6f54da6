// The linked views in plain JavaScript: an anywidget module in a notebook, inlined in a saved page.
// Here stands what both views use, and where their data come from; spaces.js and topology.js stand before it.
// Text from data reaches the page through textContent and attributes only, never as markup.

// Columns of numbers: from low to high, readable without seeing red or green.
const RAMP = {
  light: ['#00224e', '#3f5a8c', '#7d7c78', '#b3a05c', '#d9b93a'],
  dark: ['#4a6fb8', '#7f97b5', '#a5a5a0', '#d3c06b', '#fdea45'],
}

// ---- small tools
function el(tag, props = {}, ...kids) {
  const e = document.createElement(tag)
  for (const [k, v] of Object.entries(props)) {
    if (k.startsWith('on')) e.addEventListener(k.slice(2), v)
    else if (k === 'class' || k.includes('-') || k === 'role') e.setAttribute(k, v)
    else e[k] = v
  }
  // JupyterLab's keys (d d deletes a cell) stay away from what has the focus
  const takesFocus = tag === 'button' || tag === 'select' || tag === 'input' || props.tabIndex === 0
  if (takesFocus) e.setAttribute('data-lm-suppress-shortcuts', 'true')
  e.append(...kids)
  return e
}
// What a button is called where its title says more than its words: a name that begins with the words.
const buttonName = (words, title) => (title.toLowerCase().includes(words.toLowerCase()) ? title : `${words}: ${title}`)
function bytes(v) {
  if (v instanceof Uint8Array) return v
  if (ArrayBuffer.isView(v)) return new Uint8Array(v.buffer, v.byteOffset, v.byteLength)
  return new Uint8Array(v || 0)
}
const typed = (T, v) => new T(bytes(v).slice().buffer)
const lines = v => new TextDecoder().decode(bytes(v)).split('\n')

// A canvas at the screen's resolution: [width, height, pixels per CSS pixel].
function fit(canvas, most = 2) {
  const w = canvas.clientWidth
  const h = canvas.clientHeight
  const d = Math.min(most, window.devicePixelRatio || 1)
  if (canvas.width !== Math.round(w * d) || canvas.height !== Math.round(h * d)) {
    canvas.width = Math.round(w * d)
    canvas.height = Math.round(h * d)
  }
  return [w, h, d]
}
const probe = document.createElement('canvas').getContext('2d', {willReadFrequently: true})
function rgb(css) {
  probe.clearRect(0, 0, 1, 1)
  probe.fillStyle = 'gray' // stays where the browser does not know the colour
  probe.fillStyle = css
  probe.fillRect(0, 0, 1, 1)
  return [...probe.getImageData(0, 0, 1, 1).data.slice(0, 3)]
}
const mix = (a, b, t) => a.map((x, i) => Math.round(x + (b[i] - x) * t))
const ramp = (stops, t) => {
  const x = Math.max(0, Math.min(1, t)) * (stops.length - 1)
  const k = Math.min(stops.length - 2, Math.floor(x))
  return mix(stops[k], stops[k + 1], x - k)
}
const word = x => x.toLocaleString('en-US')
// Draws with the next picture of the screen, however often it is asked; `now` draws at once.
function later(draw) {
  let asked = false
  const ask = () => {
    if (!asked) {
      asked = true
      requestAnimationFrame(() => {
        asked = false
        draw()
      })
    }
  }
  return Object.assign(ask, {now: draw})
}

// A colour of the theme, such as tone(root, '--bg'), as CSS text.
const tone = (root, name) => getComputedStyle(root).getPropertyValue(name).trim()

// Paper is light, and a browser tells so only when it is too late to draw: all is light from before it prints.
function paper(printing) {
  const {dataset} = document.documentElement
  if (printing === 'onScreen' in dataset) return
  if (printing) {
    dataset.onScreen = dataset.theme ?? ''
    dataset.theme = 'light'
  } else {
    dataset.theme = dataset.onScreen
    if (!dataset.theme) delete dataset.theme
    delete dataset.onScreen
  }
}

// Draw again where JupyterLab, the docs site or the system changes from light to dark, and for paper, at once.
// Returns how to stop that.
function theme(changed, now) {
  const printed = e => {
    paper(e.type === 'beforeprint')
    now()
  }
  for (const when of ['beforeprint', 'afterprint']) addEventListener(when, printed)
  const media = matchMedia('(prefers-color-scheme: dark)')
  const watch = new MutationObserver(changed)
  media.addEventListener('change', changed)
  const attributeFilter = ['data-jp-theme-light', 'data-theme', 'class']
  for (const e of [document.body, document.documentElement])
    watch.observe(e, {attributes: true, attributeFilter})
  changed()
  return () => {
    media.removeEventListener('change', changed)
    for (const when of ['beforeprint', 'afterprint']) removeEventListener(when, printed)
    watch.disconnect()
  }
}

// ---- pictures: from sprite sheets, or asked of the kernel
class Pictures {
  constructor(src) {
    this.src = src
    this.p = src.meta.pictures
    this.sheets = new Map()
    this.had = new Map()
    this.wait = new Map()
    this.blank = new Set(this.p?.blank || [])
  }
  async get(i) {
    // {img, x, y, w, h} or null
    await this.src.ready
    const p = this.p
    if (p?.at) i = p.at[i] // a place in the pictures of another view
    if (!p || this.blank.has(i)) return null
    if (!p.sheets) return this.asked(i)
    const per = p.columns * p.columns
    const s = Math.floor(i / per)
    const k = i % per
    if (!this.sheets.has(s)) this.sheets.set(s, this.decode(this.src.blob('sheet' + s)))
    return {
      img: await this.sheets.get(s),
      x: (k % p.columns) * p.tile,
      y: Math.floor(k / p.columns) * p.tile,
      w: p.tile,
      h: p.tile,
    }
  }
  async decode(data) {
    return createImageBitmap(new Blob([bytes(data)], {type: 'image/jpeg'}))
  }
  asked(i) {
    if (this.had.has(i)) return this.had.get(i)
    const promise = new Promise(done => {
      if (!this.wait.size) queueMicrotask(() => this.send())
      this.wait.set(i, done)
    })
    this.had.set(i, promise)
    if (this.had.size > 3000) this.had.delete(this.had.keys().next().value)
    return promise
  }
  async send() {
    const wait = this.wait
    this.wait = new Map()
    const [, buffers] = await this.src.ask({what: 'pictures', items: [...wait.keys()]})
    let k = 0
    for (const done of wait.values()) {
      const b = bytes(buffers[k++])
      if (!b.length) {
        done(null)
        continue
      }
      const img = await this.decode(b)
      done({img, x: 0, y: 0, w: img.width, h: img.height})
    }
  }
  // A canvas that fills when the picture is there; without a label it stands beside words that say it.
  tile(i, size, label = '') {
    const c = el('canvas', {class: 'tile', ...(label ? {role: 'img', 'aria-label': label} : {'aria-hidden': true})})
    const d = Math.min(2, window.devicePixelRatio || 1)
    c.width = c.height = Math.round(size * d)
    c.style.width = c.style.height = size + 'px'
    this.get(i).then(p => {
      if (p) drawWhole(c, p)
      else drawNone(c)
      c.dataset.ready = p ? 'picture' : 'none'
      c.dataset.item = i
    })
    return c
  }
}

function drawWhole(c, p) {
  const g = c.getContext('2d')
  const k = Math.min(c.width / p.w, c.height / p.h)
  const w = p.w * k
  const h = p.h * k
  g.imageSmoothingQuality = 'high'
  g.drawImage(p.img, p.x, p.y, p.w, p.h, (c.width - w) / 2, (c.height - h) / 2, w, h)
}

function drawNone(c) {
  const g = c.getContext('2d')
  g.fillStyle = getComputedStyle(c).color
  g.font = `${Math.round(c.width / 6)}px system-ui,sans-serif`
  g.textAlign = 'center'
  g.fillText('no', c.width / 2, c.height * 0.46)
  g.fillText('picture', c.width / 2, c.height * 0.66)
}

// ---- parts that both views use
function frame(root, label) {
  root.classList.add('v2w')
  root.setAttribute('role', 'region')
  root.setAttribute('aria-label', label)
  const live = el('div', {class: 'live', 'aria-live': 'polite'})
  const tip = el('div', {class: 'tip', 'aria-hidden': 'true'})
  root.replaceChildren()
  const place = (x, y) => {
    // beside the pointer, inside the view
    const w = tip.offsetWidth
    const box = root.getBoundingClientRect()
    x -= box.left
    y -= box.top
    tip.style.left = Math.max(4, Math.min(x + 16, box.width - w - 4)) + 'px'
    tip.style.top = (y + 20 + tip.offsetHeight > box.height ? y - tip.offsetHeight - 12 : y + 16) + 'px'
  }
  return {live, tip, place}
}
function plot(label, kind, extra = '') {
  const base = el('canvas', {'aria-hidden': 'true'})
  const top = el('canvas', {'aria-hidden': 'true'})
  const box = el(
    'div',
    {
      class: 'plot ' + extra,
      tabIndex: 0,
      role: 'application',
      'aria-roledescription': kind,
      'aria-label': label,
    },
    base,
    top,
  )
  return {base, top, box}
}
// Bring what answers into sight. Nothing moves where it is seen already.
function intoSight(e) {
  const calm = matchMedia('(prefers-reduced-motion: reduce)').matches
  requestAnimationFrame(() => e.scrollIntoView({block: 'nearest', behavior: calm ? 'auto' : 'smooth'}))
}
const tipAt = e => (e.pointerType === 'touch' ? [] : [e.clientX, e.clientY]) // a finger would hide it
function copy(text, button) {
  const said = ok => {
    const was = button.textContent
    button.textContent = ok ? 'Copied' : 'Not allowed'
    setTimeout(() => {
      button.textContent = was
    }, 1200)
  }
  if (!navigator.clipboard) return said(false)
  navigator.clipboard.writeText(text).then(
    () => said(true),
    () => said(false),
  )
}

// ---- where the data come from: a kernel, or the page itself
function fromKernel(model) {
  const wait = new Map()
  const me = Math.random().toString(36).slice(2)
  const near = new Map()
  let count = 0
  const heard = (content, buffers) => {
    const done = wait.get(content?.to)
    if (done) {
      wait.delete(content.to)
      done([content, buffers || []])
    }
  }
  model.on('msg:custom', heard)
  const ask = content =>
    new Promise(done => {
      const to = me + count++
      wait.set(to, done)
      model.send({...content, to})
    })
  const ons = []
  return {
    meta: model.get('meta'),
    slow: true,
    ask,
    blob: name => model.get('blobs')[name],
    positions: () => model.get('positions'),
    status: () => model.get('status'),
    chosen: () => typed(Uint32Array, model.get('chosen')),
    choose: v => {
      model.set('chosen', new DataView(v.buffer))
      model.save_changes()
    },
    near: i => {
      if (!near.has(i))
        near.set(
          i,
          ask({what: 'near', item: i}).then(([c]) => c.near),
        )
      return near.get(i)
    },
    on: (name, f) => {
      model.on('change:' + name, f)
      ons.push([name, f])
    },
    close: () => {
      model.off('msg:custom', heard)
      ons.forEach(([name, f]) => model.off('change:' + name, f))
    },
  }
}
function fromPage(host) {
  const part = (root, name) => root?.querySelector(`script[data-blob="${name}"]`)
  const found = name => {
    const other = meta?.pictures?.of // the view whose pictures serve for this one too
    const elsewhere = other && name.startsWith('sheet') && part(document.getElementById(other), name)
    return elsewhere || part(host.parentNode, name)
  }
  const blob = name => {
    const s = atob(found(name)?.textContent.trim() || '')
    const out = new Uint8Array(s.length)
    for (let k = 0; k < s.length; k++) out[k] = s.charCodeAt(k)
    return out
  }
  const meta = JSON.parse(part(host.parentNode, 'meta').textContent)
  const k = meta.k
  const n = meta.n
  let near = null
  const loading = document.readyState === 'loading' // of a large page the points come first
  const ready = loading && new Promise(done => document.addEventListener('DOMContentLoaded', done, {once: true}))
  return {
    meta,
    blob,
    ready,
    name: host.parentNode.id, // of this view in a link
    slow: false,
    status: () => meta.status || '',
    chosen: () => [],
    choose: () => {},
    on: () => {},
    ask: () => new Promise(() => {}),
    close: () => {},
    positions: () =>
      Object.fromEntries(meta.maps.map(m => [m.name, {xy: blob('map-' + m.name), trust: m.trust, bits: m.bits}])),
    near: async i => {
      await ready
      const lists = meta.spaces.length * (meta.film?.frames.length || 1)
      near ||= typed(meta.film?.near === 16 ? Uint16Array : Uint32Array, blob('near'))
      return Array.from({length: lists}, (_, s) => [...near.subarray((s * n + i) * k, (s * n + i + 1) * k)])
    },
  }
}
function mount(root, src) {
  const stop = (src.meta.kind === 'spaces' ? spaces : topology)(root, src)
  return () => {
    stop()
    src.close()
  }
}
function mountPage() {
  for (const host of document.querySelectorAll('[data-v2r-view]:not(.v2w)')) mount(host, fromPage(host))
}

export default {
  render({model, el: root}) {
    const host = el('div')
    root.append(host)
    if (model.get('mark')) host.dataset.v2rMark = model.get('mark')
    return mount(host, fromKernel(model))
  },
}
export {mount, mountPage}
