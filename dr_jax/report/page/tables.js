/* The overview's tiles and evaluations, and the settings. */

function tiles(run) {
  const { before, after, measured } = run.evaluations;
  const last = (name) => run.metrics[name]?.findLast((value) => value != null);
  const range = (one) => `${fixed(one.ci95[0], 3)} to ${fixed(one.ci95[1], 3)}`;
  const found = [];
  if (measured) found.push(['F1', fixed(measured.f1, 3), `95 % interval ${range(measured)}, ${measured.n} questions`]);
  if (after && before) found.push(['Held-out F1', `${fixed(before.f1, 3)} → ${fixed(after.f1, 3)}`, `95 %: ${range(before)} → ${range(after)}`]);
  else if (before) found.push(['Held-out F1, before', fixed(before.f1, 3), `95 % interval ${range(before)}`]);
  if (after && before) found.push(['Held-out tool calls', `${fixed(before.tool_calls, 2)} → ${fixed(after.tool_calls, 2)}`, 'per episode']);
  if (measured) found.push(['Tool calls', fixed(measured.tool_calls, 2), 'per episode']);
  if (last('step') != null) found.push(['Updates', `${last('step')}${run.config.steps ? ` of ${run.config.steps}` : ''}`, duration(last('wall_s'))]);
  if (last('rollout/reward') != null) found.push(['Reward, last update', fixed(last('rollout/reward'), 3), `${fixed(last('rollout/tool_calls'), 2)} tool calls per episode`]);
  const gaps = (run.metrics['update/mismatch_max'] ?? []).filter((value) => value != null);
  const worst = gaps.length ? gaps.reduce((a, b) => Math.max(a, b)) : run.summary.mismatch_max ?? measured?.mismatch_max;
  if (worst != null) found.push(['Largest mismatch', number(worst), 'engine against trainer, log-probability']);
  const shown = run.rows.length;
  found.push(['Episodes', number(run.episodes), shown < run.episodes ? `${number(shown)} of them are in this page` : 'all in this page']);
  return element('div', { class: 'tiles' }, found.map(([name, value, about]) =>
    element('div', { class: 'tile' }, element('span', {}, name), element('strong', {}, value), element('small', {}, about))));
}

/* Every evaluation, whole and by source and by hops, with its interval as a whisker between 0 and 1. */
function evaluations(runs) {
  const rows = runs.flatMap((run) => Object.entries(run.evaluations).map(([when, found]) => ({ run, when, found })));
  if (!rows.length) return null;
  const slices = [['', (one) => ({ 'all questions': one })], ['by source', (one) => one.by_source ?? {}], ['by hops', (one) => one.by_hops ?? {}]];
  const body = [];
  for (const [title, part] of slices) {
    const names = [...new Set(rows.flatMap((row) => Object.keys(part(row.found))))];
    if (title === 'by source' && names.length < 2) continue;
    if (title && names.length) body.push(element('tr', { class: 'slice' }, element('th', { colspan: 8, scope: 'rowgroup' }, title)));
    for (const name of names) {
      const own = rows.filter((row) => part(row.found)[name]);
      own.forEach((row, at) => body.push(evaluation(at ? '' : name, runs.length > 1 ? `${row.run.name}, ${row.when}` : row.when, part(row.found)[name], row)));
    }
  }
  const heads = ['questions', 'measured', 'n', 'F1', '95 % interval', '', 'EM', 'calls', 'outcomes'];
  return element('div', { class: 'wide' }, element('table', { class: 'evaluations' },
    element('caption', {}, 'Evaluations: one episode per question; the interval is the 95 % bootstrap interval of the mean F1 over questions'),
    element('thead', {}, element('tr', {}, heads.map((head) => element('th', { scope: 'col' }, head)))),
    element('tbody', {}, body)));
}

function evaluation(name, when, one, row) {
  const outcomes = Object.entries(one.outcomes).map(([outcome, count]) => `${count} ${words(outcome)}`).join(', ');
  const cells = [when, number(one.n), fixed(one.f1, 3), `${fixed(one.ci95[0], 3)} to ${fixed(one.ci95[1], 3)}`, whisker(one, row.when), fixed(one.em, 3), fixed(one.tool_calls, 2), outcomes];
  return element('tr', { class: name ? 'first' : '' }, element('th', { scope: 'row' }, name), cells.map((cell) => element('td', {}, cell)));
}

function whisker(one, when) {
  const x = (value) => 2 + 116 * value;
  return shape('svg', { class: `whiskers ${when}`, width: 120, height: 16, 'aria-hidden': 'true' },
    shape('line', { class: 'grid', x1: 2, x2: 118, y1: 8, y2: 8 }),
    shape('line', { class: 'range', x1: x(one.ci95[0]), x2: x(one.ci95[1]), y1: 8, y2: 8 }),
    shape('circle', { cx: x(one.f1), cy: 8, r: 4 }));
}

/* Settings of all runs side by side, by their dotted names. */
function settings(runs, place) {
  const flat = runs.map((run) => new Map(leaves(run.config)));
  const names = [...new Set(flat.flatMap((one) => [...one.keys()]))];
  const several = runs.length > 1;
  const search = element('input', { type: 'search', placeholder: 'Search settings', 'aria-label': 'Search settings', oninput: draw });
  const differing = element('input', { type: 'checkbox', oninput: draw });
  const body = element('tbody', {});
  function draw() {
    const wanted = search.value.toLowerCase();
    const rows = names.flatMap((name) => {
      const values = flat.map((one) => one.get(name) ?? '–');
      const differs = new Set(values).size > 1;
      if (!`${name} ${values.join(' ')}`.toLowerCase().includes(wanted) || (differing.checked && !differs)) return [];
      return [element('tr', { class: differs ? 'differs' : '' }, element('th', { scope: 'row' }, name), values.map((value) => element('td', {}, value)))];
    });
    body.replaceChildren(...rows);
  }
  draw();
  place.replaceChildren(
    element('div', { class: 'filters' }, search, several && element('label', {}, differing, ' only what differs')),
    element('div', { class: 'wide' }, element('table', { class: 'settings' },
      element('thead', {}, element('tr', {}, element('th', { scope: 'col' }, 'setting'), runs.map((run) => element('th', { scope: 'col' }, run.name)))), body)));
}

function leaves(value, name = '') {
  if (value === null || typeof value !== 'object' || Array.isArray(value)) return [[name, JSON.stringify(value)]];
  return Object.entries(value).flatMap(([key, one]) => leaves(one, name ? `${name}.${key}` : key));
}
