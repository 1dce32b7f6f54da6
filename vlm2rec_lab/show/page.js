// A saved page in place of a kernel: the constants STATE, which is the widget's, and HOST stand before this.

const heard = []
const model = {
  get: k => STATE[k],
  on: (_, f) => heard.push(f),
  off() {},
  set(k, v) {
    STATE[k] = v
    if (k === 'at' && STATE.pages) STATE.page = STATE.pages[v]
  },
  save_changes() {
    heard.forEach(f => f())
  },
}
if (STATE.pages) STATE.page = STATE.pages[STATE.at]
render({model, el: HOST})
