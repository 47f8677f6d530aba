/* Line charts: axes, intervals, the values under the cursor, and the same for the keyboard and for a screen reader. */

const COLOURS = 6;
const EDGE = { top: 10, right: 12, bottom: 26, left: 46 };

/* Numbers that a person would put on an axis, about `count` of them. */
function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough * 0.999);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-6; at += step) found.push(Math.abs(at) < step * 1e-9 ? 0 : at);
  return found;
}

function scales(lines, form, width, height) {
  const xs = lines.flatMap((line) => line.points.map((point) => point[0]));
  let values = lines.flatMap((line) => line.points.flatMap((point) => point.slice(1)));
  const log = form === 'log';
  if (log) values = values.filter((value) => value > 0);
  let [left, right] = [Math.min(...xs), Math.max(...xs)];
  if (left === right) [left, right] = [left - 1, right + 1];
  let low = values.length ? Math.min(...values) : 1e-9;
  let high = values.length ? Math.max(...values) : 1;
  let marks;
  if (log) {
    [low, high] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
    if (low === high) [low, high] = [low - 1, high + 1];
    marks = ticks(low, high, 4).filter(Number.isInteger).map((power) => 10 ** power);
  } else {
    if (low >= 0 && low < high * 0.75) low = 0;
    if (low === high) [low, high] = [Math.min(low, 0), high === 0 ? 1 : high];
    const step = ticks(low, high, 4);
    const gap = step.length > 1 ? step[1] - step[0] : high - low;
    [low, high] = [Math.floor(low / gap + 1e-9) * gap, Math.ceil(high / gap - 1e-9) * gap];
    marks = ticks(low, high, 4);
  }
  const across = width - EDGE.left - EDGE.right;
  const up = height - EDGE.top - EDGE.bottom;
  return {
    marks,
    steps: ticks(left, right, Math.max(2, Math.floor(across / 70))).filter(Number.isInteger),
    x: (step) => EDGE.left + ((step - left) / (right - left)) * across,
    y: (value) => EDGE.top + up - (((log ? Math.log10(value) : value) - low) / (high - low)) * up,
    drawn: (value) => value != null && (!log || value > 0),
  };
}

/* One chart. `lines` are { label, run, colour, points }; several runs show one line each, chosen by its label. */
class LineChart {
  constructor(chart, several) {
    this.chart = chart;
    this.several = several;
    this.lines = [];
    this.hidden = new Set();
    this.chosen = null;
    this.at = null;
    this.chips = element('div', { class: 'chips' });
    this.tip = element('div', { class: 'tip', hidden: true });
    this.values = element('p', { class: 'unseen', 'aria-live': 'polite' });
    this.svg = shape('svg', { role: 'img', tabindex: 0 });
    const plot = element('div', { class: 'plot' }, this.svg, this.tip);
    this.node = element('figure', { class: 'chart', 'data-chart': chart.id },
      element('figcaption', {}, element('h3', {}, chart.title), element('p', {}, chart.about)), this.chips, plot, this.values);
    this.svg.addEventListener('pointermove', (event) => this.point(event.offsetX));
    this.svg.addEventListener('pointerleave', () => this.mark(null));
    this.svg.addEventListener('blur', () => this.mark(null));
    this.svg.addEventListener('keydown', (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(plot);
  }

  show(lines) {
    this.lines = lines;
    const labels = [...new Set(lines.map((line) => line.label))];
    if (!labels.includes(this.chosen)) this.chosen = labels[0];
    const chips = labels.length > 1 ? labels.map((label) => this.chip(label, lines.find((line) => line.label === label))) : [];
    this.chips.replaceChildren(...chips);
    this.draw();
  }

  chip(label, line) {
    const on = this.several ? label === this.chosen : !this.hidden.has(label);
    const click = () => {
      if (this.several) this.chosen = label;
      else if (!this.hidden.delete(label)) this.hidden.add(label);
      this.show(this.lines);
    };
    const colour = this.several ? 'plain' : `c${line.colour}`;
    return element('button', { type: 'button', class: `chip ${colour}`, 'aria-pressed': String(on), onclick: click }, label);
  }

  shown() {
    return this.lines.filter((line) => (this.several ? line.label === this.chosen : !this.hidden.has(line.label)));
  }

  draw() {
    const width = this.svg.parentNode.clientWidth;
    const height = 190;
    const lines = this.shown();
    if (!width) return;
    this.svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
    this.svg.setAttribute('aria-label', `${this.chart.title}. ${lines.map((line) => this.sentence(line)).join(' ')}`);
    if (!lines.some((line) => line.points.length)) return void this.svg.replaceChildren();
    const to = scales(lines, this.chart.form, width, height);
    const short = (value) => (this.chart.form === 'share' ? `${Math.round(100 * value)} %` : this.chart.form === 'log' ? value.toExponential(0) : axis(value, to.marks));
    this.to = to;
    this.cursor = shape('line', { class: 'cursor', y1: EDGE.top, y2: height - EDGE.bottom, visibility: 'hidden' });
    this.svg.replaceChildren(
      ...to.marks.map((mark) => shape('line', { class: 'grid', x1: EDGE.left, x2: width - EDGE.right, y1: to.y(mark), y2: to.y(mark) })),
      ...to.marks.map((mark) => shape('text', { class: 'tick', x: EDGE.left - 7, y: to.y(mark) + 4, 'text-anchor': 'end' }, short(mark))),
      ...to.steps.map((step) => shape('text', { class: 'tick', x: to.x(step), y: height - 8, 'text-anchor': 'middle' }, number(step))),
      ...lines.map((line) => drawn(line, to)),
      this.cursor,
    );
    this.mark(null);
  }

  sentence(line) {
    const first = line.points[0];
    const last = line.points.at(-1);
    if (!last) return '';
    const name = this.several ? line.run : line.label;
    const tell = (point) => `${formatted(point[1], this.chart.form)} at update ${point[0]}`;
    return first === last ? `${name}: ${tell(first)}.` : `${name}: from ${tell(first)} to ${tell(last)}.`;
  }

  steps() {
    return [...new Set(this.shown().flatMap((line) => line.points.map((point) => point[0])))].sort((a, b) => a - b);
  }

  point(offset) {
    if (!this.to) return;
    const near = this.steps().reduce((best, step) => (Math.abs(this.to.x(step) - offset) < Math.abs(this.to.x(best) - offset) ? step : best), Infinity);
    this.mark(near === Infinity ? null : near);
  }

  key(event) {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const steps = this.steps();
    if (!move || !steps.length) return;
    event.preventDefault();
    const at = this.at == null ? (move > 0 ? 0 : steps.length - 1) : steps.indexOf(this.at) + move;
    this.mark(steps[Math.max(0, Math.min(steps.length - 1, at))]);
    this.values.textContent = this.tip.textContent;
  }

  /* Show the values at one update. */
  mark(step) {
    this.at = step;
    this.tip.hidden = step == null;
    if (!this.cursor) return;
    this.cursor.setAttribute('visibility', step == null ? 'hidden' : 'visible');
    if (step == null) return;
    const x = this.to.x(step);
    this.cursor.setAttribute('x1', x);
    this.cursor.setAttribute('x2', x);
    const rows = this.shown().flatMap((line) => {
      const point = line.points.find((one) => one[0] === step);
      if (!point) return [];
      const range = point.length > 2 ? ` (${number(point[2])} to ${number(point[3])})` : '';
      return [element('div', { class: `c${line.colour}` }, element('i', {}), `${this.several ? line.run : line.label} `, element('b', {}, formatted(point[1], this.chart.form)), range)];
    });
    this.tip.replaceChildren(element('div', { class: 'when' }, `update ${number(step)} `), ...rows);
    const room = this.svg.parentNode.clientWidth - this.tip.offsetWidth;
    const wanted = x + 14 > room ? x - this.tip.offsetWidth - 14 : x + 14;
    this.tip.style.left = `${Math.max(0, Math.min(room, wanted))}px`;
  }
}

/* As many decimals as the marks of an axis need to differ. */
function axis(value, marks) {
  const gap = marks.length > 1 ? Math.abs(marks[1] - marks[0]) : Math.abs(value) || 1;
  if (gap < 1e-4 || gap >= 1e6) return value === 0 ? '0' : value.toExponential(0);
  return value.toLocaleString('en', { minimumFractionDigits: 0, maximumFractionDigits: Math.max(0, Math.ceil(-Math.log10(gap) - 1e-9)) });
}

/* A line with a gap where a value cannot be drawn; dots where there are few, whiskers where there is an interval. */
function drawn(line, to) {
  const points = line.points.filter((point) => to.drawn(point[1]));
  const sparse = points.length < 3 || points.some((point) => point.length > 2);
  const group = shape('g', { class: `line c${line.colour}${sparse ? ' sparse' : ''}` });
  const path = points.map((point, at) => `${at ? 'L' : 'M'}${to.x(point[0]).toFixed(1)},${to.y(point[1]).toFixed(1)}`).join('');
  if (points.length > 1) group.append(shape('path', { class: 'course', d: path }));
  for (const [step, value, low, high] of points) {
    if (low != null) group.append(shape('path', { class: 'whisker', d: `M${to.x(step)},${to.y(low)}V${to.y(high)}m-4,0h8M${to.x(step) - 4},${to.y(low)}h8` }));
    if (low != null || points.length < 3) group.append(shape('circle', { cx: to.x(step), cy: to.y(value), r: 3.5 }));
  }
  return group;
}
