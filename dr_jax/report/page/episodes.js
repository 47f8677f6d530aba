/* The list of all episodes: searched, filtered and sorted in the page, and drawn only where it is looked at. */

const ROW = 62; // px, as in the style

class Episodes {
  constructor(place, load) {
    this.load = load;
    this.rows = [];
    this.found = [];
    this.selected = null;
    this.opened = null;
    this.several = false;
    this.controls = this.makeControls();
    this.count = element('span', { class: 'muted', role: 'status', id: 'count' });
    this.space = element('div', { class: 'space' });
    this.list = element('div', { class: 'list', id: 'list', tabindex: 0, role: 'listbox', 'aria-label': 'Episodes', onscroll: () => this.draw() }, this.space);
    this.reader = element('div', { class: 'reader', id: 'reader' });
    this.place = place;
    const keys = [['/', 'search'], ['j k', 'next, previous'], ['Enter', 'open'], ['Esc', 'close']];
    place.append(
      element('div', { class: 'side' }, this.filters(),
        element('div', { class: 'under' }, this.count, element('span', { class: 'keys muted' }, keys.map(([key, does]) => [element('kbd', {}, key), ` ${does} `]))), this.list),
      this.reader);
    new ResizeObserver(() => this.draw()).observe(this.list);
    this.empty();
  }

  makeControls() {
    const input = (attributes) => element('input', { ...attributes, oninput: () => this.filter() });
    const select = (label) => element('select', { 'aria-label': label, onchange: () => this.filter() });
    const bound = (what, end) => input({ type: 'number', step: 'any', placeholder: end, 'aria-label': `${what} ${end}` });
    return {
      search: input({ type: 'search', id: 'search', placeholder: 'Search questions, answers, calls, ids', 'aria-label': 'Search episodes' }),
      run: select('Run'), outcome: select('Outcome'), source: select('Source'),
      from: bound('update', 'from'), to: bound('update', 'to'),
      least: bound('reward', 'from'), most: bound('reward', 'to'),
      sort: select('Order'),
    };
  }

  filters() {
    const { search, run, outcome, source, from, to, least, most, sort } = this.controls;
    this.steps = element('div', { class: 'range' }, 'update', from, to);
    return element('div', { class: 'filters' }, search, run, outcome, source, sort, this.steps, element('div', { class: 'range' }, 'reward', least, most));
  }

  /* Take all rows; the same row objects as before where they were there before. */
  show(rows) {
    this.rows = rows;
    const options = (control, none, values) => {
      const kept = control.value;
      control.replaceChildren(element('option', { value: '' }, none), ...values.map((value) => element('option', { value }, words(value))));
      control.value = values.includes(kept) ? kept : '';
      control.hidden = values.length < 2;
    };
    const all = (name) => [...new Set(rows.map(name))].filter(Boolean).sort();
    options(this.controls.run, 'every run', all((row) => row.run.name));
    options(this.controls.outcome, 'every outcome', all((row) => row.outcome));
    options(this.controls.source, 'every source', all((row) => row.source));
    this.several = !this.controls.run.hidden;
    const orders = { newest: 'newest first', oldest: 'oldest first', best: 'highest reward', worst: 'lowest reward', calls: 'most calls', longest: 'most tokens' };
    const { sort } = this.controls;
    if (!sort.children.length) sort.append(...Object.entries(orders).map(([value, name]) => element('option', { value }, name)));
    const trained = rows.some((row) => row.step != null);
    this.steps.hidden = !trained;
    if (!rows.includes(this.selected)) this.selected = null;
    this.filter();
  }

  filter() {
    const started = performance.now();
    const { search, run, outcome, source, from, to, least, most, sort } = this.controls;
    const wanted = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const bound = (control, otherwise) => (control.value === '' ? otherwise : Number(control.value));
    const [first, last] = [bound(from, -Infinity), bound(to, Infinity)];
    const [low, high] = [bound(least, -Infinity), bound(most, Infinity)];
    const [byStep, byScore] = [from.value + to.value !== '', least.value + most.value !== ''];
    this.found = this.rows.filter((row) =>
      (!run.value || row.run.name === run.value) && (!outcome.value || row.outcome === outcome.value) && (!source.value || row.source === source.value) &&
      (!byStep || (row.step != null && row.step >= first && row.step <= last)) &&
      (!byScore || (row.score != null && row.score >= low && row.score <= high)) &&
      wanted.every((word) => row.text.includes(word)));
    const keys = { best: (row) => -(row.score ?? Infinity), worst: (row) => row.score ?? Infinity, calls: (row) => -row.calls, longest: (row) => -row.tokens };
    if (sort.value === 'newest') this.found.reverse();
    else if (keys[sort.value]) {
      const key = keys[sort.value];
      const last = (value) => (value === -Infinity ? Infinity : value); // without a reward: at the end
      this.found.sort((a, b) => last(key(a)) - last(key(b)));
    }
    this.count.textContent = `${number(this.found.length)} of ${number(this.rows.length)}`;
    this.space.style.height = `${this.found.length * ROW}px`;
    this.draw();
    this.filteredIn = performance.now() - started;
  }

  draw() {
    const { scrollTop, clientHeight } = this.list;
    const first = Math.max(0, Math.floor(scrollTop / ROW) - 4);
    const last = Math.min(this.found.length, Math.ceil((scrollTop + clientHeight) / ROW) + 4);
    this.space.replaceChildren(...this.found.slice(first, last).map((row, at) => this.item(row, first + at)));
    if (this.selected) this.list.setAttribute('aria-activedescendant', `row-${this.found.indexOf(this.selected)}`);
  }

  item(row, at) {
    const score = fixed(row.score, 2);
    const item = element('div', {
      class: 'item', id: `row-${at}`, role: 'option', 'aria-selected': String(row === this.selected), 'aria-posinset': at + 1, 'aria-setsize': this.found.length,
      onclick: () => this.open(row),
    },
    element('span', { class: `score ${row.score == null ? '' : row.score >= 0.999 ? 'good' : row.score > 0 ? 'part' : 'bad'}` }, score),
    element('span', { class: 'what' }, element('b', {}, row.question),
      element('span', {}, row.answer == null ? badge(row.outcome) : `${row.answer}`, element('span', { class: 'muted' }, `  ·  accepted: ${row.answers[0] ?? '–'}`))),
    element('span', { class: 'where muted' }, this.several ? element('span', {}, row.run.name) : null,
      element('span', {}, row.step == null ? 'measured' : `update ${row.step}`), element('span', {}, `${row.calls} call${row.calls === 1 ? '' : 's'}`)));
    item.style.top = `${at * ROW}px`;
    return item;
  }

  select(row) {
    this.selected = row;
    const top = this.found.indexOf(row) * ROW;
    const { scrollTop, clientHeight } = this.list;
    if (top < scrollTop) this.list.scrollTop = top;
    else if (top + ROW > scrollTop + clientHeight) this.list.scrollTop = top + ROW - clientHeight;
    this.draw();
  }

  move(by) {
    if (!this.found.length) return;
    const at = this.found.indexOf(this.selected);
    const row = this.found[at < 0 ? 0 : Math.max(0, Math.min(this.found.length - 1, at + by))];
    if (this.opened) this.open(row);
    else this.select(row);
  }

  /* Open an episode in the reader; a later one that was asked for meanwhile wins. */
  async open(row) {
    if (!row) return;
    this.opened = row;
    this.select(row);
    history.replaceState(null, '', `#episodes/${row.run.at}/${row.at}`);
    this.place.classList.add('reading');
    const started = performance.now();
    let shown;
    try {
      const episode = await this.load(row);
      const siblings = this.rows.filter((one) => one.run === row.run && one.step === row.step && one.question_id === row.question_id);
      shown = [element('button', { type: 'button', class: 'close', onclick: () => this.close() }, '← Back to the list'), episodeView(episode, row, siblings, (one) => this.open(one))];
    } catch (error) {
      shown = [element('p', { class: 'empty' }, `This episode cannot be shown: ${error.message}`)];
    }
    if (this.opened !== row) return;
    this.reader.replaceChildren(...shown);
    this.reader.scrollTop = 0;
    this.openedIn = performance.now() - started;
  }

  close() {
    this.opened = null;
    this.place.classList.remove('reading');
    this.empty();
    if (location.hash.startsWith('#episodes/')) history.replaceState(null, '', '#episodes');
  }

  empty() {
    this.reader.replaceChildren(element('p', { class: 'empty' }, 'Open an episode to read what the policy saw and wrote, and what it earned.'));
  }

  key(event) {
    const typing = event.target.matches?.('input, select, textarea');
    if (event.key === 'Escape') {
      if (typing) event.target.blur();
      else if (this.opened) this.close();
      else if (this.controls.search.value) {
        this.controls.search.value = '';
        this.filter();
      }
    } else if (typing) {
      if (event.key !== 'Enter' || event.target !== this.controls.search) return;
      event.target.blur();
      this.list.focus();
      if (!this.found.includes(this.selected)) this.move(0);
    } else if (event.key === '/') {
      this.controls.search.focus();
      this.controls.search.select();
    } else if (event.key === 'j' || (event.key === 'ArrowDown' && event.target === this.list)) this.move(1);
    else if (event.key === 'k' || (event.key === 'ArrowUp' && event.target === this.list)) this.move(-1);
    else if (event.key === 'Enter' && !event.target.matches?.('button, summary, a')) this.open(this.selected ?? this.found[0]);
    else return;
    event.preventDefault();
  }
}
